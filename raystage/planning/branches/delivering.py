"""The models that stages deliver: for each a run that ends with it, as a branch of the staged run where it decays.

A constant rate serves every length: a decay from any point of it gives a finished model (Haegele et al., 2405.18392).
"""

from __future__ import annotations

from collections.abc import Sequence

from raystage.config.stages.deliver import Deliver
from raystage.config.training import LrSchedule
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.chain import plan_stage
from raystage.planning.draft import StageDraft
from raystage.plans import learning_rate
from raystage.plans.freezing import Freezing
from raystage.plans.plan import Delivery, RunPlan
from raystage.plans.stage import StagePlan


def plan_deliveries(drafts: Sequence[StageDraft], staged: RunPlan) -> tuple[Delivery, ...]:
    """Of each stage with `deliver` the model and its run. Raises InputError where a decay has no name of its own."""
    names = {draft.name for draft in drafts}
    found = []
    for index, draft in enumerate(drafts):
        if draft.stage.deliver is None:
            continue
        chain, name = staged.stages[: index + 1], f"{draft.name}-decay"
        decay = _decay(draft, draft.stage.deliver, name, chain)
        if decay is not None and name in names:
            problem = f"found beside a stage {name!r}, which is the name of its decay; expected another name there"
            raise InputError(problem, key=f"stages[{index}].deliver")
        if decay is not None and draft.adapter is not None:
            problem = "found beside an adapter, which is merged at the stage's end, where its rate has not decayed"
            expected = "expected a rate that falls within the stage, or deliver: {decay: 0}"
            raise InputError(f"{problem}; {expected}", key=f"stages[{index}].deliver")
        found.append(Delivery(draft.name, RunPlan(f"deliver-{draft.name}", (*chain, *((decay,) if decay else ())))))
    return tuple(found)


def _decay(draft: StageDraft, written: Deliver, name: str, chain: Sequence[StagePlan]) -> StagePlan | None:
    """The stage after `chain` that only decays the rate; None where its last stage has a finished model already."""
    before = chain[-1]
    amount = round(written.decay * before.end) if written.decay <= 1 else int(written.decay)
    lr = learning_rate.rate_at(before.rate, before.end)
    if not amount or not lr or learning_rate.has_decayed(before.rate, before.end):
        return None
    training = draft.training.model_copy(update={"ramp": None, "lr_schedule": _rate(written)})
    draft = _continued(replaced(draft, training=training), name)
    steps = draft.step_schedule.steps_for(amount)
    draft = replaced(draft, steps=steps, teacher=before.teacher)
    rate = learning_rate.curve_of(training.lr_schedule, lr, before.end, draft.duration, "deliver")
    return plan_stage(draft, name, before, rate, draft.seed, steps, before.end + draft.duration)


def _rate(written: Deliver) -> LrSchedule:
    return LrSchedule(**{"kind": written.decay_shape, "from": "current", "min_lr_ratio": written.min_lr_ratio})


def _continued(draft: StageDraft, name: str) -> StageDraft:
    """The stage as it is at its end: nothing grows any more, and no part of it ends early or is judged."""
    ended = {"name": name, "grow": None, "accept": None, "on_reject": None, "average": None, "deliver": None}
    return replaced(
        draft,
        stage=draft.stage.model_copy(update=ended),
        own_rate=True,
        until=None,
        freezing=_lasting(draft.freezing),
        also_evaluated=(),
        curriculum=None,
        averaging=None,
    )


def _lasting(freezing: Freezing | None) -> Freezing | None:
    """What is still frozen when the stage ends: after a thaw nothing."""
    is_lasting = freezing is not None and freezing.duration is None and freezing.thaw is None
    return freezing if is_lasting else None
