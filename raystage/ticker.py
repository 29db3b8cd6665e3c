"""Something done again and again in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `action`, which must not raise, every so many seconds until it is stopped."""

    def __init__(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._seconds, self._action = seconds, action
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for a call that is under way; there is none after it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._action()
