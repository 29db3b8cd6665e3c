"""The members of a run's ensembles, with what each costs, whether or not they are trained and measured yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, unit_key
from raystage.plans.plan import EnsemblePlan, Plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.units import TOKENS, Unit


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """A member. name, key: of the stage that ends with it. duration, flops: of that stage alone. forward_flops: of an
    answer for one token or sample. eval_loss, accuracy: None until the stage is finished."""

    name: str
    key: str
    duration: int = field(metadata=unit_key())
    flops: int
    forward_flops: int
    eval_loss: float | None
    accuracy: float | None
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)


@dataclass(frozen=True, kw_only=True)
class EnsembleMembers:
    """The members of a stage, the stage itself first. vary: what differs. flops: of all of them with the stages before,
    what they share once; further_flops: of this what the staged run without further members would not cost.
    forward_flops: of an answer of all together. teaches: the stages that learn from all of them."""

    stage: str
    vary: str
    members: tuple[MemberRow, ...]
    flops: int
    further_flops: int
    forward_flops: int
    teaches: tuple[str, ...]


def members_of_ensembles(plan: Plan, records: Mapping[str, StageRecord] | None = None) -> tuple[EnsembleMembers, ...]:
    """Of every stage with several members. Lengths and FLOPs of members that are not finished are those of the plan."""
    return tuple(_of_ensemble(one, plan, records or {}) for one in plan.ensembles)


def _of_ensemble(ensemble: EnsemblePlan, plan: Plan, records: Mapping[str, StageRecord]) -> EnsembleMembers:
    rows = tuple(_row(one, records.get(one.key)) for one in ensemble.members)
    names = {one.name for one in ensemble.members}
    taught = (stage for stage in plan.staged.stages if stage.teacher)
    first = [stage.name for stage in plan.staged.stages].index(ensemble.first.name)
    before = sum(_flops(stage, records.get(stage.key)) for stage in plan.staged.stages[:first])
    return EnsembleMembers(
        stage=ensemble.first.name,
        vary=ensemble.vary,
        members=rows,
        flops=before + sum(row.flops for row in rows),
        further_flops=sum(row.flops for row in rows[1:]),
        forward_flops=sum(row.forward_flops for row in rows),
        teaches=tuple(stage.name for stage in taught if names <= {one.name for one in stage.teacher.all}),
    )


def _flops(stage: StagePlan, record: StageRecord | None) -> int:
    return record.flops if record else stage.flops


def _row(stage: StagePlan, record: StageRecord | None) -> MemberRow:
    end = record.end if record and record.evaluations else None
    return MemberRow(
        name=stage.name,
        key=stage.key,
        duration=record.duration if record else stage.duration,
        flops=_flops(stage, record),
        forward_flops=stage.model_flops(stage.shape.context_length) // 3,
        eval_loss=record.eval_loss if record else None,
        accuracy=end.accuracy if end else None,
        unit=stage.unit,
    )
