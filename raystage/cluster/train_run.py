"""A run of Ray Train in a thread of its own."""

from __future__ import annotations

import threading

from ray.train.torch import TorchTrainer

_THREAD = "raystage-fit"


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
