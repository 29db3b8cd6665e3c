"""A run of Ray Train in a thread of its own, and why its workers failed."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer

from raystage.errors import RaystageError
from raystage.train.control_actor import Message
from raystage.units import shortened

_THREAD = "raystage-fit"
_LONGEST_REASON = 300
# How Ray names the node that could not set up the runtime environment of a process.
_SETUP_FAILED = re.compile(r"runtime env failed to be created\.\s*\[Node ([^\]\s]+)\]")


class TrainRun:
    """Calls `trainer.fit()` in a thread of its own, so that the calling thread can do other work meanwhile.

    error: what `fit` has raised.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        self.error: Exception | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # read by the thread that waits for this one
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)


def has_train_run() -> bool:
    """Whether this process still has a Train run, for example after an interruption."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


# --- why workers failed -----------------------------------------------------------------------


class TellsFailures(UserCallback):
    """A callback of a Train run: tells the driver why workers failed, through the run's `ControlActor`.

    Errors of raystage reach the driver by themselves.
    """

    def __init__(self, control: Any) -> None:
        self._control = control

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        failures = {rank: one for rank, one in worker_exceptions.items() if not isinstance(one, RaystageError)}
        if failures:
            reason = shortened(describe_failure(failures), _LONGEST_REASON)
            self._control.put.remote(Message.of("trouble", "", reason))


def describe_failure(failures: Mapping[int, Exception]) -> str:
    """'worker 1 failed: the actor died because its node has died': the first of them, without Ray's wrapping."""
    rank, failure = min(failures.items(), key=lambda one: one[0])
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"worker {rank} failed: {lines[-1] if lines else type(failure).__name__}"


def describe_setup_failure(error: Exception | None) -> str | None:
    """'node 10.77.0.3 cannot set up the job's files and packages: OSError: No space left', or None for other errors."""
    found = _SETUP_FAILED.search(str(error))
    if not found:
        return None
    reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    return f"node {found[1]} cannot set up the job's files and packages: {shortened(reason, _LONGEST_REASON)}"
