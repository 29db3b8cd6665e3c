"""Signals that ask this process to end: SIGTERM, and SIGHUP from a terminal that closes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Machines that are taken away usually give 30 s or more between the signal and the end.
LEAVE_SECONDS = 25.0
_TERMINAL = (1, 2)  # file descriptors


class ShutdownSignal:
    """Handles the signals that ask this process to end.

    saves_first: set while a Train run is being watched. Then the first signal only sets `received_at` (by
    `time.monotonic`) and `signal`: the workers are to save and leave. A second signal, or one at any other time,
    raises KeyboardInterrupt at once, as Ctrl-C does.

    Python drops a KeyboardInterrupt that is raised where an object is freed (a `__del__`, a callback of a weak
    reference, a reference of Ray), and the process would continue. So `check` raises it again.
    """

    def __init__(self) -> None:
        self.saves_first = False
        self.received_at: float | None = None
        self.signal = signal.SIGTERM
        self._is_interrupted = False
        self._on_terminal: list[int] = []

    def install(self) -> None:
        """Replaces Ray's own handler, which prints a stack trace and does nothing else. Under `nohup` SIGHUP stays
        ignored. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._handle)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._on_terminal = [number for number in _TERMINAL if os.isatty(number)] or self._on_terminal
            signal.signal(signal.SIGHUP, self._handle)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within this, SIGINT counts as SIGTERM does, too; afterwards all signals are handled as before. For a process
        that goes on after a run; outside of the main thread nothing changes."""
        self.received_at, self._is_interrupted = None, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            signal.signal(signal.SIGINT, self._handle)
            self.install()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self.received_at, self._is_interrupted = None, False

    def _handle(self, signum: int, frame: object) -> None:
        if signum == signal.SIGHUP:
            self._leave_terminal()
        if not self.saves_first or self.received_at is not None:
            self._interrupt(signum, frame)
        self.received_at, self.signal = time.monotonic(), signal.Signals(signum)

    def _interrupt(self, signum: int, frame: object) -> None:
        self._is_interrupted = True
        raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """Redirect what was written to the terminal, which is gone: writing to it would fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._on_terminal:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def check(self) -> None:
        """Raises KeyboardInterrupt if one was raised already, or if the time to save is over."""
        if self._is_interrupted:
            raise KeyboardInterrupt
        if self.received_at is not None and time.monotonic() - self.received_at > LEAVE_SECONDS:
            raise KeyboardInterrupt(f"the workers did not save within {LEAVE_SECONDS:g} s")


SHUTDOWN = ShutdownSignal()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started within this context have SIGTERM and SIGHUP blocked for good; this process has them blocked
    until the context ends.

    These signals are often sent to a whole process group, by systemd and SLURM even to all processes of a job. What
    the workers need to save must outlive them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
