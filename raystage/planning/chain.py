"""One stage of a run with all its values, after the stages before it: the link of every chain of stages."""

from __future__ import annotations

from functools import reduce

from raystage.config.training import Training
from raystage.data.plan import EarlierText
from raystage.data.trained_on import NOTHING, TrainedOn
from raystage.frozen import renewed
from raystage.growth.checks import exchanges_head
from raystage.growth.operators import complete_options
from raystage.models.shape import ModelShape
from raystage.objectives.plan import NEXT_TOKEN
from raystage.planning.draft import StageDraft
from raystage.plans import cadence, learning_rate
from raystage.plans.initial import InitPlan, TeacherPlan
from raystage.plans.keys import evaluated_after, with_own_key
from raystage.plans.open_ends import waits_for_evaluations
from raystage.plans.stage import UNCHANGED, Growth, StagePlan
from raystage.plans.steps import step_schedule
from raystage.units import Unit

CHECKPOINTS_PER_STAGE = 4


def run_rate(training: Training, run_duration: int, key: str = "training.lr_schedule") -> learning_rate.Curve:
    """The rate over a whole run. Raises InputError, with `key`, where its parts do not fit into it."""
    return learning_rate.curve_of(training.lr_schedule, training.optimizer.lr, 0, run_duration, key)


def start_after(before: StagePlan | None, unit: Unit) -> int:
    """Where a stage begins in its run. Where the unit changes, positions begin anew."""
    return before.end if before is not None and before.unit == unit else 0


def _earlier(parent: StagePlan | None, unit: Unit) -> tuple[EarlierText, ...]:
    """What the stages before read, as far as they count in this unit."""
    if parent is None or parent.unit != unit:
        return ()
    return (*parent.earlier, EarlierText(parent.end, parent.data, parent.curriculum))


def _scorers(stage: StageDraft, parent: StagePlan | None) -> tuple[TeacherPlan, ...]:
    """Whose losses sort what the stage reads: its own, and those of the stages before, whose order may go on."""
    before = parent.scorers if parent is not None and parent.unit == stage.unit else ()
    sorts = stage.curriculum is not None and stage.curriculum.scorer is not None
    return (*before, stage.scorer) if sorts and stage.scorer not in before else before


def plan_stage(
    stage: StageDraft,
    name: str,
    parent: StagePlan | None,
    rate: learning_rate.Curve,
    seed: int,
    steps: int,
    run_duration: int,
    grows: bool = True,
    init: InitPlan | None = None,
) -> StagePlan:
    """The stage of a run after `parent`, with its key.

    run_duration: of the whole run. grows: False for a stage of a baseline, which has nothing of the staging: no growth,
    no early end, no gate, no frozen parts, no adapter.
    """
    duration = step_schedule(stage.training, stage.shape.context_length).duration(steps)
    before = parent or init
    seen = before.trained_on if before else NOTHING
    seen = seen.and_of(stage.teacher.trained_on) if stage.teacher else seen
    planned = StagePlan(
        name=name,
        key="",
        parent_key=parent.key if parent else None,
        shape=stage.shape,
        parent_shape=before.shape if before else None,
        growth=_growth_of(stage, before.shape if before else None, is_first=parent is None) if grows else None,
        data=stage.data,
        training=stage.training,
        seed=seed,
        rate=rate,
        start=start_after(parent, stage.unit),
        start_steps=parent.start_steps + parent.steps if parent else 0,
        start_flops=parent.end_flops if parent else 0,
        steps=steps,
        evaluate_every=0,
        checkpoint_every=stage.training.checkpoint.every or max(1, duration // CHECKPOINTS_PER_STAGE),
        window=stage.window,
        init=init,
        until=stage.until if grows else None,
        own_rate=grows and stage.own_rate,
        accept=stage.accept if grows else None,
        freezing=stage.freezing if grows else None,
        objective=stage.objective,
        parent_objective=parent.objective if parent else NEXT_TOKEN,
        teacher=stage.teacher,
        trained_on=reduce(TrainedOn.and_on, stage.data.texts, seen),
        earlier=_earlier(parent, stage.unit),
        evaluation_follows=grows and stage.unit not in stage.training.evaluate.model_fields_set,
        also_evaluated=stage.also_evaluated if grows else (),
        within_documents=stage.within_documents,
        curriculum=stage.curriculum,
        scorers=_scorers(stage, parent),
        averaging=stage.averaging,
        weights_seed=stage.weights_seed if grows else None,
        adapter=stage.adapter if grows else None,
    )
    return with_own_key(_with_evaluation(planned, run_duration))


def _with_evaluation(stage: StagePlan, run_duration: int) -> StagePlan:
    """The stage with the evaluation settings that its schedule leaves open.

    A baseline has the text of the last stage. A stage whose end or acceptance depends on evaluations is evaluated as
    often as any other, whatever that costs. The amount of text depends on the length alone, so that neither the cadence
    nor a gate changes a key.
    """
    written = stage.training.evaluate
    waits = waits_for_evaluations(stage.until, stage.accept)
    stage = evaluated_after(stage, stage.steps)
    every = cadence.default_every(stage.duration, run_duration, stage.training_flops, stage.training.evaluate.amount,
                                  stage.unit_model_flops, not waits)  # fmt: skip
    return renewed(stage, evaluate_every=written.every or every)


def _growth_of(stage: StageDraft, before: ModelShape | None, is_first: bool) -> Growth | None:
    if before is None or (is_first and stage.grow is None):
        return None
    if stage.grow is None:
        return Growth("stack", "grow") if exchanges_head(before, stage.shape) else UNCHANGED
    operator = stage.grow.operator
    options = complete_options(before, stage.shape, operator, stage.grow.options)
    rewarm = learning_rate.Rewarming(stage.grow.rewarm.factor, stage.grow.rewarm.count) if stage.grow.rewarm else None
    return Growth(operator, stage.grow.optimizer_state, options, rewarm, stage.grow.require)
