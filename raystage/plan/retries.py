"""What was tried of a schedule and not accepted, and what is tried next.

A stage that its gate rejects is answered as its `on_reject` says: by another attempt at it, by more of it, by going
back to an earlier stage, or by giving up. Each answer is the schedule as written with some values laid over it, so
that the stages of an attempt have keys of their own. A driver that starts again comes to the same attempts by itself:
it finds the same records and judges them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raystage.config.conditions import Extend, OnReject, Retry, Rewind
from raystage.config.schedule import Schedule, parse
from raystage.plan.build import Plan, make_plan
from raystage.plan.gates import overridden

ABORT = "abort"


@dataclass(frozen=True)
class Rejection:
    """A finished stage that was not accepted, and the answer.

    index: of the stage in the schedule. action: abort, retry, extend or rewind. number: the how manieth answer of this
    stage's it is, from 1; of: how many it has. target: the stage that is changed. changes: by dotted key of it.
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
    """What to do about stage `index` of the schedule, which was not accepted, after what was `tried` already."""
    stage = schedule.stages[index]
    number = 1 + sum(one.index == index for one in tried)
    name, rule = _rule(stage.on_reject)
    found = {"stage": stage.name, "index": index, "key": key, "reasons": tuple(reasons)}
    if rule is None or number > rule.times:
        return Rejection(**found, action=ABORT, of=number - 1)
    changes = {"until.tokens": f"+{rule.tokens}"} if name == "extend" else rule.set
    target = rule.to if name == "rewind" else stage.name
    return Rejection(
        **found, action=name, number=number, of=rule.times, target=target, changes=tuple(sorted(changes.items()))
    )


def _rule(on_reject: OnReject | None) -> tuple[str, Retry | Extend | Rewind | None]:
    """The one thing that is to be done, by name; nothing where the run is to stop."""
    if on_reject is not None:
        for name in ("retry", "extend", "rewind"):
            rule = getattr(on_reject, name)
            if rule is not None:
                return name, rule
    return ABORT, None


def changed(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Schedule:
    """The schedule after all that was tried: as written, with the latest answer of every stage laid over it.

    plan: that of the schedule as written, which alone says what is answered.
    """
    content = schedule.content()
    latest = {one.index: one for one in tried}
    for one in sorted(latest.values(), key=lambda one: one.index):
        if one.action == "extend":
            more = schedule.stages[one.index].on_reject.extend.tokens * one.number
            tokens = plan.staged.stages[one.index].tokens + more
            content["stages"][one.index]["until"] = {"tokens": tokens}
        else:
            target = [stage.name for stage in schedule.stages].index(one.target)
            content = overridden(content, target, dict(one.changes), one.number)
    for stage in content["stages"]:
        stage.pop("on_reject", None)
    return parse(content)


def replanned(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Plan:
    """The plan of the attempt that comes next. The baseline stays: what it is compared with must not move along.

    Raises InputError where that cannot be planned.
    """
    if not tried:
        return plan
    attempt = make_plan(changed(schedule, plan, tried), plan.name)
    return replace(plan, staged=attempt.staged)
