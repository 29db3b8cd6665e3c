"""The schedule resolved: every stage with all its values, its key, its FLOPs, its memory.

Nothing here imports torch or ray. A plan is what the driver carries out and what `raystage plan`
prints; the same schedule always gives the same plan.

The unit is `StagePlan`: a stretch of training under one set of values. A stage of the schedule is
one of them; a baseline run is one or several, because under a wsd rate the baselines of all budgets
share a trunk, whose pieces have equal keys and so are trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby

from raystage import memory, rates
from raystage.conditions import Accept, Until
from raystage.errors import InputError
from raystage.freezing import Freezing
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operator import complete_options, in_short
from raystage.growth.trained import fit_flops
from raystage.initial import InitPlan
from raystage.ramps import Course, course_of
from raystage.resolve import ResolvedStage, check_rate, resolve, span_tokens, token_flops
from raystage.schedule import (
    NO_COSTS,
    NOTHING_REQUIRED,
    Costs,
    LrSchedule,
    Require,
    Schedule,
    Training,
    check_name,
)
from raystage.shape import ModelShape, flops_per_token, num_params
from raystage.sources import DataPlan, Sources

# Raise when the code changes what a stage computes: every key changes, nothing old is reused.
CODE_EPOCH = 2

EVALUATIONS_PER_RUN = 20
CHECKPOINTS_PER_STAGE = 4

# What may differ between two runs of a stage without changing what it computes. The rate counts apart.
_WITHOUT_EFFECT = {
    "hang_seconds": True,
    "max_failures": True,
    "checkpoint": True,
    "evaluate": {"every", "metrics"},
    "lr_schedule": True,
    "deepspeed": {
        "comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print", "wall_clock_breakdown",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """options: complete, with what follows where the schedule gives none. require: what the certificate must stay
    below; it changes no bit of the result, and so is not among the facts that a key is made of."""

    operator: str
    optimizer_state: str
    options: GrowthOptions = NO_OPTIONS
    rewarm: rates.Rewarming | None = None
    require: Require = NOTHING_REQUIRED

    def facts(self) -> dict[str, object]:
        """As plain values. Options that are not given are left out: to learn a new one changes no key of before."""
        rewarm = {"rewarm": asdict(self.rewarm)} if self.rewarm else {}
        return {"operator": self.operator, "optimizer_state": self.optimizer_state, **self.options.given(), **rewarm}


# How a stage that changes nothing about the model is entered.
UNCHANGED = Growth("identity", "grow")


@dataclass(frozen=True)
class StagePlan:
    """One stretch of training.

    start_tokens, start_steps, start_flops: where it begins within its run; positions in the data and
    in the rate are counted from the run's start. until: what may end it before its `steps`, None where nothing may;
    stages after it then begin earlier than planned (`placed`). own_rate: its rate is not the run's. accept: what it
    must show for the next to begin; like `require` it is no part of the key.
    growth is None where it goes on with the very weights of its parent, or from nothing. init: what a run's first
    stage starts from instead; then parent_shape is its shape. window_tokens: the text is read in windows of so many,
    the longest context of the run. freezing: what of the model stands still.
    """

    name: str
    key: str
    parent_key: str | None
    shape: ModelShape
    parent_shape: ModelShape | None
    growth: Growth | None
    data: DataPlan
    training: Training
    seed: int
    rate: rates.Curve
    start_tokens: int
    start_steps: int
    start_flops: int
    steps: int
    evaluate_every_tokens: int
    checkpoint_every_tokens: int
    window_tokens: int
    init: InitPlan | None = None
    until: Until | None = None
    own_rate: bool = False
    accept: Accept | None = None
    freezing: Freezing | None = None

    @property
    def course(self) -> Course:
        """Its steps: all alike, but for ramps."""
        return course_of(self.training, self.shape.context_length)

    @property
    def tokens(self) -> int:
        return self.course.tokens(self.steps)

    @property
    def end_tokens(self) -> int:
        return self.start_tokens + self.tokens

    @property
    def end_flops(self) -> int:
        return self.start_flops + self.flops

    @property
    def num_params(self) -> int:
        return num_params(self.shape)

    @property
    def layout(self) -> tuple[int, ...]:
        """What worker processes it needs: how many at most and at least, with as many CPUs and GPUs each."""
        training = self.training
        return training.workers, training.workers.least, training.cpus_per_worker, training.gpus_per_worker

    @property
    def growth_flops(self) -> int:
        """What entering the stage computes: 0 but for operators that fit something."""
        if self.growth is None:
            return 0
        batch = self.training.global_batch_tokens
        return fit_flops(self.shape, self.growth.operator, self.growth.options, batch)

    @property
    def flops(self) -> int:
        return self.growth_flops + self.course.flops(self.steps, self.token_flops)

    def token_flops(self, context_length: int) -> int:
        """Training FLOPs of one token in a context of this length."""
        return token_flops(self.shape, context_length)

    @property
    def memory(self) -> memory.MemoryEstimate:
        return memory.estimate(self.shape, self.training)

    @property
    def frozen_steps(self) -> int:
        """For how many steps from its start on `freezing` holds: all that begin within its tokens."""
        if self.freezing is None:
            return 0
        tokens = self.freezing.tokens
        return self.steps if tokens is None else self.course.steps_for(tokens)

    @property
    def growth_operator(self) -> str | None:
        return in_short(self.growth.operator) if self.growth else None


@dataclass(frozen=True)
class RunPlan:
    """A chain of stages from nothing to a finished model."""

    name: str
    stages: tuple[StagePlan, ...]

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)


@dataclass(frozen=True)
class Plan:
    """The staged run and its baselines; what the report's bill is made with."""

    name: str
    staged: RunPlan
    baselines: tuple[RunPlan, ...]
    scratch_flops: int
    costs: Costs = NO_COSTS

    @property
    def predicted_saving(self) -> float:
        """1 - staged FLOPs / FLOPs of the last stage's model from scratch at equal tokens."""
        return 1 - self.staged.flops / self.scratch_flops

    def runs(self) -> tuple[RunPlan, ...]:
        return (self.staged, *self.baselines)

    def baseline_flops_shared(self) -> int:
        """FLOPs of the baselines with each shared stage counted once."""
        return sum({stage.key: stage.flops for run in self.baselines for stage in run.stages}.values())


