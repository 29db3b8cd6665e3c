"""A Train run in a thread of its own."""

from __future__ import annotations

import threading

from ray.train.torch import TorchTrainer

_FIT_THREAD = "raystage-fit"


class Fit:
    """A trainer's `fit`, in a thread of its own, so that this one stays free to listen. error: what it ended with."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self.error: Exception | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._run, name=_FIT_THREAD, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # handed to the thread that listens, which puts it into words
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)


def is_fitting() -> bool:
    """Whether a Train run is still under way in this process: after an interruption, say."""
    return any(thread.name == _FIT_THREAD for thread in threading.enumerate())
