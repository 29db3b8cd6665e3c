"""Whether a finished stage is gone on with, and what another attempt at it changes.

`judge` holds a stage's record against what the schedule's `accept` asks. Whoever carries a run out does what
`on_reject` says; `overridden` gives the schedule of each attempt. `check_gates` and `attempts` refuse, before anything
is trained, gates that can never open and attempts that make no schedule.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Protocol

from raystage.config import yaml_file
from raystage.config.conditions import Accept, Bounds, OnReject, Overfitting, Retry, Rewind, parse_relative
from raystage.config.schedule import NOTHING_REQUIRED, Schedule, Stage, parse
from raystage.config.section import Section
from raystage.errors import InputError
from raystage.plan.length import is_open
from raystage.units import shown

MOST_PLANNED_STAGES = 5_000  # of all attempts together, each with all of the run's stages

OF_GROWTH = ("loss_increase_below", "max_logit_difference_below", "gradient_error_below", "twin_distance_above")


class Point(Protocol):
    """A point of a curve: tokens from the run's start, loss in nats per token."""

    @property
    def tokens(self) -> int: ...

    @property
    def loss(self) -> float: ...


class MeasuredPoint(Point, Protocol):
    """An evaluation. accuracy: the share of tokens said right, None where nobody counted."""

    @property
    def accuracy(self) -> float | None: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


class MeasuredGrowth(Protocol):
    """A growth's certificate, as far as gates look at it; `record.Certificate` says what the figures are."""

    @property
    def loss_increase(self) -> float: ...

    @property
    def max_logit_difference(self) -> float: ...

    @property
    def gradient_error(self) -> float | None: ...

    @property
    def twin_distance(self) -> float | None: ...


class Grown(Protocol):
    @property
    def certificate(self) -> MeasuredGrowth: ...


class Finished(Protocol):
    """A stage's record, as far as gates look at it. evaluations: the first on entering the stage, the last at its end;
    train: the mean training loss since the point before."""

    @property
    def eval_loss(self) -> float: ...

    @property
    def evaluations(self) -> Sequence[MeasuredPoint]: ...

    @property
    def train(self) -> Sequence[Point]: ...

    @property
    def growth(self) -> Grown | None: ...


# --- the judgement ----------------------------------------------------------------------------


def judge(accept: Accept, record: Finished) -> tuple[str, ...]:
    """Why a finished stage is rejected, a sentence for each condition that does not hold; none where it is accepted.

    What was not measured does not hold, nor does a figure that is no number.
    """
    growth = record.growth.certificate if record.growth else None
    accuracy = record.evaluations[-1].accuracy if record.evaluations else None
    reasons = [
        _below("eval_loss_below", accept.eval_loss_below, record.eval_loss, ""),
        _above("accuracy_above", accept.accuracy_above, accuracy, "it was not measured"),
        *(_judge_growth(accept, growth) if growth else _without_growth(accept)),
        _overfits(accept.overfitting, record),
        *_judge_metrics(accept.metrics or {}, record.evaluations[-1].metrics if record.evaluations else {}),
    ]
    return tuple(reason for reason in reasons if reason)


def _judge_metrics(asked: Mapping[str, Bounds], found: Mapping[str, float]) -> Iterator[str | None]:
    """Of a stage that was trained before its schedule had the metric, nothing was measured."""
    why_none = "it was not measured"
    for name, bounds in asked.items():
        yield _above(f"metrics.{name}.above", bounds.above, found.get(name), why_none)
        yield _below(f"metrics.{name}.below", bounds.below, found.get(name), why_none)


def _judge_growth(accept: Accept, growth: MeasuredGrowth) -> list[str | None]:
    no_copies = "the growth made no copies, or the stage ended before they were compared"
    return [
        _below("loss_increase_below", accept.loss_increase_below, growth.loss_increase, ""),
        _below("max_logit_difference_below", accept.max_logit_difference_below, growth.max_logit_difference, ""),
        _below("gradient_error_below", accept.gradient_error_below, growth.gradient_error,
               "the operator predicts no gradient exactly"),
        _above("twin_distance_above", accept.twin_distance_above, growth.twin_distance, no_copies),
    ]  # fmt: skip


def _without_growth(accept: Accept) -> list[str]:
    return [
        f"{name}: found none, the stage has no certificate of a growth" for name in OF_GROWTH if name in accept.given
    ]


