"""Which job comes after the one that is being trained, and whether it is time to start its workers.

The end of a stage is known from the speed of its last point, or, where it ends by the clock, from its time of training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from raystage.config.conditions import Until
from raystage.plans.stage import StagePlan
from raystage.results.record import TrainPoint
from raystage.storage.jobs import jobs

# Workers take 12 s to start on an idle machine, 30 s on a busy one, and longer where torch is on a network disk. Until
# they are given their job they wait, and nobody else has their places.
AHEAD_SECONDS = 60.0


class Ending:
    """When a job ends, by what is heard of its last stage."""

    def __init__(self, last: StagePlan, clock: Callable[[], float] = time.monotonic) -> None:
        self._last, self._clock = last, clock
        self._ends_at: float | None = None

    def hear(self, kind: str, key: str, what: Any) -> None:
        """A message of the first worker, or of the watchdog."""
        if kind == "trouble" or (kind == "started" and key == self._last.key):
            self._ends_at = None  # the workers start again, from a checkpoint
        elif kind == "trained" and key == self._last.key:
            left = seconds_left(self._last, what)
            self._ends_at = None if left is None else self._clock() + left

    @property
    def is_near(self) -> bool:
        """Whether it is time to start the workers of the next job. Not before something was heard of the last stage's
        training."""
        return self._ends_at is not None and self._ends_at - self._clock() <= AHEAD_SECONDS


def seconds_left(stage: StagePlan, point: TrainPoint) -> float | None:
    """Of the stage's training after this point at most; it may end earlier on what its evaluations show. None if the
    speed is not known."""
    if not point.speed:
        return None
    done = stage.step_schedule.duration(point.steps - stage.start_steps)
    by_steps = (stage.duration - done) / point.speed
    return max(0.0, min([by_steps, *(limit - point.seconds for limit in _clock_limits(stage.until))]))


def _clock_limits(until: Until | None) -> Iterator[float]:
    """The times of training of which each ends the stage by itself."""
    if until is not None:
        if until.seconds is not None:
            yield until.seconds
        for part in until.any or ():
            yield from _clock_limits(part)


def job_after(present: Sequence[StagePlan], pending: Iterable[StagePlan]) -> tuple[StagePlan, ...]:
    """The next job, if other workers than those of the present one train it.

    pending: all stages that are not finished, in their order. There is no next job as long as some of these come first
    that the present workers could train, and do not: another driver has them.
    """
    first, *later = jobs(pending) or ((),)
    keys = {stage.key for stage in present}
    return later[0] if later and first and all(stage.key in keys for stage in first) else ()
