"""When the next checkpoint and the next point of a training curve are due."""

from __future__ import annotations

import time
from collections.abc import Callable

POINT_EVERY_STEPS = 10
POINTS_PER_STAGE = 400


class SaveClock:
    """The time since the last checkpoint. Only that of the first worker counts."""

    def __init__(self, every_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_seconds, self._clock = every_seconds, clock
        self._saved_at = clock()

    def restart(self) -> None:
        """A checkpoint was written, or is being written."""
        self._saved_at = self._clock()

    @property
    def is_due(self) -> bool:
        return self._clock() - self._saved_at >= self._every_seconds


def point_steps(steps: int) -> int:
    """The steps of a point of the curve of a stage with so many steps."""
    return max(min(POINT_EVERY_STEPS, steps // 20), steps // POINTS_PER_STAGE, 1)


def crossed(every: int, before: int, after: int, start: int = 0) -> bool:
    """Whether a multiple of `every` lies in (before, after], counted from `start`."""
    return (after - start) // every > (before - start) // every