def _below(name: str, limit: float | None, found: float | None, why_none: str) -> str | None:
    if limit is None or (found is not None and found < limit):  # NaN is below nothing
        return None
    return f"{name}: expected less than {limit:g}, found {_figure(found, why_none)}"


def _above(name: str, limit: float | None, found: float | None, why_none: str) -> str | None:
    if limit is None or (found is not None and found > limit):
        return None
    return f"{name}: expected more than {limit:g}, found {_figure(found, why_none)}"


def _figure(found: float | None, why_none: str) -> str:
    return f"none ({why_none})" if found is None else f"{found:.5g}"


def _overfits(rule: Overfitting | None, record: Finished) -> str | None:
    """Whether over the last k evaluations the held-out loss rose each time, and the training loss fell each time.

    The training loss of an evaluation is its mean over the tokens since the one before; so the first of a stage has
    none, and k falls take k + 2 evaluations.
    """
    if rule is None:
        return None
    times, held_out = rule.evaluations, record.evaluations[-rule.evaluations - 2 :]
    if len(held_out) < times + 2:
        problem = f"expected {times + 2} evaluations or more to tell from, found {len(held_out)}"
        return f"overfitting: {problem}; evaluate more often, or remove it"
    losses = [point.loss for point in held_out[1:]]
    borders, start = [point.tokens for point in held_out], record.evaluations[0].tokens
    training = [_mean_between(record.train, start, *pair) for pair in pairwise(borders)]
    if not (_rises(losses) and _rises(training[::-1])):
        return None
    return (
        f"overfitting: over the last {times} evaluations the held-out loss rose each time, from {losses[0]:.4f} to "
        f"{losses[-1]:.4f}, while the training loss fell, from {training[0]:.4f} to {training[-1]:.4f}"
    )


def _mean_between(train: Sequence[Point], start: int, left: int, right: int) -> float:
    """The training loss between two positions of a stage that began at `start`; NaN where there are no points.

    Every token weighs the same. A point that ends in there lies in there: training makes one at every evaluation.
    """
    begins = [start, *(point.tokens for point in train)]
    inside = [
        (point.tokens - begin, point.loss)
        for begin, point in zip(begins, train, strict=False)
        if left < point.tokens <= right
    ]
    tokens = sum(weight for weight, _ in inside)
    return sum(weight * loss for weight, loss in inside) / tokens if tokens else math.nan


def _rises(values: Sequence[float]) -> bool:
    return all(after > before for before, after in pairwise(values))


# --- further attempts -------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A schedule that on_reject may come to: its number, from 1, and the key that says what it changes."""

    key: str
    number: int
    schedule: Schedule

    def refused(self, error: InputError) -> InputError:
        return _refused(self.key, self.number, error)


def overridden(content: dict, stage_index: int, overrides: Mapping[str, object], attempt: int) -> dict:
    """A schedule's plain content with `overrides` laid over a stage, for the attempt of that number, from 1.

    overrides: by dotted key of the stage; a relative value ("*0.5", "+1") is applied `attempt` times to what counts
    there: the stage's own, else the file's, else the default. `content` stays as it is. Raises InputError, naming the
    stage's key, where the content is no schedule, a key leads nowhere or a relative value finds no number.
    """
    changed = copy.deepcopy(content)
    for key, value in overrides.items():
        label, path = f"stages[{stage_index}].{key}", yaml_file.parse_path(key)
        relative = parse_relative(value)
        if relative is not None:
            counting = _counting(parse(content), stage_index, path)
            if isinstance(counting, bool) or not isinstance(counting, int | float):
                problem = f"found {shown(value)} for {shown(counting)}; expected a plain value, as that is no number"
                raise InputError(problem, key=label)
            value = _applied(counting, *relative, attempt)
        yaml_file.set_value(changed, ["stages", stage_index, *path], value, label)
    return changed


def _counting(schedule: Schedule, index: int, path: Sequence[str | int]) -> object:
    """The value at a path of a stage with the file's and the defaults under it; None where there is none."""
    place: object = _in_full(schedule, index)
    for step in path:
        if isinstance(place, Section):
            place = getattr(place, step) if step in type(place).model_fields else None
        elif isinstance(place, dict):
            place = place.get(step)
        else:
            place = place[step] if isinstance(place, tuple) and isinstance(step, int) and step < len(place) else None
    return place


