"""From a schedule to a plan: every stage of every run with all its values, its key, its FLOPs and its memory.

Nothing here imports torch or ray. The driver carries a plan out and `raystage plan` prints it; the same schedule always
gives the same plan. The types of a plan are in `plans.plan`, the keys in `plans.keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from raystage.config.schedule import Schedule
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
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.planning.baselines import plan_baselines
from raystage.planning.branches.delivering import plan_deliveries
from raystage.planning.chain import plan_stage, run_rate, start_after
from raystage.planning.draft import StageDraft
from raystage.planning.inputs import Sources
from raystage.planning.objective import alone, with_key
from raystage.planning.order import with_scorer_key
from raystage.planning.resolve import resolve
from raystage.plans import learning_rate
from raystage.plans.gates import Rejection, changed
from raystage.plans.initial import InitPlan
from raystage.plans.plan import Choice, EnsemblePlan, Plan, RunPlan, Variant
from raystage.plans.stage import StagePlan


@dataclass(frozen=True)
class _Side:
    """A schedule with one set of values: its stages, resolved, the staged run that they make up, and its ensembles."""

    schedule: Schedule
    stages: tuple[StageDraft, ...]
    staged: RunPlan
    ensembles: tuple[EnsemblePlan, ...]

    @property
    def scratch_flops(self) -> int | None:
        """Of the last stage's model over the length of the whole run, if that has one unit."""
        durations = self.staged.durations
        return None if len(durations) > 1 else self.staged.duration * alone(self.stages[-1]).flops_per_unit

    def baselines(self) -> tuple[RunPlan, ...]:
        # Evaluated on exactly the text that the last stage is evaluated on.
        return plan_baselines(self.schedule, self.stages, self.staged.stages[-1].training.evaluate)


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
    return replaced(plan, further_seeds=further, is_chosen=True)


def replanned(schedule: Schedule, plan: Plan, tried: Sequence[Rejection]) -> Plan:
    """The plan of the next attempt. The baselines stay, because every attempt is compared with the same ones.

    Raises InputError where the attempt cannot be planned.
    """
    if not tried:
        return plan
    attempt = make_plan(changed(schedule, plan, tried), plan.name)
    return replaced(plan, staged=attempt.staged, deliveries=attempt.deliveries, ensembles=attempt.ensembles)


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
        baselines=side.baselines(),
        scratch_flops=side.scratch_flops,
        costs=schedule.costs,
        seed=schedule.seed,
        values=written_values(schedule),
        values_from=schedule.baseline.values_from if schedule.baseline else None,
        deliveries=plan_deliveries(side.stages, side.staged),
        ensembles=side.ensembles,
    )


def _side(schedule: Schedule, sources: Sources) -> _Side:
    init = sources.init(schedule.init) if schedule.init else None
    stages = resolve(schedule, init, sources)
    chain, ensembles = _chain_staged(stages, init)
    return _Side(schedule, stages, RunPlan("staged", chain), ensembles)


# --- other values, other seeds ------------------------------------------------------------------


def _with_variants(plan: Plan, schedule: Schedule, sources: Sources) -> Plan:
    """The plan with everything that is trained beside the schedule as written."""
    variants = tuple(_variant(schedule, values, sources) for values in other_values(schedule))
    # Until the best values are known, the written ones stand in their place.
    written = Choice(plan.values, (plan.values,) * len(plan.baselines))
    further = _further_seeds(schedule, plan, written, sources)
    if not variants and not further:
        return plan
    return replaced(plan, variants=variants, further_seeds=further, is_chosen=not (variants and further))


def _variant(schedule: Schedule, values: Values, sources: Sources) -> Variant:
    tried = label(values)
    try:
        side = _side(with_values(schedule, values), sources)
        baselines = tuple(_named(run, tried) for run in side.baselines())
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
        runs = {values: sides[values].baselines() for values in set(choice.baseline)}
        name = f"seed-{seeded.seed}"
        baselines = tuple(
            _named(replaced(runs[values][index], name=plan.baselines[index].name), name)
            for index, values in enumerate(choice.baseline)
        )
        staged = _named(sides[choice.staged].staged, name)
        found.append(Variant(seeded.seed, choice.staged, choice.baseline, staged, baselines))
    return tuple(found)


def _named(run: RunPlan, what: str) -> RunPlan:
    return replaced(run, name=f"{run.name}-{what}")


# --- the staged run -----------------------------------------------------------------------------


def _chain_staged(
    stages: tuple[StageDraft, ...], init: InitPlan | None
) -> tuple[tuple[StagePlan, ...], tuple[EnsemblePlan, ...]]:
    """The staged run, and the ensembles of its stages."""
    chain: list[StagePlan] = []
    ensembles: list[EnsemblePlan] = []
    for stage in stages:
        teachers = [*chain, *(member for one in ensembles for member in one.members)]
        link = partial(_link, stages=stages, before=tuple(chain), init=init, teachers=teachers)
        chain.append(link(stage))
        if stage.members:
            ensembles.append(_ensemble(stage, chain, [link(member) for member in stage.members]))
    _check_open_ends(chain)
    return tuple(chain), tuple(ensembles)


def _link(
    stage: StageDraft,
    stages: tuple[StageDraft, ...],
    before: tuple[StagePlan, ...],
    init: InitPlan | None,
    teachers: Sequence[StagePlan],
) -> StagePlan:
    """A stage of the staged run, or a member in its place, after the stages before it. teachers: those it may have."""
    parent = before[-1] if before else None
    run = (stage if one.index == stage.index else one for one in stages)
    run_duration = sum(one.duration for one in run if one.unit == stage.unit)
    rate = _own_rate(stage, parent) if stage.own_rate else run_rate(stage.training, run_duration)
    keyed = with_scorer_key(with_key(stage, teachers), before)
    return plan_stage(
        keyed, stage.name, parent, rate, stage.seed, stage.steps, run_duration, init=None if before else init
    )


def _ensemble(stage: StageDraft, chain: Sequence[StagePlan], others: Sequence[StagePlan]) -> EnsemblePlan:
    """chain: up to the first member. others: the further members. Raises InputError where two would be equal."""
    keys = [chain[-1].key, *(one.key for one in others)]
    for number, key in enumerate(keys, start=1):
        if (equal := keys.index(key) + 1) != number:
            problem = f"found members {equal} and {number} that are trained alike; expected values that differ"
            raise InputError(problem, key=f"stages[{stage.index}].ensemble.set")
    runs = tuple(RunPlan(one.name, (*chain[:-1], one)) for one in others)
    written = stage.stage.ensemble
    return EnsemblePlan(chain[-1], runs, written.vary, written.measure)


def _own_rate(stage: StageDraft, before: StagePlan | None) -> learning_rate.Curve:
    """The rate of a stage that has an `lr_schedule` of its own, from the planned position on where it begins."""
    schedule, lr = stage.training.lr_schedule, stage.training.optimizer.lr
    key, start = f"stages[{stage.index}].training.lr_schedule", start_after(before, stage.unit)
    if schedule.start == "current":
        lr = learning_rate.rate_at(before.rate, before.end)
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
            problem = f"found a cap at {stage.end} {stage.unit} of the run, whose rate decays from {min(ends)} on"
        if problem:
            expected = "expected lr_schedule wsd or constant, the decay after this stage, or a lr_schedule of their own"
            raise InputError(f"{problem}; {expected} for all stages after it", key=f"stages[{index}].until")
