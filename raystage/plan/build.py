"""From a schedule to a plan: every stage of every run with all its values, its key, its FLOPs and its memory.

Nothing here imports torch or ray. The driver carries a plan out and `raystage plan` prints it; the same schedule always
gives the same plan. The types of a plan are in `plan.plan`, the keys in `plan.keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raystage.config.schedule import Schedule
from raystage.config.stage import LrSchedule, Training
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
from raystage.data.trained_on import NOTHING
from raystage.errors import InputError
from raystage.growth.operators import complete_options
from raystage.models.shape import ModelShape, flops_per_token
from raystage.plan import cadence, learning_rate
from raystage.plan.baseline import baseline_stage
from raystage.plan.gates import Rejection, changed
from raystage.plan.initial import InitPlan
from raystage.plan.inputs import Sources
from raystage.plan.keys import evaluated_after, key_at
from raystage.plan.learning_rate import check_rate, span_tokens
from raystage.plan.length import waits_for_evaluations
from raystage.plan.plan import UNCHANGED, Choice, Growth, Plan, RunPlan, StagePlan, Variant
from raystage.plan.resolve import ResolvedStage, resolve
from raystage.plan.steps import step_schedule

CHECKPOINTS_PER_STAGE = 4


def make_plan(schedule: Schedule, name: str | None = None, sources: Sources | None = None) -> Plan:
    """The plan of a schedule, under its own name or another. Raises InputError where it does not fit together.

    sources: what was looked up for other schedules, by whoever plans many.
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
    """The plan whose further seeds train the values that were chosen on the written one."""
    further = _further_seeds(schedule, plan, choice, sources or Sources())
    return replace(plan, further_seeds=further, is_chosen=True)


def _check_run_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(str(error), key="--name") from None


def _plan(schedule: Schedule, name: str, sources: Sources) -> Plan:
    init = sources.init(schedule.init) if schedule.init else None
    stages = resolve(schedule, init, sources)
    last = stages[-1]
    run_tokens = sum(stage.tokens for stage in stages)
    staged = RunPlan("staged", _chain_staged(schedule, stages, run_tokens, init))
    return Plan(
        name=name,
        staged=staged,
        baselines=_baselines(schedule, stages, staged.stages[-1]),
        scratch_flops=run_tokens * flops_per_token(last.shape),
        costs=schedule.costs,
        seed=schedule.seed,
        values=written_values(schedule),
        values_from=schedule.baseline.values_from if schedule.baseline else None,
    )


def _with_variants(plan: Plan, schedule: Schedule, sources: Sources) -> Plan:
    """The plan with all that is trained besides the schedule as written."""
    variants = tuple(_variant(schedule, plan.name, values, sources) for values in other_values(schedule))
    further = _further_seeds(schedule, plan, _written(plan), sources)
    return replace(plan, variants=variants, further_seeds=further, is_chosen=not (variants and further))


def _variant(schedule: Schedule, name: str, values: Values, sources: Sources) -> Variant:
    tried = label(values)
    try:
        plan = _plan(with_values(schedule, values), name, sources)
    except InputError as error:
        raise InputError(f"{tried} cannot be planned: {error}", key="baseline.tune") from None
    baselines = tuple(_named(run, tried) for run in plan.baselines)
    return Variant(schedule.seed, values, (values,) * len(baselines), _named(plan.staged, tried), baselines)


def _written(plan: Plan) -> Choice:
    """What stands for a choice that is still to be made."""
    return Choice(plan.values, (plan.values,) * len(plan.baselines))


