"""Gates: what a schedule does about a stage that is not accepted.

`results.acceptance.judge` says whether a finished stage is accepted. Where it is not, `answer` chooses what `on_reject`
says: retry the stage, extend it, go back to an earlier stage, or stop. Each answer is the schedule as written with some
values changed, so the stages of a retry have keys of their own. A driver that starts again reads the same records,
judges them alike, and so comes to the same retry.

`check_gates` and `planned_retries` refuse, before anything is trained, gates that no stage can pass and retries that
are no valid schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from raystage.config import yaml_file
from raystage.config.conditions import Extend, OnReject, Retry, Rewind, parse_relative
from raystage.config.schedule import Schedule, parse
from raystage.config.section import Section
from raystage.config.stage import NOTHING_REQUIRED, Stage
from raystage.config.types import Workers
from raystage.errors import InputError
from raystage.plans.open_ends import is_open
from raystage.plans.plan import Plan
from raystage.units import SAMPLES, TOKENS, Unit, shown

MOST_PLANNED_STAGES = 5_000  # of all retries together, each with all stages of the run

ABORT = "abort"


# --- what is done about a rejected stage ------------------------------------------------------


@dataclass(frozen=True)
class Rejection:
    """A finished stage that was not accepted, and the answer.

    index: of the stage in the schedule. action: abort, retry, extend or rewind. number: which answer to this stage it
    is, from 1; of: how many there can be. target: the stage that is changed. changes: by dotted key of that stage.
    """

    stage: str
    index: int
    key: str
    reasons: tuple[str, ...]
    action: str
    number: int = 0
    of: int = 0
    target: str = ""
    changes: tuple[tuple[str, Any], ...] = ()

    def sentence(self) -> str:
        """'not accepted (eval_loss_below: ...): retry 1 of 2 with training.optimizer.lr *0.5'."""
        found = f"not accepted ({'; '.join(self.reasons)})"
        if self.action == ABORT:
            tried = f" after {self.of} further attempt{'s' if self.of > 1 else ''}" if self.of else ""
            return f"{found}: the run stops here{tried}"
        where = f" to {self.target}" if self.action == "rewind" else ""
        what = ", ".join(f"{key} {value}" for key, value in self.changes)
        return f"{found}: {self.action}{where} {self.number} of {self.of}" + (f" with {what}" if what else "")


def answer(schedule: Schedule, index: int, key: str, reasons: Sequence[str], tried: Sequence[Rejection]) -> Rejection:
    """What to do about stage `index` of the schedule, which was not accepted, after the answers `tried` before."""
    stage = schedule.stages[index]
    number = 1 + sum(one.index == index for one in tried)
    name, rule = _rule(stage.on_reject)
    found = {"stage": stage.name, "index": index, "key": key, "reasons": tuple(reasons)}
    if rule is None or number > rule.times:
        return Rejection(**found, action=ABORT, of=number - 1)
    changes = {f"until.{_unit(rule)}": f"+{rule.count}"} if name == "extend" else rule.set
    target = rule.to if name == "rewind" else stage.name
    return Rejection(
        **found, action=name, number=number, of=rule.times, target=target, changes=tuple(sorted(changes.items()))
    )


def _rule(on_reject: OnReject | None) -> tuple[str, Retry | Extend | Rewind | None]:
    """The one rule that `on_reject` gives, with its name; None where the run stops."""
    for name in ("retry", "extend", "rewind") if on_reject is not None else ():
        rule = getattr(on_reject, name)
        if rule is not None:
            return name, rule
    return ABORT, None


def _unit(rule: Extend) -> Unit:
    return TOKENS if rule.samples is None else SAMPLES


def changed(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Schedule:
    """The schedule after everything that was tried: as written, with the latest answer to each stage applied.

    plan: of the schedule as written; `extend` adds to the lengths in it. Gates are left out of the result: the schedule
    as written alone decides what is answered.
    """
    content = schedule.content()
    latest = {one.index: one for one in tried}
    for one in sorted(latest.values(), key=lambda one: one.index):
        if one.action == "extend":
            stage = plan.staged.stages[one.index]
            more = schedule.stages[one.index].on_reject.extend.count * one.number
            content["stages"][one.index]["until"] = {stage.unit: stage.duration + more}
        else:
            target = [stage.name for stage in schedule.stages].index(one.target)
            content = overridden(content, target, dict(one.changes), one.number)
    for stage in content["stages"]:
        stage.pop("on_reject", None)
    return parse(content)


# --- retries, known before the run ------------------------------------------------------------


@dataclass(frozen=True)
class PlannedRetry:
    """A schedule that a stage's on_reject may lead to. number: from 1. key: the key of the schedule that changes it."""

    key: str
    number: int
    schedule: Schedule

    def refused(self, error: InputError) -> InputError:
        """The error of a retry that cannot be planned, told at the key that asks for it."""
        return _refused(self.key, self.number, error)


def planned_retries(schedule: Schedule) -> Iterator[PlannedRetry]:
    """Every schedule that the `on_reject` of one stage may lead to by its `set`.

    Raises InputError where a retry is no valid schedule, or would train again exactly what was rejected.
    """
    if all(stage.on_reject is None for stage in schedule.stages):
        return  # the rule in a sweep, of which every trial comes here
    content = schedule.content()
    for index, stage in enumerate(schedule.stages):
        for name, target in _targets(schedule, index, stage.on_reject):
            rule: Retry | Rewind = getattr(stage.on_reject, name)
            key, before = f"stages[{index}].on_reject.{name}.set", _in_full(schedule, target).model_dump()
            for number in range(1, rule.times + 1):
                try:
                    changed_schedule = parse(overridden(content, target, rule.set, number))
                except InputError as error:
                    raise _refused(key, number, error) from None
                after = _in_full(changed_schedule, target).model_dump()
                if after == before:
                    raise InputError(f"attempt {number} would repeat the one before it; expected a change", key=key)
                before = after
                yield PlannedRetry(key, number, changed_schedule)


