"""The types of a plan: stages with all their values, the runs that they make up, and the plan of a whole schedule.

The unit is `StagePlan`: training under one set of values. A stage of the schedule is one of them. A baseline run is one
or several: under a wsd rate the baselines of all budgets share a trunk, whose parts have equal keys and so are trained
once. `plan.build` makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from raystage.config.conditions import Accept, Until
from raystage.config.schedule import NO_COSTS, Costs
from raystage.config.stage import NOTHING_REQUIRED, Require
from raystage.config.training import Training
from raystage.config.variants import Values
from raystage.data.plan import EarlierText, MixturePart, StageText, reading_of
from raystage.data.reading import Reading
from raystage.data.trained_on import NOTHING, TrainedOn
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import in_short
from raystage.growth.trained import fit_steps
from raystage.models.shape import ModelShape, num_params, token_flops
from raystage.objectives.plan import NEXT_TOKEN, ObjectivePlan
from raystage.plans import learning_rate, memory
from raystage.plans.freezing import Freezing
from raystage.plans.initial import InitPlan, TeacherPlan, taught_flops
from raystage.plans.steps import StepSchedule, step_schedule


@dataclass(frozen=True)
class Growth:
    """How a stage starts from its parent. options: complete, with defaults filled in.

    require: limits on the certificate. They change no bit of the result, so they are not part of the key.
    """

    operator: str
    optimizer_state: str
    options: GrowthOptions = NO_OPTIONS
    rewarm: learning_rate.Rewarming | None = None
    require: Require = NOTHING_REQUIRED

    def facts(self) -> dict[str, object]:
        """As plain values, for the key. Options that are not given are left out, so that a new option changes no old
        key."""
        rewarm = {"rewarm": asdict(self.rewarm)} if self.rewarm else {}
        return {"operator": self.operator, "optimizer_state": self.optimizer_state, **self.options.given(), **rewarm}

    @property
    def tokens(self) -> int:
        """For how many tokens from the stage's start new parameters have a rate or a mask of their own."""
        return max(2 * self.rewarm.tokens if self.rewarm else 0, self.options.grow_tokens or 0)


# The growth of a stage that keeps the model as it is.
UNCHANGED = Growth("identity", "grow")