def placed(stage: StagePlan, tokens: int, steps: int, flops: int) -> StagePlan:
    """The stage where it really begins in its run, stages before it having ended before their caps.

    A rate of its own moves with it; the run's loses as much of its constant stretch, so that it decays at its end.
    """
    by = stage.start_tokens - tokens
    if not by:
        return stage
    rate = rates.moved(stage.rate, by) if stage.own_rate else rates.shortened(stage.rate, by)
    return replace(stage, start_tokens=tokens, start_steps=steps, start_flops=flops, rate=rate)


def continues(first: StagePlan, second: StagePlan) -> bool:
    """Whether a worker that ended `first` can go on with `second` as it stands."""
    same = (second.shape, second.data, second.training) == (first.shape, first.data, first.training)
    # These part the optimizer's groups in another way; a ramp begins anew.
    special = first.freezing or second.freezing or first.training.ramp
    return second.growth is None and second.parent_key == first.key and same and not special


def jobs(stages: Iterable[StagePlan]) -> tuple[tuple[StagePlan, ...], ...]:
    """The stages in groups that one Train run carries out, one after the other: another layout begins a new one."""
    return tuple(tuple(group) for _, group in groupby(stages, lambda stage: stage.layout))


def make_plan(schedule: Schedule, name: str | None = None, sources: Sources | None = None) -> Plan:
    """The plan of a schedule, under its own name or another. Raises InputError where it does not fit together.

    sources: what was looked up for other schedules, by whoever plans many.
    """
    if name is not None:
        _check_run_name(name)
    try:
        return _plan(schedule, name or schedule.name, sources or Sources())
    except InputError as error:
        raise error.inside(schedule.file or "") from None