def overridden(content: dict, stage_index: int, overrides: Mapping[str, object], attempt: int) -> dict:
    """A schedule's plain content with `overrides` applied to a stage, for attempt number `attempt`, from 1.

    overrides: by dotted key of the stage. A relative value ("*0.5", "+1") is applied `attempt` times to the value in
    force there: the stage's own, else the file's, else the default. `content` is not changed. Raises InputError, naming
    the stage's key, where the content is no schedule, a key leads nowhere or a relative value finds no number.
    """
    result = copy.deepcopy(content)
    for key, value in overrides.items():
        label, path = f"stages[{stage_index}].{key}", yaml_file.parse_path(key)
        relative = parse_relative(value)
        if relative is not None:
            in_force = _value_in_force(parse(content), stage_index, path)
            if isinstance(in_force, bool) or not isinstance(in_force, int | float):
                problem = f"found {shown(value)} for {shown(in_force)}, which is no number; expected a plain value"
                raise InputError(problem, key=label)
            value = _applied(in_force, *relative, attempt)
        yaml_file.set_value(result, ["stages", stage_index, *path], value, label)
    return result


def _value_in_force(schedule: Schedule, index: int, path: Sequence[str | int]) -> object:
    """The value at a path of a stage, from the stage, the file or the defaults; None where there is none."""
    place: object = _in_full(schedule, index)
    for step in path:
        if isinstance(place, Section):
            place = getattr(place, step) if step in type(place).model_fields else None
        elif isinstance(place, dict):
            place = place.get(step)
        else:
            place = place[step] if isinstance(place, tuple) and isinstance(step, int) and step < len(place) else None
    return place.most if isinstance(place, Workers) else place


def _in_full(schedule: Schedule, index: int) -> Stage:
    stage = schedule.resolved(index)
    return stage if stage.seed is not None else stage.model_copy(update={"seed": schedule.seed})


def _applied(number: float, sign: str, amount: Decimal, times: int) -> float:
    """Computed in decimals, so that 0.002 * 0.1 is 0.0002 in every key. An int stays an int if it can."""
    exact = Decimal(str(number))
    result = exact * amount**times if sign == "*" else exact + amount * times
    return int(result) if isinstance(number, int) and result == result.to_integral_value() else float(result)


def _targets(schedule: Schedule, index: int, on_reject: OnReject | None) -> list[tuple[str, int]]:
    """What changes a stage when stage `index` is rejected ("retry" or "rewind"), and the index of the changed stage."""
    if on_reject is not None and on_reject.retry is not None:
        return [("retry", index)]
    if on_reject is not None and on_reject.rewind is not None:
        return [("rewind", [stage.name for stage in schedule.stages].index(on_reject.rewind.to))]
    return []


def _refused(key: str, number: int, error: InputError) -> InputError:
    return InputError(f"attempt {number} cannot be planned: {error}", key=key)


# --- checks -----------------------------------------------------------------------------------


def check_gates(schedule: Schedule) -> None:
    """Refuse gates that no stage can pass, and rewinds that lead nowhere. Raises InputError."""
    _check_number_of_retries(schedule)
    for index, stage in enumerate(schedule.stages):
        try:
            _check_stage(stage, index, [earlier.name for earlier in schedule.stages[:index]])
        except InputError as error:
            raise InputError(error.problem, key=f"stages[{index}].{error.key}") from None


def _check_number_of_retries(schedule: Schedule) -> None:
    """Refuse more retries than can be planned before the run starts, each with all of its stages."""
    count = 0
    for index, stage in enumerate(schedule.stages):
        rule = stage.on_reject and (stage.on_reject.retry or stage.on_reject.rewind)
        count += rule.times if rule else 0
        if count * len(schedule.stages) > MOST_PLANNED_STAGES:
            most = MOST_PLANNED_STAGES // len(schedule.stages)
            problem = f"found {count} attempts up to here, each of which is planned; expected at most {most} in all"
            raise InputError(problem, key=f"stages[{index}].on_reject")


def _check_stage(stage: Stage, index: int, earlier: list[str]) -> None:
    requires = stage.grow is not None and stage.grow.require != NOTHING_REQUIRED
    if stage.on_reject is not None and stage.accept is None and not requires:
        raise InputError("found without accept or grow.require; expected one beside it, or none", key="on_reject")
    if stage.on_reject is not None and stage.on_reject.extend is not None and is_open(stage.until):
        problem = f"found for a stage that ends on {', '.join(stage.until.given)}, which more training would not move"
        raise InputError(f"{problem}; expected retry or rewind", key="on_reject.extend")
    asked = stage.accept.of_growth if stage.accept is not None else []
    if asked and (stage.grow is None or index == 0):
        where = "a stage without grow, which" if stage.grow is None else "the first stage, whose growth from init"
        raise InputError(f"found in {where} has no certificate; remove it", key=f"accept.{asked[0]}")
    rewind = stage.on_reject.rewind if stage.on_reject is not None else None
    if rewind is not None and rewind.to not in earlier:
        expected = f"an earlier stage: {', '.join(earlier)}" if earlier else "retry: the first stage has none before it"
        raise InputError(f"found {rewind.to!r}; expected {expected}", key="on_reject.rewind.to")
