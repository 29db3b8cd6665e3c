"""A repeating call in a thread of its own."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

# How long the end of the process waits for a running call.
_EXIT_SECONDS = 5.0


class RepeatingTimer:
    """Calls `action`, which must not raise, at an interval in seconds, until it is stopped or the process ends."""

    def __init__(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._seconds, self._action = seconds, action
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        # Registered after the libraries that `action` needs, so it runs before them: pyarrow closes its S3 at exit.
        atexit.register(self._end)

    def stop(self) -> None:
        """Stop the timer; waits for a call that is running."""
        self._stopped.set()
        self._thread.join()
        atexit.unregister(self._end)

    def _end(self) -> None:
        self._stopped.set()
        self._thread.join(_EXIT_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._action()
