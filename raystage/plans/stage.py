"""A stage as planned: training under one set of values, with everything that follows from them.

`planning.build` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystage.config.conditions import Accept, Until
from raystage.config.stage import NOTHING_REQUIRED, Require
from raystage.config.training import Training
from raystage.data.order.curriculum import CurriculumPlan, TextPace
from raystage.data.plan import EarlierText, MixturePart, StageText, paces_read, reading_of, reads_by_cursors
from raystage.data.reading import Reading
from raystage.data.trained_on import NOTHING, TrainedOn
from raystage.frozen import once
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.operators import in_short
from raystage.growth.trained import fit_steps
from raystage.models.depth import rates_by_depth
from raystage.models.shape import ModelShape, num_params
from raystage.objectives.plan import NEXT_TOKEN, ObjectivePlan
from raystage.plans import learning_rate, memory
from raystage.plans.adapters import AdapterPlan
from raystage.plans.averaging import Averaging
from raystage.plans.freezing import Freezing, step_costs
from raystage.plans.initial import InitPlan, TeacherPlan, scoring_flops, unit_flops
from raystage.plans.step_costs import StepCosts
from raystage.plans.steps import StepSchedule, sample_length, step_schedule
from raystage.units import Unit


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
        rewarm = {"rewarm": {"factor": self.rewarm.factor, "tokens": self.rewarm.rise}} if self.rewarm else {}
        return {"operator": self.operator, "optimizer_state": self.optimizer_state, **self.options.given(), **rewarm}

    @once
    def duration(self) -> int:
        """For how long from the stage's start new parameters have a rate or a mask of their own."""
        return max(2 * self.rewarm.rise if self.rewarm else 0, self.options.grow_tokens or 0)


# The growth of a stage that keeps the model as it is.
UNCHANGED = Growth("identity", "grow")