def _in_full(schedule: Schedule, index: int) -> Stage:
    stage = schedule.resolved(index)
    return stage if stage.seed is not None else stage.model_copy(update={"seed": schedule.seed})


def _applied(number: float, sign: str, amount: Decimal, times: int) -> float:
    """In decimals, so that 0.002 * 0.1 is 0.0002 in every attempt's key. What was whole stays so where it can."""
    exact = Decimal(str(number))
    result = exact * amount**times if sign == "*" else exact + amount * times
    return int(result) if isinstance(number, int) and result == result.to_integral_value() else float(result)


def attempts(schedule: Schedule) -> Iterator[Attempt]:
    """Every schedule that a single stage's `on_reject` may come to by its `set`.

    Raises InputError where one is none, or would train once more what was rejected.
    """
    content = schedule.content()
    for index, stage in enumerate(schedule.stages):
        for name, target in _targets(schedule, index, stage.on_reject):
            again: Retry | Rewind = getattr(stage.on_reject, name)
            key, before = f"stages[{index}].on_reject.{name}.set", _in_full(schedule, target).model_dump()
            for number in range(1, again.times + 1):
                try:
                    changed = parse(overridden(content, target, again.set, number))
                except InputError as error:
                    raise _refused(key, number, error) from None
                after = _in_full(changed, target).model_dump()
                if after == before:
                    raise InputError(f"attempt {number} would be the one before it again; expected a change", key=key)
                before = after
                yield Attempt(key, number, changed)


def _targets(schedule: Schedule, index: int, on_reject: OnReject | None) -> list[tuple[str, int]]:
    """What changes a stage when stage `index` is rejected, and which stage."""
    if on_reject is not None and on_reject.retry is not None:
        return [("retry", index)]
    if on_reject is not None and on_reject.rewind is not None:
        return [("rewind", [stage.name for stage in schedule.stages].index(on_reject.rewind.to))]
    return []


def _check_attempts(schedule: Schedule) -> None:
    """Refuse more attempts than can be planned before the run starts, every one with all of its stages."""
    count = 0
    for index, stage in enumerate(schedule.stages):
        again = stage.on_reject and (stage.on_reject.retry or stage.on_reject.rewind)
        count += again.times if again else 0
        if count * len(schedule.stages) > MOST_PLANNED_STAGES:
            most = MOST_PLANNED_STAGES // len(schedule.stages)
            problem = f"found {count} attempts up to here, each of which is planned; expected at most {most} in all"
            raise InputError(problem, key=f"stages[{index}].on_reject")


def _refused(key: str, number: int, error: InputError) -> InputError:
    return InputError(f"attempt {number} cannot be planned: {error}", key=key)


def check_gates(schedule: Schedule) -> None:
    """Refuse what no stage can pass, and a way back that leads nowhere. Raises InputError."""
    _check_attempts(schedule)
    for index, stage in enumerate(schedule.stages):
        try:
            _check_stage(stage, index, [earlier.name for earlier in schedule.stages[:index]])
        except InputError as error:
            raise InputError(error.problem, key=f"stages[{index}].{error.key}") from None


def _check_stage(stage: Stage, index: int, earlier: list[str]) -> None:
    requires = stage.grow is not None and stage.grow.require != NOTHING_REQUIRED
    if stage.on_reject is not None and stage.accept is None and not requires:
        raise InputError("found without accept or grow.require; expected one beside it, or none", key="on_reject")
    if stage.on_reject is not None and stage.on_reject.extend is not None and is_open(stage.until):
        problem = f"found for a stage that ends on {', '.join(stage.until.given)}, which more tokens would not move"
        raise InputError(f"{problem}; expected retry or rewind", key="on_reject.extend")
    asked = [name for name in OF_GROWTH if stage.accept is not None and name in stage.accept.given]
    if asked and (stage.grow is None or index == 0):
        where = "a stage without grow, which" if stage.grow is None else "the first stage, whose growth from init"
        raise InputError(f"found in {where} has no certificate; remove it", key=f"accept.{asked[0]}")
    rewind = stage.on_reject.rewind if stage.on_reject is not None else None
    if rewind is not None and rewind.to not in earlier:
        expected = f"an earlier stage: {', '.join(earlier)}" if earlier else "retry: the first stage has none before it"
        raise InputError(f"found {rewind.to!r}; expected {expected}", key="on_reject.rewind.to")
