"""A worker's heartbeats, and the driver's request to leave.

Every worker says what it does: about once a second while it steps; at once when it begins something else that takes
long. Each heartbeat names the time after which a missing next one means that the worker hangs. About once a second all
workers learn, at the same step, whether the driver wants them to save and leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import distributed

from raystage.train.collectives import broadcast_object
from raystage.train.control_actor import PATIENCE_BETWEEN_STEPS

HEARTBEAT_SECONDS = 1.0
MOST_STEPS_UNASKED = 1000

STEPPING = "training"

# (what the worker does, patience in seconds)
SendHeartbeat = Callable[[str, float], None]


def _send_nothing(doing: str, patience_seconds: float) -> None:
    """For workers without a driver."""


class AfterStep(NamedTuple):
    """What all workers are to do after a step. leave: save and leave. save: save, since the time for it has come."""

    leave: bool
    save: bool


NOTHING_ASKED = AfterStep(leave=False, save=False)


class Heartbeat:
    """send: must not block. ask_to_leave: called on the first worker only; whether the workers are to leave."""

    def __init__(
        self,
        send: SendHeartbeat = _send_nothing,
        ask_to_leave: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._ask_to_leave, self._clock = send, ask_to_leave, clock
        self._hang_seconds = 0.0
        self._doing, self._sent_at = "", -HEARTBEAT_SECONDS
        self._steps_left, self._stride, self._asked_at = 1, 1, clock()

    def enter(self, doing: str, hang_seconds: float) -> None:
        """A stage begins, whose steps must come at least every `hang_seconds`."""
        self._hang_seconds = hang_seconds
        self.does(doing)

    def does(self, doing: str) -> None:
        """Something other than steps begins."""
        self._beat(doing, PATIENCE_BETWEEN_STEPS * self._hang_seconds)

    def goes_on(self) -> None:
        """What was begun last goes on."""
        if self._clock() - self._sent_at >= HEARTBEAT_SECONDS:
            self.does(self._doing)

    def stepped(self, is_save_due: bool = False) -> AfterStep:
        """A step is done. All workers call this. Returns the same on all of them. is_save_due: what the first worker
        finds counts."""
        if self._doing != STEPPING or self._clock() - self._sent_at >= HEARTBEAT_SECONDS:
            self._beat(STEPPING, self._hang_seconds)
        self._steps_left -= 1
        return self._ask_together(is_save_due) if self._steps_left == 0 else NOTHING_ASKED

    def _ask_together(self, is_save_due: bool) -> AfterStep:
        """The first worker asks for all, and decides after how many steps it asks again: those of about a second."""
        now = self._clock()
        step_seconds = (now - self._asked_at) / self._stride
        self._asked_at = now
        steps = int(min(max(HEARTBEAT_SECONDS / max(step_seconds, 1e-9), 1), MOST_STEPS_UNASKED))
        is_leaving = self._ask_to_leave() if distributed.get_rank() == 0 else False
        asked, self._stride = broadcast_object((AfterStep(is_leaving, is_save_due), steps))
        self._steps_left = self._stride
        return asked

    def _beat(self, doing: str, patience_seconds: float) -> None:
        self._doing, self._sent_at = doing, self._clock()
        self._send(doing, patience_seconds)
