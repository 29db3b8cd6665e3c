"""Which checkpoints a stage is averaged over at its end, and what each of them counts.

Warmup-Stable-Merge (2507.17634): an average of checkpoints under a constant rate stands for a decay of the rate. With
weights c_0 .. c_n of the checkpoints, the updates between checkpoint j - 1 and checkpoint j count w_j = c_j + ... + c_n
times in the average. So a decay of the rate to 0, with the mean w_j of its shape between two checkpoints, gives the
weights c_0 = 1 - w_1, c_j = w_j - w_(j+1) and c_n = w_n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from raystage.plans.steps import StepSchedule

# By shape of a decay: what it has taken from the rate, summed up to a share of its length. The derivatives are
# `learning_rate.FORMS`.
_TAKEN: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: done**2 / 2,
    "cosine": lambda done: done / 2 - math.sin(math.pi * done) / (2 * math.pi),
    "1-sqrt": lambda done: 2 / 3 * done**1.5,
}


@dataclass(frozen=True)
class Averaging:
    """An average over the last checkpoints of a stage. every: their distance, in the stage's unit. decay_shape: of the
    decay that it stands for, None where all checkpoints count the same."""

    last: int
    every: int
    decay_shape: str | None = None

    def facts(self) -> dict[str, object]:
        """As plain values, for the key."""
        shape = {"decay_shape": self.decay_shape} if self.decay_shape else {}
        return {"last": self.last, "every": self.every, **shape}

    def ends(self, steps: int, schedule: StepSchedule) -> tuple[int, ...]:
        """The steps after which the checkpoints are saved, in a stage that ends after `steps` steps: at every multiple
        of the distance, and at the end. There may be fewer than `last`."""
        most = int(schedule.duration(steps)) // self.every
        numbers = range(most, max(0, most - self.last), -1)
        found = {steps, *(schedule.steps_for(number * self.every) for number in numbers)}
        return tuple(sorted(found)[-self.last :])

    def saves_after(self, steps: int, schedule: StepSchedule) -> bool:
        """Whether so many steps are the first that reach a multiple of the distance."""
        number = int(schedule.duration(steps)) // self.every
        return number > 0 and schedule.steps_for(number * self.every) == steps

    def weights(self, positions: Sequence[int]) -> tuple[float, ...]:
        """What the checkpoints at these positions count, the earliest first. They add up to 1."""
        return weights_of(positions, self.decay_shape)


def weights_of(positions: Sequence[float], decay_shape: str | None) -> tuple[float, ...]:
    """The weights of checkpoints at increasing positions. decay_shape: None for weights that are all the same."""
    if decay_shape is None or len(positions) < 2:
        return (1 / len(positions),) * len(positions)
    first, length, taken = positions[0], positions[-1] - positions[0], _TAKEN[decay_shape]
    shares = [(position - first) / length for position in positions]
    kept = [1 - (taken(end) - taken(start)) / (end - start) for start, end in pairwise(shares)]
    return tuple(before - after for before, after in pairwise((1.0, *kept, 0.0)))
