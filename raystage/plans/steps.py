"""The steps of a stage: how large each one is, also while the batch or the context grows.

A ramp doubles a value step by step over a part of the stage. With n doublings over a length T, each smaller value is
used for T / n. The position where a step begins decides its values: a step is never split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from raystage.config.training import Ramp, RampOf, Training
from raystage.errors import InputError
from raystage.units import SAMPLES, TOKENS, Unit

# From a context length to the training FLOPs of one unit of progress in it.
UnitCost = Callable[[int], int]


@dataclass(frozen=True)
class Doubling:
    """A value that begins at `first`, has doubled `times` times after `over`, and then stays."""

    first: int
    times: int = 0
    over: int = 0

    def at(self, position: int) -> int:
        done = self.times if position >= self.over else position * self.times // self.over
        return self.first * 2**done

    def changes(self) -> tuple[int, ...]:
        """The first whole position of each value except the first."""
        return tuple(-(-number * self.over // self.times) for number in range(1, self.times + 1))


@dataclass(frozen=True)
class StepSegment:
    """Equal steps, up to the next segment. start_steps, start: counted from the stage's start."""

    start_steps: int
    start: int
    batch: int
    context_length: int


@dataclass(frozen=True)
class StepSchedule:
    """The steps of a stage of any length, from its start on. The last segment has no end."""

    segments: tuple[StepSegment, ...]

    def at(self, step: float) -> StepSegment:
        """The segment of step number `step` of the stage, from 0."""
        return next(segment for segment in reversed(self.segments) if segment.start_steps <= step)

    def duration(self, steps: float) -> float:
        """How far the first `steps` steps come; a whole number for whole steps."""
        segment = self.at(steps)
        return segment.start + (steps - segment.start_steps) * segment.batch

    def steps_for(self, duration: int) -> int:
        """The fewest whole steps that come as far as `duration`."""
        segment = next((one for one in reversed(self.segments) if one.start < duration), self.segments[0])
        return segment.start_steps + -(-(duration - segment.start) // segment.batch)

    def flops(self, steps: int, cost: UnitCost) -> int:
        """Training FLOPs of the first `steps` steps."""
        return sum(count * one.batch * cost(one.context_length) for one, count in self._counted(steps))

    def steps_for_flops(self, flops: int, cost: UnitCost) -> int:
        """The fewest whole steps that take at least `flops` training FLOPs."""
        segment = next(
            (one for one in reversed(self.segments) if self.flops(one.start_steps, cost) < flops), self.segments[0]
        )
        left = flops - self.flops(segment.start_steps, cost)
        return segment.start_steps + -(-left // (segment.batch * cost(segment.context_length)))

    def _counted(self, steps: int) -> list[tuple[StepSegment, int]]:
        """Each segment that begins within the first `steps` steps, with its number of steps among them."""
        ends = [segment.start_steps for segment in self.segments[1:]] + [steps]
        return [
            (segment, min(end, steps) - segment.start_steps)
            for segment, end in zip(self.segments, ends, strict=True)
            if segment.start_steps < steps
        ]


def doubling_steps(batch: Doubling, context: Doubling) -> StepSchedule:
    """The steps of a stage whose batch (in tokens) and context length double as given."""
    segments: list[StepSegment] = []
    steps = position = 0
    for change in sorted({0, *batch.changes(), *context.changes()}):
        if segments:
            taken = max(0, -(-(change - position) // segments[-1].batch))
            steps, position = steps + taken, position + taken * segments[-1].batch
            if not taken:  # one long step passed two changes
                continue
        segments.append(StepSegment(steps, position, batch.at(position), context.at(position)))
    return StepSchedule(tuple(segments))


# --- of a stage ------------------------------------------------------------------------------


def step_schedule(training: Training, context_length: int) -> StepSchedule:
    """The steps of a stage with this training section, complete with its batch, in this context length (in tokens)."""
    return _ramped(training.ramp, training.global_batch, context_length)


# Cached: the plan of a stage asks twenty times.
@lru_cache(maxsize=4096)
def _ramped(ramp: Ramp | None, batch: int, context_length: int) -> StepSchedule:
    return doubling_steps(
        _doubling(ramp.batch if ramp else None, batch),
        _doubling(ramp.context_length if ramp else None, context_length),
    )


def _doubling(ramp: RampOf | None, value: int) -> Doubling:
    if ramp is None:
        return Doubling(value)
    return Doubling(ramp.start, (value // ramp.start).bit_length() - 1, ramp.over.count)


def sample_length(context_length: int, unit: Unit) -> int:
    """The length of a sample in the unit: a sequence of tokens, or one sample."""
    return context_length if unit == TOKENS else 1


def rate_factor(training: Training, batch: int) -> float:
    """What the learning rate of a step of size `batch` is multiplied by: 1 in a step of the stage's own batch.

    linear: Goyal et al. (1706.02677). sqrt: the noise of Adam's update stays the same (Malladi et al., 2205.10287).
    """
    how = training.ramp.scale_lr if training.ramp else "none"
    share = batch / training.global_batch
    return {"none": 1.0, "linear": share, "sqrt": math.sqrt(share)}[how]


def check_ramp(training: Training, context_length: int, unit: Unit) -> None:
    """Refuse a ramp that does not end at the stage's own values, or whose steps on the way are impossible."""
    if training.ramp is None:
        return
    batch_key = f"global_batch_{unit}"
    given = {name: getattr(training.ramp, name) for name in (batch_key, "context_length")}
    if not any(given.values()):
        raise InputError(f"found nothing; expected {batch_key}, context_length or both", key="training.ramp")
    if unit == SAMPLES and training.ramp.context_length is not None:
        problem = f"found in a stage that counts samples, each as long as the context; expected {batch_key}"
        raise InputError(problem, key="training.ramp.context_length")
    if training.ramp.scale_lr != "none" and training.ramp.batch is None:
        problem = f"found {training.ramp.scale_lr} without a ramp of the batch, which the rate would follow"
        raise InputError(f"{problem}; expected {batch_key} beside it", key="training.ramp.scale_lr")
    values = {batch_key: training.global_batch, "context_length": context_length}
    for name, ramp in given.items():
        if ramp is not None:
            _check_doubles(ramp, values[name], f"training.ramp.{name}")
    for segment in step_schedule(training, context_length).segments:
        sequences, left = divmod(segment.batch, sample_length(segment.context_length, unit))
        step = f"steps of {segment.batch} {unit} in a context of {segment.context_length}"
        if left:
            problem = f"found {step} on the way; expected whole sequences"
            raise InputError(f"{problem}, as with a larger batch or a ramp of context_length", key="training.ramp")
        if sequences < training.workers.most:
            problem = f"found {step} on the way, {sequences} sequence{'s' if sequences > 1 else ''}"
            raise InputError(f"{problem}; expected one for each of {training.workers} workers", key="training.ramp")


def _check_doubles(ramp: RampOf, value: int, key: str) -> None:
    times, left = divmod(value, ramp.start)
    if left or times < 2 or times & (times - 1):
        halves = [value >> number for number in (1, 2, 3) if not value % (1 << number)]
        such = f", such as {' or '.join(map(str, halves))}" if halves else ", and it is odd"
        expected = f"expected the stage's {value} halved once or several times{such}"
        raise InputError(f"found {ramp.start}; {expected}", key=f"{key}.from")


def check_ramp_fits(training: Training, duration: int, unit: Unit) -> None:
    """Refuse a ramp that is longer than its stage of this duration: it must reach the stage's own values."""
    ramp = training.ramp
    for name in Ramp.OVER if ramp else ():
        one = getattr(ramp, name)
        if one is not None and one.over.count > duration:
            problem = f"found {one.over.count} in a stage of {duration} {unit}; expected at most as many"
            raise InputError(problem, key=f"training.ramp.{name}.over.{unit}")