@dataclass(frozen=True)
class StagePlan:
    """Training under one set of values.

    start_tokens, start_steps, start_flops: where it begins within its run; positions in the data and in the rate are
    counted from the start of the run. until: what may end it before `steps`, None where nothing may; later stages then
    begin earlier than planned (`placed`). own_rate: its rate is not that of the run. accept: what it must show for the
    next stage to begin; like `require` it is not part of the key.

    growth: None where the stage continues with the weights of its parent, or starts from random weights. init: what the
    first stage of a run starts from instead; parent_shape is then its shape. window_tokens: the text is read in windows
    of this length, the longest context of the run. freezing: the parameters that are not trained.

    objective, parent_objective: what it learns, and what the model before was judged by. teacher: whom it learns from.

    trained_on: all text that the model has seen when the stage ends. evaluation_follows: whether the amount of held-out
    text follows from the stage's length. earlier: what the stages before it read. also_evaluated: sources of earlier
    stages on which the stage is evaluated too. within_documents: whether attention and loss stay within documents.
    """

    name: str
    key: str
    parent_key: str | None
    shape: ModelShape
    parent_shape: ModelShape | None
    growth: Growth | None
    data: StageText
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
    objective: ObjectivePlan = NEXT_TOKEN
    parent_objective: ObjectivePlan = NEXT_TOKEN
    teacher: TeacherPlan | None = None
    evaluation_follows: bool = False
    trained_on: TrainedOn = field(default=NOTHING, compare=False, repr=False)
    earlier: tuple[EarlierText, ...] = ()
    also_evaluated: tuple[MixturePart, ...] = ()
    within_documents: bool = False

    @cached_property
    def reading(self) -> Reading | None:
        """Which window of which source it reads where. None where neither this stage nor one before has a mixture: the
        windows of the run are then those of the text."""
        return reading_of(self.data, self.earlier, self.window_tokens)

    @property
    def evaluated(self) -> tuple[MixturePart, ...]:
        """The sources that it is evaluated on: its own, then those of earlier stages."""
        return (*self.data.parts, *self.also_evaluated)

    @property
    def evaluation_sequences(self) -> int:
        """The held-out sequences of each source, as far as it has so many. The sources of the stage share the tokens
        of an evaluation equally, so that a loss of a source with a small weight is of as much text as any other."""
        return max(1, self.training.evaluate.tokens // self.shape.context_length // len(self.data.parts))

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
        """The worker processes that it needs: at most and at least how many, and the CPUs and GPUs of each."""
        training = self.training
        return training.workers.most, training.workers.least, training.cpus_per_worker, training.gpus_per_worker

    @property
    def growth_flops(self) -> int:
        """FLOPs of the growth: 0, except for operators that fit something."""
        if self.growth is None:
            return 0
        tokens = fit_steps(self.growth.operator, self.growth.options) * self.training.global_batch_tokens
        return tokens * self.token_flops(self.shape.context_length)

    @property
    def training_flops(self) -> int:
        """FLOPs of the training, without the growth."""
        return self.step_schedule.flops(self.steps, self.token_flops)

    @property
    def flops(self) -> int:
        return self.growth_flops + self.training_flops

    @property
    def teacher_flops(self) -> int:
        """FLOPs of the teacher's forward passes; part of `training_flops`."""
        return self.training_flops - self.step_schedule.flops(self.steps, self.model_flops)

    @property
    def evaluations(self) -> int:
        """The number of evaluations: at its start, at its end, and at each multiple of the cadence within it."""
        every, start = self.evaluate_every_tokens, self.start_tokens
        return 2 + min((self.end_tokens - 1) // every - start // every, self.steps - 1)

    @property
    def evaluation_flops(self) -> int:
        """FLOPs of all its evaluations. A forward pass is a third of training. They are not part of `flops`."""
        length = self.shape.context_length
        tokens = self.evaluation_sequences * len(self.evaluated) * length
        return self.evaluations * (tokens * self.model_flops(length) // 3)

    @property
    def evaluation_share(self) -> float:
        """`evaluation_flops` as a share of the training's FLOPs."""
        return self.evaluation_flops / self.training_flops

    def model_flops(self, context_length: int) -> int:
        """FLOPs of one token in a context of this length for training the model, without its teacher."""
        return token_flops(self.shape, context_length)

    def token_flops(self, context_length: int) -> int:
        """Training FLOPs of one token in a context of this length, with the teacher's forward pass."""
        return taught_flops(self.shape, self.teacher, context_length)

    @property
    def memory(self) -> memory.MemoryEstimate:
        return memory.estimate(self.shape, self.training, self.teacher and self.teacher.shape)

    @property
    def frozen_steps(self) -> int:
        """For how many steps from its start `freezing` holds: all that begin within its tokens."""
        if self.freezing is None:
            return 0
        tokens = self.freezing.tokens
        return self.steps if tokens is None else self.step_schedule.steps_for(tokens)

    @property
    def growth_operator(self) -> str | None:
        return in_short(self.growth.operator) if self.growth else None


@dataclass(frozen=True)
class RunPlan:
    """A chain of stages that ends in a finished model."""

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
    """The staged run and its baselines, with other tuned values or with another seed.

    staged_values, baseline_values: the tuned values of each side; of the latter one for each baseline.
    """

    seed: int
    staged_values: Values
    baseline_values: tuple[Values, ...]
    staged: RunPlan
    baselines: tuple[RunPlan, ...]


@dataclass(frozen=True)
class Choice:
    """The best of the tuned values: for the staged run, and for the baseline of every budget."""

    staged: Values
    baseline: tuple[Values, ...]


@dataclass(frozen=True)
class Plan:
    """The staged run and its baselines as written, and everything else that is trained to compare them.

    costs: prices, for the report. values: the tuned values as written. variants: other values, on the written seed.
    further_seeds: one variant for each further seed. They train the best values of each side; until these are known
    (`is_chosen`), the written values stand in their place. values_from: where the values of the baseline come from, in
    the user's words.
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
        """All values that are compared on the written seed, the written ones first."""
        values = (self.values,) * len(self.baselines)
        return (Variant(self.seed, self.values, values, self.staged, self.baselines), *self.variants)

    def runs(self) -> tuple[RunPlan, ...]:
        """All runs, in the order in which they are trained."""
        return (*self.pilots(), *_runs_of(self.further_seeds))

    def pilots(self) -> tuple[RunPlan, ...]:
        """The runs of the written seed."""
        return (self.staged, *self.baselines, *_runs_of(self.variants))

    def known_runs(self) -> tuple[RunPlan, ...]:
        """The runs whose values are known."""
        return self.runs() if self.is_chosen else self.pilots()

    def variant_of(self, name: str) -> Variant:
        """The variant that has the run of that name."""
        return next(
            one
            for one in (*self.candidates, *self.further_seeds)
            if name in (one.staged.name, *(run.name for run in one.baselines))
        )

    def is_staged(self, name: str) -> bool:
        """Whether the run of that name is a staged run; else it is a baseline."""
        return self.variant_of(name).staged.name == name

    def stages_by_key(self) -> dict[str, StagePlan]:
        """The stages of all runs, each once."""
        return {stage.key: stage for run in self.runs() for stage in run.stages}

    def stage_keys(self) -> list[str]:
        """The keys of all stages of all runs, in order; one for each run that has the stage."""
        return [stage.key for run in self.runs() for stage in run.stages]

    def flops_left(self, finished: Collection[str]) -> int:
        """FLOPs of all stages that are not finished, each stage counted once."""
        return sum(stage.flops for key, stage in self.stages_by_key().items() if key not in finished)

    def baseline_flops_shared(self) -> int:
        """FLOPs of the baselines with each shared stage counted once."""
        return flops_shared(self.baselines)


def flops_shared(runs: Iterable[RunPlan]) -> int:
    """FLOPs of runs with each stage counted once."""
    return sum({stage.key: stage.flops for run in runs for stage in run.stages}.values())


def _runs_of(variants: Sequence[Variant]) -> tuple[RunPlan, ...]:
    """Baselines first: they all need the same workers, which are those of the run before."""
    baselines = tuple(run for one in variants for run in one.baselines)
    return (*baselines, *(one.staged for one in variants))