@dataclass(frozen=True)
class StagePlan:
    """Training under one set of values.

    start, start_steps, start_flops: where it begins within its run; positions in the data and in the rate are
    counted from the start of the run. until: what may end it before `steps`, None where nothing may; later stages then
    begin earlier than planned (`placed`). own_rate: its rate is not that of the run. accept: what it must show for the
    next stage to begin; like `require` it is not part of the key.

    growth: None where the stage continues with the weights of its parent, or starts from random weights. init: what the
    first stage of a run starts from instead; parent_shape is then its shape. window: the text is read in windows
    of this length, the longest context of the run. freezing: the parameters that are not trained.

    objective, parent_objective: what it learns, and what the model before was judged by. teacher: whom it learns from.

    trained_on: all text that the model has seen when the stage ends. evaluation_follows: whether the amount of held-out
    text follows from the stage's length. earlier: what the stages before it read. also_evaluated: sources of earlier
    stages on which the stage is evaluated too. within_documents: whether attention and loss stay within documents.
    curriculum: the order of its text, None where that is shuffled. scorers: the models whose losses sort what it or a
    stage before it reads. averaging: of the checkpoints that it ends with. adapter: what is trained in place of the
    model's own parameters. weights_seed: of new weights, where it is not `seed`.
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
    start: int
    start_steps: int
    start_flops: int
    steps: int
    evaluate_every: int
    checkpoint_every: int
    window: int
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
    curriculum: CurriculumPlan | None = None
    scorers: tuple[TeacherPlan, ...] = ()
    averaging: Averaging | None = None
    adapter: AdapterPlan | None = None
    weights_seed: int | None = None

    @property
    def most_repeated(self) -> int:
        """The tokens or samples that are trained again at most if workers die: those between two checkpoints."""
        return min(self.checkpoint_every, self.duration)

    @property
    def drawn_with(self) -> int:
        """The seed of its new weights."""
        return self.seed if self.weights_seed is None else self.weights_seed

    @property
    def reads_by_cursors(self) -> bool:
        """Whether `reading` is not None."""
        return reads_by_cursors(self.data, self.earlier, self.curriculum)

    @once
    def reading(self) -> Reading | None:
        """Which window of which source it reads where. None where neither this stage nor one before has a mixture or a
        curriculum: the windows of the run are then those of the text."""
        return reading_of(self.data, self.earlier, self.window, self.curriculum)

    @once
    def paces(self) -> dict[str, tuple[TextPace, ...]]:
        """By name in `reading` the texts that a curriculum has sorted, now or before, and what of them is read when."""
        return paces_read(self.data, self.earlier, self.window, self.curriculum)

    @property
    def evaluated(self) -> tuple[MixturePart, ...]:
        """The sources that it is evaluated on: its own, then those of earlier stages."""
        return (*self.data.parts, *self.also_evaluated)

    @property
    def evaluation_sequences(self) -> int:
        """The held-out sequences of each source, as far as it has so many. The sources of the stage share the tokens
        of an evaluation equally, so that a loss of a source with a small weight is of as much text as any other."""
        length = self.sample_length(self.shape.context_length)
        wanted = max(1, self.training.evaluate.amount // length // len(self.data.parts))
        samples = (part.data.held_out.documents for part in self.evaluated if part.data.samples is not None)
        return min(wanted, max(samples, default=wanted))

    @property
    def unit(self) -> Unit:
        """What its progress is counted in."""
        return self.objective.entry.unit

    @once
    def step_schedule(self) -> StepSchedule:
        """Its steps: all equal, except where a ramp changes them."""
        return step_schedule(self.training, self.shape.context_length)

    @once
    def step_costs(self) -> StepCosts:
        """What its steps cost, with the teacher's forward passes and an adapter, and without what frozen parameters
        save."""
        return step_costs(self.shape, self.teacher, self.unit, self.step_schedule, self.freezing, self.adapter)

    @once
    def duration(self) -> int:
        return self.step_schedule.duration(self.steps)

    @property
    def end(self) -> int:
        return self.start + self.duration

    @property
    def end_flops(self) -> int:
        return self.start_flops + self.flops

    @property
    def num_params(self) -> int:
        return num_params(self.shape)

    @property
    def num_trained(self) -> int:
        """The parameters that an optimizer knows. Frozen ones, which may thaw, are among them."""
        return self.adapter.num_trained(self.shape) if self.adapter else self.num_params

    @property
    def layout(self) -> tuple[object, ...]:
        """The worker processes that it needs: at most and at least how many, the CPUs and GPUs of each, how they are
        set up, and where."""
        one = self.training
        each = one.cpus_per_worker, one.gpus_per_worker, one.deterministic, one.compile
        return one.workers, *each, one.placement, one.accelerator, tuple(sorted(one.node_labels.items()))

    @once
    def growth_flops(self) -> int:
        """FLOPs of the growth: 0, except for operators that fit something."""
        if self.growth is None:
            return 0
        amount = fit_steps(self.growth.operator, self.growth.options) * self.training.global_batch
        return amount * self.unit_flops(self.shape.context_length)

    @once
    def scored(self) -> tuple[MixturePart, ...]:
        """The sources whose documents it scores before it trains: those that it sorts by a loss by which no stage
        before has sorted them."""
        if self.scorer is None:
            return ()
        known = {
            part.data.content
            for text in self.earlier
            if text.curriculum and text.curriculum.scorer == self.curriculum.scorer
            for part in text.data.parts
            if part.weight
        }
        return tuple(part for part in self.data.parts if part.weight and part.data.content not in known)

    @property
    def scorer(self) -> TeacherPlan | None:
        """The model whose loss its own curriculum sorts by."""
        wanted = self.curriculum.scorer if self.curriculum else None
        return next((one for one in self.scorers if wanted and one.key == wanted.key), None)

    @once
    def scoring_tokens(self) -> int:
        """The tokens that it scores; for some tokenizers an estimate."""
        return sum(part.data.about_train_tokens for part in self.scored)

    @property
    def scoring_flops(self) -> int:
        """FLOPs of the forward passes of scoring."""
        return scoring_flops(self.scorer, self.scoring_tokens) if self.scored else 0

    @property
    def scorer_bytes(self) -> int:
        """The weights of the model that scores, in fp32, on every worker until training begins."""
        return 4 * num_params(self.scorer.shape) if self.scorer else 0

    @once
    def training_flops(self) -> int:
        """FLOPs of the training, without the growth and without scoring documents."""
        return self.step_costs.of_first(self.steps)

    @property
    def flops(self) -> int:
        return self.growth_flops + self.scoring_flops + self.training_flops

    @property
    def teacher_flops(self) -> int:
        """FLOPs of the teacher's forward passes; part of `training_flops`."""
        return self.step_schedule.flops(self.steps, self.teacher.unit_flops) if self.teacher else 0

    @property
    def evaluations(self) -> int:
        """The number of evaluations: at its start, at its end, and at each multiple of the cadence within it; one more
        of an average or of a merged adapter."""
        every, start = self.evaluate_every, self.start
        return 2 + bool(self.averaging or self.adapter) + min((self.end - 1) // every - start // every, self.steps - 1)

    @property
    def evaluation_flops(self) -> int:
        """FLOPs of all its evaluations. A forward pass is a third of training. They are not part of `flops`."""
        length = self.shape.context_length
        amount = self.evaluation_sequences * len(self.evaluated) * self.sample_length(length)
        return self.evaluations * (amount * self.model_flops(length) // 3)

    @property
    def evaluation_share(self) -> float:
        """`evaluation_flops` as a share of the training's FLOPs."""
        return self.evaluation_flops / self.training_flops

    def sample_length(self, context_length: int) -> int:
        """The length of a sample in the stage's unit."""
        return sample_length(context_length, self.unit)

    def model_flops(self, context_length: int) -> int:
        """FLOPs of one token or sample in a context of this length for training the model, without its teacher."""
        return unit_flops(self.shape, None, context_length, self.unit)

    @property
    def unit_model_flops(self) -> int:
        """The same in its full context."""
        return self.model_flops(self.shape.context_length)

    def unit_flops(self, context_length: int) -> int:
        """Training FLOPs of one token or sample in a context of this length, with the teacher's forward pass, while
        nothing is frozen."""
        return unit_flops(self.shape, self.teacher, context_length, self.unit)

    @property
    def memory(self) -> memory.MemoryEstimate:
        teachers = [one.shape for one in self.teacher.all] if self.teacher else ()
        return memory.estimate(self.shape, self.training, teachers, self.adapter)

    @once
    def frozen_steps(self) -> Mapping[str, float]:
        """By name for how many steps from its start each of its frozen parameters does not train; infinite for the
        whole stage."""
        return self.freezing.steps(self.shape, self.step_schedule) if self.freezing else {}

    @once
    def rate_factors(self) -> Mapping[str, float]:
        """By name what the learning rate of a parameter is multiplied by; nothing where all train at the same rate."""
        factor = self.training.optimizer.lr_by_depth
        found = rates_by_depth(self.shape, factor) if factor != 1 else {}
        return {**found, **(self.adapter.rate_factors(found, self.shape) if self.adapter else {})}

    def member_positions(self, steps: int) -> tuple[int, ...]:
        """Where in the run the checkpoints of its average are, if it ends after `steps` steps. None without one."""
        if self.averaging is None:
            return ()
        schedule = self.step_schedule
        return tuple(self.start + schedule.duration(end) for end in self.averaging.ends(steps, schedule))

    @property
    def growth_operator(self) -> str | None:
        return in_short(self.growth.operator) if self.growth else None