def _further_seeds(schedule: Schedule, plan: Plan, choice: Choice, sources: Sources) -> tuple[Variant, ...]:
    """Their names are those of the runs as written, with the seed: they stay when the values become known."""
    found = []
    for more in range(1, schedule.seeds):
        seeded = with_seed(schedule, more)
        chosen = {choice.staged, *choice.baseline}
        plans = {values: _plan(with_values(seeded, values), plan.name, sources) for values in chosen}
        staged = plans[choice.staged].staged
        baselines = [
            replace(plans[values].baselines[index], name=plan.baselines[index].name)
            for index, values in enumerate(choice.baseline)
        ]
        seed = f"seed-{seeded.seed}"
        found.append(
            Variant(
                seeded.seed, choice.staged, choice.baseline, _named(staged, seed),
                tuple(_named(run, seed) for run in baselines),
            )
        )  # fmt: skip
    return tuple(found)


def _named(run: RunPlan, what: str) -> RunPlan:
    return replace(run, name=f"{run.name}-{what}")


def _chain_staged(
    schedule: Schedule, stages: tuple[ResolvedStage, ...], run_tokens: int, init: InitPlan | None
) -> tuple[StagePlan, ...]:
    chain: list[StagePlan] = []
    for index, stage in enumerate(stages):
        start = chain[-1].end_tokens if chain else 0
        span = (start, stage.tokens) if stage.own_rate else (0, run_tokens)
        key = f"stages[{index}].training.lr_schedule" if stage.own_rate else "training.lr_schedule"
        chain.append(
            _plan_stage(
                stage, stage.name, chain[-1] if chain else None, _curve(stage.training, *span, key),
                stage.seed, stage.steps, run_tokens, init=None if chain else init,
            )
        )  # fmt: skip
    _check_open_ends(chain)
    return tuple(chain)


def _check_open_ends(chain: list[StagePlan]) -> None:
    """Refuse a stage that may end early where the rate of stages after it could not make up for that."""
    for index, stage in enumerate(chain):
        depend = [later.rate for later in chain[index + 1 :] if not later.own_rate]
        if stage.until is None or not depend:
            continue
        ends = [learning_rate.stable_end(curve) for curve in depend]
        problem = None
        if None in ends:
            problem = "found under a rate over the whole run that depends on its length from the start"
        elif min(ends) < stage.end_tokens:
            problem = f"found a cap at {stage.end_tokens} tokens of the run, whose rate decays from {min(ends)} on"
        if problem:
            expected = "expected lr_schedule wsd or constant, the decay after this stage, or a lr_schedule of their own"
            raise InputError(f"{problem}; {expected} for all stages after it", key=f"stages[{index}].until")


def _baselines(schedule: Schedule, stages: tuple[ResolvedStage, ...], last_staged: StagePlan) -> tuple[RunPlan, ...]:
    if schedule.baseline is None:
        return ()
    last = baseline_stage(schedule, stages)
    # On the very text that the last stage is evaluated on.
    training = last.training.model_copy(update={"evaluate": last_staged.training.evaluate})
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


def _baseline(schedule: Schedule, last: ResolvedStage, steps: int, earlier: list[RunPlan], key: str) -> RunPlan:
    """The last stage's model from scratch for `steps` steps, cut where smaller budgets leave the trunk."""
    batch = last.training.global_batch_tokens
    curve = _curve(last.training, 0, steps * batch, key)
    borders = [*_trunk_borders(curve, earlier, batch, steps), steps]
    chain: list[StagePlan] = []
    for border in borders:
        name = f"scratch-{border * batch}"
        length = border - (chain[-1].start_steps + chain[-1].steps if chain else 0)
        chain.append(_plan_stage(last, name, chain[-1] if chain else None, curve, schedule.seed, length,
                                 steps * batch, grows=False))  # fmt: skip
    return RunPlan(f"baseline-{steps * batch}", tuple(chain))


