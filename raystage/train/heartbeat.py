"""A worker's signs of life, and the driver's word that comes back along the same line.

Every worker says what it is at: after a step, about once a second; before anything else that takes long, at once.
Each sign comes with the time after which a missing next one means that the worker hangs. About once a second all
workers learn, at the same step, whether the driver wants them to save and leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import distributed

from raystage.train.collectives import broadcast_object

SIGN_SECONDS = 1.0
# Building an engine, evaluating, saving: these take as long as they take, and say nothing meanwhile.
PATIENCE_BETWEEN_STEPS = 10
MOST_STEPS_UNASKED = 1000

STEPPING = "training"

Sign = Callable[[str, float], None]


def _tell_nobody(doing: str, patience_seconds: float) -> None:
    """Where no driver listens."""


class Heartbeat:
    """sign(doing, patience_seconds) must not block. `ask` is called on the first worker only: whether to leave."""

    def __init__(
        self,
        sign: Sign = _tell_nobody,
        ask: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sign, self._ask, self._clock = sign, ask, clock
        self._hang_seconds = 0.0
        self._doing, self._said_at = "", -SIGN_SECONDS
        self._steps_left, self._stride, self._asked_at = 1, 1, clock()

    def enter(self, doing: str, hang_seconds: float) -> None:
        """A stage begins, whose steps must come at least every `hang_seconds`."""
        self._hang_seconds = hang_seconds
        self.does(doing)

    def does(self, doing: str) -> None:
        """Something other than steps begins."""
        self._say(doing, PATIENCE_BETWEEN_STEPS * self._hang_seconds)

    def stepped(self) -> bool:
        """A step is done. Whether to save and leave now: the same answer on all workers, which all call this."""
        if self._doing != STEPPING or self._clock() - self._said_at >= SIGN_SECONDS:
            self._say(STEPPING, self._hang_seconds)
        self._steps_left -= 1
        return self._steps_left == 0 and self._ask_together()

    def _ask_together(self) -> bool:
        """One worker asks for all, and says after how many steps it will again: as many as take about a second."""
        now = self._clock()
        step_seconds = (now - self._asked_at) / self._stride
        self._asked_at = now
        steps = int(min(max(SIGN_SECONDS / max(step_seconds, 1e-9), 1), MOST_STEPS_UNASKED))
        leaves, self._stride = broadcast_object((self._ask() if distributed.get_rank() == 0 else False, steps))
        self._steps_left = self._stride
        return leaves

    def _say(self, doing: str, patience_seconds: float) -> None:
        self._doing, self._said_at = doing, self._clock()
        self._sign(doing, patience_seconds)
