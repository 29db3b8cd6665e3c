"""Word that this process is to end: SIGTERM, or SIGHUP from a terminal that closes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Between the notice and the end, machines that are taken away give 30 s or more.
LEAVE_SECONDS = 25.0
_TERMINAL = (1, 2)


class ShutdownSignal:
    """While a Train run listens the first one asks its workers to save and leave; a second one, or one that comes at
    another time, interrupts at once as Ctrl-C does."""

    def __init__(self) -> None:
        self.is_heard = False
        self.came_at: float | None = None
        self.signal = signal.SIGTERM
        self._on_terminal: list[int] = []

    def install(self) -> None:
        """Ray's own handler would print a stack trace and leave all as it is. Under `nohup` SIGHUP stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._take)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._on_terminal = [number for number in _TERMINAL if os.isatty(number)] or self._on_terminal
            signal.signal(signal.SIGHUP, self._take)

    def _take(self, signum: int, frame: object) -> None:
        if signum == signal.SIGHUP:
            self._leave_terminal()
        if not self.is_heard or self.came_at is not None:
            raise KeyboardInterrupt
        self.came_at, self.signal = time.monotonic(), signal.Signals(signum)

    def _leave_terminal(self) -> None:
        """It is gone, and whoever still wrote to it would fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._on_terminal:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def check(self) -> None:
        """Raises KeyboardInterrupt where it came too long ago."""
        if self.came_at is not None and time.monotonic() - self.came_at > LEAVE_SECONDS:
            raise KeyboardInterrupt(f"the workers did not save within {LEAVE_SECONDS:g} s")


SHUTDOWN = ShutdownSignal()


@contextmanager
def unheard() -> Iterator[None]:
    """What is started within this does not hear such a word, for good; this process hears it afterwards.

    It is said to a whole process group, by systemd and SLURM even to all that a job has started: what the workers need
    in order to save must outlive it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
