"""What is planned: stages with all their values, the runs that they make up, and the plan of a whole schedule.

The unit is `StagePlan`: a stretch of training under one set of values. A stage of the schedule is
one of them; a baseline run is one or several, because under a wsd rate the baselines of all budgets
share a trunk, whose pieces have equal keys and so are trained once. `plan` makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

from raystage.config.conditions import Accept, Until
from raystage.config.schedule import NO_COSTS, Costs
from raystage.config.stage import NOTHING_REQUIRED, Require
from raystage.config.training import Training
from raystage.config.variants import Values
from raystage.data.plan import DataPlan
from raystage.data.trained_on import NOTHING, TrainedOn
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import in_short
from raystage.growth.trained import fit_flops
from raystage.models.shape import ModelShape, num_params, token_flops
from raystage.plan import learning_rate, memory
from raystage.plan.freezing import Freezing
from raystage.plan.initial import InitPlan
from raystage.plan.steps import StepSchedule, step_schedule


@dataclass(frozen=True)
class Growth:
    """options: complete, with what follows where the schedule gives none. require: what the certificate must stay
    below; it changes no bit of the result, and so is not among the facts that a key is made of."""

    operator: str
    optimizer_state: str
    options: GrowthOptions = NO_OPTIONS
    rewarm: learning_rate.Rewarming | None = None
    require: Require = NOTHING_REQUIRED

    def facts(self) -> dict[str, object]:
        """As plain values. Options that are not given are left out: to learn a new one changes no key of before."""
        rewarm = {"rewarm": asdict(self.rewarm)} if self.rewarm else {}
        return {"operator": self.operator, "optimizer_state": self.optimizer_state, **self.options.given(), **rewarm}

    @property
    def tokens(self) -> int:
        """For how many from the stage's start on what is new has a rate or a mask of its own, which end with it."""
        return max(2 * self.rewarm.tokens if self.rewarm else 0, self.options.grow_tokens or 0)


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
    trained_on: all text that the model has seen when the stage ends. evaluation_follows: on how much text it is
    evaluated follows from its length.
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
    rate: learning_rate.Curve
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
    evaluation_follows: bool = False
    trained_on: TrainedOn = field(default=NOTHING, compare=False, repr=False)

    @property
    def step_schedule(self) -> StepSchedule:
        """Its steps: all equal, except where a ramp changes them."""
        return step_schedule(self.training, self.shape.context_length)

    @property
    def tokens(self) -> int:
        return self.step_schedule.tokens(self.steps)

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
        return training.workers.most, training.workers.least, training.cpus_per_worker, training.gpus_per_worker

    @property
    def growth_flops(self) -> int:
        """What entering the stage computes: 0 but for operators that fit something."""
        if self.growth is None:
            return 0
        batch = self.training.global_batch_tokens
        return fit_flops(self.shape, self.growth.operator, self.growth.options, batch)

    @property
    def training_flops(self) -> int:
        """Without growing."""
        return self.step_schedule.flops(self.steps, self.token_flops)

    @property
    def flops(self) -> int:
        return self.growth_flops + self.training_flops

    @property
    def evaluations(self) -> int:
        """How often it is evaluated: on entering it, at its end, and where its run passes a multiple of the cadence."""
        every, start = self.evaluate_every_tokens, self.start_tokens
        return 2 + min((self.end_tokens - 1) // every - start // every, self.steps - 1)

    @property
    def evaluation_flops(self) -> int:
        """Of all its evaluations, each a forward pass: a third of training. Beside `flops`, which savings count."""
        length = self.shape.context_length
        tokens = max(1, self.training.evaluate.tokens // length) * length
        return self.evaluations * (tokens * self.token_flops(length) // 3)

    @property
    def evaluation_share(self) -> float:
        """Of the training's FLOPs."""
        return self.evaluation_flops / self.training_flops

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
        return self.steps if tokens is None else self.step_schedule.steps_for(tokens)

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
class Variant:
    """The staged run and its baselines once more: with other values of what is tuned, or with another seed.

    staged_values, baseline_values: what each side is trained with, of what is tuned; of each of the baselines.
    """

    seed: int
    staged_values: Values
    baseline_values: tuple[Values, ...]
    staged: RunPlan
    baselines: tuple[RunPlan, ...]


@dataclass(frozen=True)
class Choice:
    """The values that came out best: of the staged run, and of the baseline at every budget."""

    staged: Values
    baseline: tuple[Values, ...]


@dataclass(frozen=True)
class Plan:
    """The staged run and its baselines as the schedule has them, and what else is trained to compare them.

    costs: what the report's bill is made with. values: what the schedule says of what is tuned. variants: its other
    values, on the written seed. further_seeds: one variant for each; they train the best values of either side, and
    until these are known (`is_chosen`) stand here with those written. values_from: what the schedule says of where the
    baseline's values come from.
    """

    name: str
    staged: RunPlan
    baselines: tuple[RunPlan, ...]
    scratch_flops: int
    costs: Costs = NO_COSTS
    seed: int = 0
    values: Values = ()
    variants: tuple[Variant, ...] = ()
    further_seeds: tuple[Variant, ...] = ()
    is_chosen: bool = True
    values_from: str | None = None

    @property
    def predicted_saving(self) -> float:
        """1 - staged FLOPs / FLOPs of the last stage's model from scratch at equal tokens."""
        return 1 - self.staged.flops / self.scratch_flops

    @property
    def candidates(self) -> tuple[Variant, ...]:
        """All values that are compared on the written seed, those of the schedule first."""
        values = (self.values,) * len(self.baselines)
        return (Variant(self.seed, self.values, values, self.staged, self.baselines), *self.variants)

    def runs(self) -> tuple[RunPlan, ...]:
        """All runs, in the order in which they are trained."""
        return (*self.pilots(), *_runs_of(self.further_seeds))

    def pilots(self) -> tuple[RunPlan, ...]:
        """The runs of the written seed."""
        return (self.staged, *self.baselines, *_runs_of(self.variants))

    def known_runs(self) -> tuple[RunPlan, ...]:
        """Those of which it is known what they train."""
        return self.runs() if self.is_chosen else self.pilots()

    def variant_of(self, name: str) -> Variant:
        """What the run of that name belongs to."""
        return next(
            one
            for one in (*self.candidates, *self.further_seeds)
            if name in (one.staged.name, *(run.name for run in one.baselines))
        )

    def is_staged(self, name: str) -> bool:
        """Whether the run of that name is trained in stages; else it is a baseline."""
        return self.variant_of(name).staged.name == name

    def stages_by_key(self) -> dict[str, StagePlan]:
        """The stages of all runs, each once."""
        return {stage.key: stage for run in self.runs() for stage in run.stages}

    def flops_left(self, finished: Collection[str]) -> int:
        """FLOPs of all runs with each stage counted once, and those that are finished not at all."""
        return sum(stage.flops for key, stage in self.stages_by_key().items() if key not in finished)

    def baseline_flops_shared(self) -> int:
        """FLOPs of the baselines with each shared stage counted once."""
        return flops_shared(self.baselines)


@dataclass(frozen=True)
class Job:
    """Stages to train in a row by the same workers, and the store's address. run: what they are trained for."""

    stages: tuple[StagePlan, ...]
    store: str
    run: str = ""

    @property
    def training(self) -> Training:
        """What says how many workers, with what and how: that of all its stages."""
        return self.stages[0].training


def flops_shared(runs: Iterable[RunPlan]) -> int:
    """FLOPs of runs with each stage counted once."""
    return sum({stage.key: stage.flops for run in runs for stage in run.stages}.values())


def _runs_of(variants: Sequence[Variant]) -> tuple[RunPlan, ...]:
    """Baselines first: one layout is enough for all of them, and it is that of the run before."""
    baselines = tuple(run for one in variants for run in one.baselines)
    return (*baselines, *(one.staged for one in variants))


def placed(stage: StagePlan, tokens: int, steps: int, flops: int) -> StagePlan:
    """The stage where it really begins in its run, stages before it having ended before their caps.

    A rate of its own moves with it; the run's loses as much of its constant stretch, so that it decays at its end.
    """
    by = stage.start_tokens - tokens
    if not by:
        return stage
    rate = learning_rate.moved(stage.rate, by) if stage.own_rate else learning_rate.shortened(stage.rate, by)
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
