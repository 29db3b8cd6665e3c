"""Calls that are repeated: in a thread of their own, or when asked for but seldom."""

from __future__ import annotations

import atexit
import threading
import time
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


class Seldom:
    """Carries out `action` when asked, but so seldom that it takes at most `share` of the time; then at a later `look`.

    clock: in seconds, and never set back.
    """

    def __init__(self, action: Callable[[], object], share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._action, self._share, self._clock = action, share, clock
        self._is_asked, self._from = False, clock()

    def ask(self, at_once: bool = False) -> None:
        """at_once: however long it took the last time."""
        self._is_asked = True
        self._from = self._clock() if at_once else self._from
        self.look()

    def look(self) -> None:
        """Carry the action out if it was asked for since it last was, and enough time has passed."""
        began = self._clock()
        if self._is_asked and began >= self._from:
            self._is_asked = False
            self._action()
            self._from = began + (self._clock() - began) / self._share
