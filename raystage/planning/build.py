"""From a schedule to a plan: every stage of every run with all its values, its key, its FLOPs and its memory.

Nothing here imports torch or ray. The driver carries a plan out and `raystage plan` prints it; the same schedule always
gives the same plan. The types of a plan are in `plan.plan`, the keys in `plan.keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from raystage.config.schedule import Schedule
from raystage.config.training import Training
from raystage.config.types import check_name
from raystage.config.variants import (
    Values,
    check_variants,
    label,
    other_values,
    with_seed,
    with_values,
    written_values,
)
from raystage.data.plan import EarlierText
from raystage.data.trained_on import NOTHING, TrainedOn
from raystage.errors import InputError
from raystage.growth.operators import complete_options
from raystage.models.shape import ModelShape
from raystage.objectives.plan import NEXT_TOKEN
from raystage.planning.draft import StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.objective import alone, with_key
from raystage.planning.resolve import resolve
from raystage.planning.training import baseline_stage
from raystage.plans import cadence, learning_rate
from raystage.plans.gates import Rejection, changed
from raystage.plans.initial import InitPlan
from raystage.plans.keys import evaluated_after, with_own_key
from raystage.plans.open_ends import waits_for_evaluations
from raystage.plans.plan import Choice, Plan, RunPlan, Variant
from raystage.plans.stage import UNCHANGED, Growth, StagePlan
from raystage.plans.steps import step_schedule

CHECKPOINTS_PER_STAGE = 4


@dataclass(frozen=True)
class _Side:
    """A schedule with one set of values: its stages, resolved, and the staged run that they make up."""

    schedule: Schedule
    stages: tuple[StageDraft, ...]
    staged: RunPlan

    @property
    def duration(self) -> int:
        return sum(stage.duration for stage in self.stages)


def make_plan(schedule: Schedule, name: str | None = None, sources: Sources | None = None) -> Plan:
    """The plan of a schedule, under its own name or another.

    sources: what was looked up for other schedules, where many are planned. Raises InputError where the schedule does
    not fit together.
    """
    if name is not None:
        _check_run_name(name)
    sources = sources or Sources()
    try:
        check_variants(schedule)
        return _with_variants(_plan(schedule, name or schedule.name, sources), schedule, sources)
    except InputError as error:
        raise error.inside(schedule.file or "") from None


def with_choice(plan: Plan, schedule: Schedule, choice: Choice, sources: Sources | None = None) -> Plan:
    """The plan whose further seeds train the values that were chosen on the written seed."""
    further = _further_seeds(schedule, plan, choice, sources or Sources())
    return replace(plan, further_seeds=further, is_chosen=True)


def replanned(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Plan:
    """The plan of the next attempt. The baselines stay, because every attempt is compared with the same ones.

    Raises InputError where the attempt cannot be planned.
    """
    if not tried:
        return plan
    attempt = make_plan(changed(schedule, plan, tried), plan.name)
    return replace(plan, staged=attempt.staged)


def _check_run_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(str(error), key="--name") from None


def _plan(schedule: Schedule, name: str, sources: Sources) -> Plan:
    side = _side(schedule, sources)
    return Plan(
        name=name,
        staged=side.staged,
        baselines=_baselines(side),
        scratch_flops=side.duration * alone(side.stages[-1]).flops_per_unit,
        costs=schedule.costs,
        seed=schedule.seed,
        values=written_values(schedule),
        values_from=schedule.baseline.values_from if schedule.baseline else None,
    )


def _side(schedule: Schedule, sources: Sources) -> _Side:
    init = sources.init(schedule.init) if schedule.init else None
    stages = resolve(schedule, init, sources)
    return _Side(schedule, stages, RunPlan("staged", _chain_staged(stages, init)))


# --- other values, other seeds ------------------------------------------------------------------


def _with_variants(plan: Plan, schedule: Schedule, sources: Sources) -> Plan:
    """The plan with everything that is trained beside the schedule as written."""
    variants = tuple(_variant(schedule, values, sources) for values in other_values(schedule))
    # Until the best values are known, the written ones stand in their place.
    written = Choice(plan.values, (plan.values,) * len(plan.baselines))
    further = _further_seeds(schedule, plan, written, sources)
    return replace(plan, variants=variants, further_seeds=further, is_chosen=not (variants and further))


def _variant(schedule: Schedule, values: Values, sources: Sources) -> Variant:
    tried = label(values)
    try:
        side = _side(with_values(schedule, values), sources)
        baselines = tuple(_named(run, tried) for run in _baselines(side))
    except InputError as error:
        raise InputError(f"{tried} cannot be planned: {error}", key="baseline.tune") from None
    return Variant(schedule.seed, values, (values,) * len(baselines), _named(side.staged, tried), baselines)


def _further_seeds(schedule: Schedule, plan: Plan, choice: Choice, sources: Sources) -> tuple[Variant, ...]:
    """The staged run and the baselines of every seed after the written one, each side with its chosen values.

    Runs are named after the written ones, with the seed: the names stay when the values become known.
    """
    found = []
    for more in range(1, schedule.seeds):
        seeded = with_seed(schedule, more)
        sides = {values: _side(with_values(seeded, values), sources) for values in {choice.staged, *choice.baseline}}
        runs = {values: _baselines(sides[values]) for values in set(choice.baseline)}
        name = f"seed-{seeded.seed}"
        baselines = tuple(
            _named(replace(runs[values][index], name=plan.baselines[index].name), name)
            for index, values in enumerate(choice.baseline)
        )
        staged = _named(sides[choice.staged].staged, name)
        found.append(Variant(seeded.seed, choice.staged, choice.baseline, staged, baselines))
    return tuple(found)


def _named(run: RunPlan, what: str) -> RunPlan:
    return replace(run, name=f"{run.name}-{what}")


# --- the staged run -----------------------------------------------------------------------------


def _chain_staged(stages: tuple[StageDraft, ...], init: InitPlan | None) -> tuple[StagePlan, ...]:
    run_duration = sum(stage.duration for stage in stages)
    chain: list[StagePlan] = []
    for index, stage in enumerate(stages):
        before = chain[-1] if chain else None
        rate = _own_rate(stage, index, before) if stage.own_rate else _run_rate(stage.training, run_duration)
        chain.append(
            _plan_stage(
                with_key(stage, chain), stage.name, before, rate, stage.seed, stage.steps, run_duration,
                init=None if chain else init,
            )
        )  # fmt: skip
    _check_open_ends(chain)
    return tuple(chain)


def _run_rate(training: Training, run_duration: int, key: str = "training.lr_schedule") -> learning_rate.Curve:
    return learning_rate.curve_of(training.lr_schedule, training.optimizer.lr, 0, run_duration, key)


def _own_rate(stage: StageDraft, index: int, before: StagePlan | None) -> learning_rate.Curve:
    """The rate of a stage that has an `lr_schedule` of its own, from the planned position on where it begins."""
    schedule, lr = stage.training.lr_schedule, stage.training.optimizer.lr
    key, start = f"stages[{index}].training.lr_schedule", before.end if before else 0
    if schedule.start == "current":
        lr = learning_rate.rate_at(before.rate, start)
        if not lr:
            problem = f"found current, but the rate is 0 where stage {before.name} ends"
            raise InputError(f"{problem}; expected a rate above 0 there, as with a min_lr_ratio", key=f"{key}.from")
    return learning_rate.curve_of(schedule, lr, start, stage.duration, key)


def _check_open_ends(chain: list[StagePlan]) -> None:
    """Refuse a stage that may end early where the rate of a later stage depends on its length."""
    for index, stage in enumerate(chain):
        depend = [later for later in chain[index + 1 :] if not later.own_rate]
        if stage.until is None or not depend:
            continue
        # The positions of a piecewise rate are fixed: none of its parts may become shorter.
        fixed = any(later.training.lr_schedule.kind == "piecewise" for later in depend)
        ends = [None if fixed else learning_rate.stable_end(later.rate) for later in depend]
        problem = None
        if None in ends:
            problem = "found under a rate over the whole run that depends on its length from the start"
        elif min(ends) < stage.end:
            problem = f"found a cap at {stage.end} tokens of the run, whose rate decays from {min(ends)} on"
        if problem:
            expected = "expected lr_schedule wsd or constant, the decay after this stage, or a lr_schedule of their own"
            raise InputError(f"{problem}; {expected} for all stages after it", key=f"stages[{index}].until")


# --- the baselines ------------------------------------------------------------------------------


def _baselines(side: _Side) -> tuple[RunPlan, ...]:
    """The last stage's model from scratch, once for each budget, the smallest first."""
    schedule = side.schedule
    if schedule.baseline is None:
        return ()
    last = alone(baseline_stage(schedule, side.stages))
    # Evaluated on exactly the text that the last stage is evaluated on.
    training = last.training.model_copy(update={"evaluate": side.staged.stages[-1].training.evaluate})
    last = replace(last, training=training)
    batch = last.training.global_batch_tokens
    lengths = [-(-budget // batch) for budget in schedule.baseline.budgets]
    runs: list[RunPlan] = []
    for index, steps in sorted(enumerate(lengths), key=lambda pair: pair[1]):
        key = f"baseline.budgets[{index}]"
        if steps in lengths[:index]:
            found = f"found {schedule.baseline.budgets[index]}, {steps} steps of {batch} tokens, a second time"
            raise InputError(f"{found}; expected each budget once", key=key)
        runs.append(_baseline(schedule, last, steps, runs, key))
    return tuple(runs)


def _baseline(schedule: Schedule, last: StageDraft, steps: int, earlier: list[RunPlan], key: str) -> RunPlan:
    """The last stage's model from scratch for `steps` steps, split where smaller budgets leave the shared trunk."""
    batch = last.training.global_batch_tokens
    curve = _run_rate(last.training, steps * batch, key)
    borders = [*_trunk_borders(curve, earlier, batch, steps), steps]
    chain: list[StagePlan] = []
    for border in borders:
        name = f"scratch-{border * batch}"
        length = border - (chain[-1].start_steps + chain[-1].steps if chain else 0)
        chain.append(_plan_stage(last, name, chain[-1] if chain else None, curve, schedule.seed, length,
                                 steps * batch, grows=False))  # fmt: skip
    return RunPlan(f"baseline-{steps * batch}", tuple(chain))


def _trunk_borders(curve: learning_rate.Curve, earlier: list[RunPlan], batch: int, steps: int) -> list[int]:
    """The steps at which to split the part whose rate a longer run has too.

    Where smaller budgets were split, as far as their rate was the same up to there; and at its end, for larger budgets.
    """
    trunk_end = learning_rate.stable_end(curve)
    if trunk_end is None:
        return []
    ends = {
        stage.end
        for run in earlier
        for stage in run.stages
        if learning_rate.signature(stage.rate, 0, stage.end) == learning_rate.signature(curve, 0, stage.end)
    }
    cuts = {end // batch for end in ends | {trunk_end}}
    return sorted(cut for cut in cuts if 0 < cut < steps)


def _plan_stage(
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
    tokens = step_schedule(stage.training, stage.shape.context_length).duration(steps)
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
        start=parent.end if parent else 0,
        start_steps=parent.start_steps + parent.steps if parent else 0,
        start_flops=parent.end_flops if parent else 0,
        steps=steps,
        evaluate_every=0,
        checkpoint_every=stage.training.checkpoint.every or max(1, tokens // CHECKPOINTS_PER_STAGE),
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
        earlier=(*parent.earlier, EarlierText(parent.end, parent.data)) if parent else (),
        evaluation_follows=grows and "tokens" not in stage.training.evaluate.model_fields_set,
        also_evaluated=stage.also_evaluated if grows else (),
        within_documents=stage.within_documents,
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
    every = cadence.default_every(stage.duration, run_duration, stage.training_flops, stage.training.evaluate.tokens,
                                  stage.model_flops(stage.shape.context_length), not waits)  # fmt: skip
    return replace(stage, evaluate_every=written.every or every)


def _growth_of(stage: StageDraft, before: ModelShape | None, is_first: bool) -> Growth | None:
    if before is None or (is_first and stage.grow is None):
        return None
    if stage.grow is None:
        return UNCHANGED
    operator = stage.grow.operator
    options = complete_options(before, stage.shape, operator, stage.grow.options)
    rewarm = learning_rate.Rewarming(stage.grow.rewarm.factor, stage.grow.rewarm.tokens) if stage.grow.rewarm else None
    return Growth(operator, stage.grow.optimizer_state, options, rewarm, stage.grow.require)