def _trunk_borders(curve: learning_rate.Curve, earlier: list[RunPlan], batch: int, steps: int) -> list[int]:
    """The steps at which to cut the stretch whose rate a longer run has too: where smaller budgets were cut, as far
    as their rate was the same up to there, and at its end, for larger budgets to come."""
    trunk_end = learning_rate.stable_end(curve)
    if trunk_end is None:
        return []
    ends = {
        stage.end_tokens
        for run in earlier
        for stage in run.stages
        if learning_rate.signature(stage.rate, 0, stage.end_tokens)
        == learning_rate.signature(curve, 0, stage.end_tokens)
    }
    cuts = {end // batch for end in ends | {trunk_end}}
    return sorted(cut for cut in cuts if 0 < cut < steps)


def _curve(training: Training, start: int, total: int, key: str) -> learning_rate.Curve:
    schedule: LrSchedule = training.lr_schedule
    check_rate(schedule, total, key)
    return learning_rate.build(
        schedule.kind,
        training.optimizer.lr,
        start,
        total,
        span_tokens(schedule.warmup, total),
        span_tokens(schedule.decay, total) if schedule.kind == "wsd" else 0,
        schedule.min_lr_ratio,
    )


def _plan_stage(
    stage: ResolvedStage,
    name: str,
    parent: StagePlan | None,
    rate: learning_rate.Curve,
    seed: int,
    steps: int,
    run_tokens: int,
    grows: bool = True,
    init: InitPlan | None = None,
) -> StagePlan:
    tokens = step_schedule(stage.training, stage.shape.context_length).tokens(steps)
    before = parent or init
    seen = before.trained_on if before else NOTHING
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
        start_tokens=parent.end_tokens if parent else 0,
        start_steps=parent.start_steps + parent.steps if parent else 0,
        start_flops=parent.end_flops if parent else 0,
        steps=steps,
        evaluate_every_tokens=0,
        checkpoint_every_tokens=stage.training.checkpoint.every or max(1, tokens // CHECKPOINTS_PER_STAGE),
        window_tokens=stage.window_tokens,
        init=init,
        until=stage.until if grows else None,
        own_rate=grows and stage.own_rate,
        accept=stage.accept if grows else None,
        freezing=stage.freezing if grows else None,
        trained_on=seen.and_on(stage.data.text),
    )
    planned = _with_evaluation(planned, run_tokens, is_baseline=not grows)
    return replace(planned, key=key_at(planned, steps))


def _with_evaluation(stage: StagePlan, run_tokens: int, is_baseline: bool) -> StagePlan:
    """The stage with what its schedule leaves open about evaluation. A baseline's text is that of the last stage; what
    ends on evaluations, or is accepted for them, has them as often as a run of any cost has.

    How much text depends on the length alone: neither cadence nor gates are to change a key.
    """
    written = stage.training.evaluate
    waits = waits_for_evaluations(stage.until, stage.accept)
    is_open = not is_baseline and "tokens" not in written.model_fields_set
    stage = evaluated_after(replace(stage, evaluation_follows=is_open), stage.steps)
    every = cadence.default_every(stage.tokens, run_tokens, stage.training_flops, stage.training.evaluate.tokens,
                                  stage.token_flops(stage.shape.context_length), not waits)  # fmt: skip
    return replace(stage, evaluate_every_tokens=written.every or every)


def _growth_of(stage: ResolvedStage, before: ModelShape | None, is_first: bool) -> Growth | None:
    if before is None or (is_first and stage.grow is None):
        return None
    if stage.grow is None:
        return UNCHANGED
    operator = stage.grow.operator
    options = complete_options(before, stage.shape, operator, stage.grow.options)
    rewarm = learning_rate.Rewarming(stage.grow.rewarm.factor, stage.grow.rewarm.tokens) if stage.grow.rewarm else None
    return Growth(operator, stage.grow.optimizer_state, options, rewarm, stage.grow.require)


def replanned(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Plan:
    """The plan of the attempt that comes next. The baseline stays: what it is compared with must not move along.

    Raises InputError where that cannot be planned.
    """
    if not tried:
        return plan
    attempt = make_plan(changed(schedule, plan, tried), plan.name)
    return replace(plan, staged=attempt.staged)