def _check_run_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise InputError(str(error), key="--name") from None


def _plan(schedule: Schedule, name: str, sources: Sources) -> Plan:
    init = sources.init(schedule.init) if schedule.init else None
    stages = resolve(schedule, init.shape if init else None, sources)
    last = stages[-1]
    run_tokens = sum(stage.tokens for stage in stages)
    cadence = max(1, run_tokens // EVALUATIONS_PER_RUN)
    staged = RunPlan("staged", _chain_staged(schedule, stages, run_tokens, cadence, init))
    return Plan(
        name=name,
        staged=staged,
        baselines=_baselines(schedule, last, cadence),
        scratch_flops=run_tokens * flops_per_token(last.shape),
        costs=schedule.costs,
    )


def _chain_staged(
    schedule: Schedule, stages: tuple[ResolvedStage, ...], run_tokens: int, cadence: int, init: InitPlan | None
) -> tuple[StagePlan, ...]:
    chain: list[StagePlan] = []
    for index, stage in enumerate(stages):
        start = chain[-1].end_tokens if chain else 0
        span = (start, stage.tokens) if stage.own_rate else (0, run_tokens)
        key = f"stages[{index}].training.lr_schedule" if stage.own_rate else "training.lr_schedule"
        chain.append(
            _plan_stage(
                stage, stage.name, chain[-1] if chain else None, _curve(stage.training, *span, key),
                stage.seed, stage.steps, cadence, init=None if chain else init,
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
        ends = [rates.stable_end(curve) for curve in depend]
        problem = None
        if None in ends:
            problem = "found under a rate over the whole run that depends on its length from the start"
        elif min(ends) < stage.end_tokens:
            problem = f"found a cap at {stage.end_tokens} tokens of the run, whose rate decays from {min(ends)} on"
        if problem:
            expected = "expected lr_schedule wsd or constant, the decay after this stage, or a lr_schedule of their own"
            raise InputError(f"{problem}; {expected} for all stages after it", key=f"stages[{index}].until")


def _baselines(schedule: Schedule, last: ResolvedStage, cadence: int) -> tuple[RunPlan, ...]:
    if schedule.baseline is None:
        return ()
    last = replace(last, training=last.training.model_copy(update={"ramp": None}))  # a ramp is part of the staging
    batch = last.training.global_batch_tokens
    lengths = [-(-budget // batch) for budget in schedule.baseline.budgets]
    runs: list[RunPlan] = []
    for index, steps in sorted(enumerate(lengths), key=lambda pair: pair[1]):
        key = f"baseline.budgets[{index}]"
        if steps in lengths[:index]:
            found = f"found {schedule.baseline.budgets[index]}, {steps} steps of {batch} tokens, a second time"
            raise InputError(f"{found}; expected each budget once", key=key)
        runs.append(_baseline(schedule, last, steps, cadence, runs, key))
    return tuple(runs)


def _baseline(
    schedule: Schedule, last: ResolvedStage, steps: int, cadence: int, earlier: list[RunPlan], key: str
) -> RunPlan:
    """The last stage's model from scratch for `steps` steps, cut where smaller budgets leave the trunk."""
    batch = last.training.global_batch_tokens
    curve = _curve(last.training, 0, steps * batch, key)
    borders = [*_trunk_borders(curve, earlier, batch, steps), steps]
    chain: list[StagePlan] = []
    for border in borders:
        name = f"scratch-{border * batch}"
        length = border - (chain[-1].start_steps + chain[-1].steps if chain else 0)
        chain.append(_plan_stage(last, name, chain[-1] if chain else None, curve, schedule.seed, length, cadence,
                                 grows=False))  # fmt: skip
    return RunPlan(f"baseline-{steps * batch}", tuple(chain))


def _trunk_borders(curve: rates.Curve, earlier: list[RunPlan], batch: int, steps: int) -> list[int]:
    """The steps at which to cut the stretch whose rate a longer run has too: where smaller budgets were cut, as far
    as their rate was the same up to there, and at its end, for larger budgets to come."""
    trunk_end = rates.stable_end(curve)
    if trunk_end is None:
        return []
    ends = {
        stage.end_tokens
        for run in earlier
        for stage in run.stages
        if rates.signature(stage.rate, 0, stage.end_tokens) == rates.signature(curve, 0, stage.end_tokens)
    }
    cuts = {end // batch for end in ends | {trunk_end}}
    return sorted(cut for cut in cuts if 0 < cut < steps)


def _curve(training: Training, start: int, total: int, key: str) -> rates.Curve:
    schedule: LrSchedule = training.lr_schedule
    check_rate(schedule, total, key)
    return rates.build(
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
    rate: rates.Curve,
    seed: int,
    steps: int,
    cadence: int,
    grows: bool = True,
    init: InitPlan | None = None,
) -> StagePlan:
    tokens = course_of(stage.training, stage.shape.context_length).tokens(steps)
    before = parent or init
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
        evaluate_every_tokens=stage.training.evaluate.every or cadence,
        checkpoint_every_tokens=stage.training.checkpoint.every or max(1, tokens // CHECKPOINTS_PER_STAGE),
        window_tokens=stage.window_tokens,
        init=init,
        until=stage.until if grows else None,
        own_rate=grows and stage.own_rate,
        accept=stage.accept if grows else None,
        freezing=stage.freezing if grows else None,
    )
    return replace(planned, key=key_at(planned, steps))


def _growth_of(stage: ResolvedStage, before: ModelShape | None, is_first: bool) -> Growth | None:
    if before is None or (is_first and stage.grow is None):
        return None
    if stage.grow is None:
        return UNCHANGED
    operator = stage.grow.operator
    options = complete_options(before, stage.shape, operator, stage.grow.options)
    rewarm = rates.Rewarming(stage.grow.rewarm.factor, stage.grow.rewarm.tokens) if stage.grow.rewarm else None
    return Growth(operator, stage.grow.optimizer_state, options, rewarm, stage.grow.require)


def key_at(stage: StagePlan, steps: int) -> str:
    """The key that the stage would have if it ended after `steps` steps: its own, at its own length.

    Where another stage has it, that one did just what this one does up to there.
    """
    tokens = stage.course.tokens(steps)
    rate = rates.signature(stage.rate, stage.start_tokens, stage.start_tokens + tokens)
    return _digest({**_facts(stage), "rate": rate, "tokens": tokens})


def trunk_key(stage: StagePlan) -> str:
    """The same for all stages that differ in nothing but where they end, and in the rate."""
    return _digest(_facts(stage))


def _facts(stage: StagePlan) -> dict[str, object]:
    """All that can change the stage's result but its length and rate. Names, paths and cadences cannot, but for that
    of evaluation where the stage ends on what it shows."""
    data = dict(vars(stage.data))
    del data["path"], data["source"], data["tokenizer"]  # their fingerprints say what was read
    training = stage.training.model_dump(exclude=_WITHOUT_EFFECT)
    for name, without in (("offload_optimizer", "none"), ("ramp", None)):
        if training[name] == without:  # left out: a key of before stays as it was
            del training[name]
    return {
        "epoch": CODE_EPOCH,
        "parent": stage.parent_key,
        "growth": stage.growth.facts() if stage.growth else None,
        "shape": vars(stage.shape),
        "data": data,
        "training": training | {"optimizer": stage.training.optimizer.used()},
        "seed": stage.seed,
        "start_tokens": stage.start_tokens,
        **({"window_tokens": stage.window_tokens} if stage.window_tokens != stage.shape.context_length else {}),
        **({"init": stage.init.facts()} if stage.init else {}),
        **({"freeze": stage.freezing.facts()} if stage.freezing else {}),
        **(_rule(stage, stage.until) if stage.until else {}),
    }


def _rule(stage: StagePlan, until: Until) -> dict[str, object]:
    return {"until": until.model_dump(exclude_none=True), "evaluate_every_tokens": stage.evaluate_every_tokens}


def _digest(facts: dict[str, object]) -> str:
    """SHA-256 of facts, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
