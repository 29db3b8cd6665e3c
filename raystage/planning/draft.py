"""A stage while it is resolved. `planning.resolve` has the passes, each of which fills in or checks some of a draft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from raystage.config.conditions import Accept, Until
from raystage.config.schedule import Schedule
from raystage.config.section import Section, field_of
from raystage.config.stage import Grow, Model, Stage
from raystage.config.training import Training
from raystage.data.order.curriculum import CurriculumPlan
from raystage.data.plan import MixturePart, StageText
from raystage.errors import InputError
from raystage.frozen import once, replaced
from raystage.growth.checks import POSITIONS
from raystage.models.shape import ModelShape
from raystage.objectives.plan import NEXT_TOKEN, ObjectivePlan
from raystage.planning.inputs import Sources
from raystage.plans.adapters import AdapterPlan
from raystage.plans.averaging import Averaging
from raystage.plans.freezing import Freezing, step_costs
from raystage.plans.initial import InitPlan, TeacherPlan, unit_flops
from raystage.plans.step_costs import StepCosts
from raystage.plans.steps import StepSchedule, step_schedule
from raystage.units import Unit


@dataclass(frozen=True)
class StageDraft:
    """One stage: as written, with the file's defaults under it, and what the passes made of it so far.

    index: of the stage in the schedule. data, shape, training: None until their pass; objective: the next token until
    then. steps: the most it takes. until: what may end it before `steps`, None where nothing may; positions in it are
    from the stage's start.
    window: the text of all stages is read in windows of this length, the longest context of the run.
    also_evaluated: sources of earlier stages on which the stage is evaluated too. curriculum: the order of its text.
    scorer: the model whose loss its documents are sorted by. weights_seed: as in `StagePlan`. members: of its ensemble,
    those after the first.
    """

    index: int
    stage: Stage
    seed: int
    own_rate: bool
    data: StageText | None = None
    objective: ObjectivePlan = NEXT_TOKEN
    teacher: TeacherPlan | None = None
    shape: ModelShape | None = None
    training: Training | None = None
    steps: int = 0
    until: Until | None = None
    freezing: Freezing | None = None
    window: int = 0
    also_evaluated: tuple[MixturePart, ...] = ()
    curriculum: CurriculumPlan | None = None
    scorer: TeacherPlan | None = None
    averaging: Averaging | None = None
    weights_seed: int | None = None
    members: tuple[StageDraft, ...] = ()
    adapter: AdapterPlan | None = None

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def grow(self) -> Grow | None:
        return self.stage.grow

    @property
    def within_documents(self) -> bool:
        """Whether attention and loss stay within documents."""
        return self.stage.data.window.mask == "document"

    @property
    def accept(self) -> Accept | None:
        return self.stage.accept

    @property
    def unit(self) -> Unit:
        """What its progress is counted in."""
        return self.objective.entry.unit

    @once
    def step_schedule(self) -> StepSchedule:
        return step_schedule(self.training, self.shape.context_length)

    @once
    def duration(self) -> int:
        return self.step_schedule.duration(self.steps)

    def unit_flops(self, context_length: int) -> int:
        """Training FLOPs of one token or sample in a context of this length, with the teacher's forward pass."""
        return unit_flops(self.shape, self.teacher, context_length, self.unit)

    @property
    def step_costs(self) -> StepCosts:
        """What its steps cost."""
        return step_costs(self.shape, self.teacher, self.unit, self.step_schedule, self.freezing, self.adapter)

    @property
    def flops_per_unit(self) -> int:
        """The same at its full context."""
        return self.unit_flops(self.shape.context_length)


@dataclass(frozen=True)
class Context:
    """What a pass may look at beside its draft: the schedule as written, and the stages that are resolved already.

    run_tokens: the length of the run, where the schedule gives it."""

    schedule: Schedule
    init: InitPlan | None
    sources: Sources
    stages: tuple[StageDraft, ...] = ()
    run_tokens: int | None = None

    @property
    def shape_before(self) -> ModelShape | None:
        """The shape that the next stage starts from: of the stage before it, else of `init`, else None."""
        if self.stages:
            return self.stages[-1].shape
        return self.init.shape if self.init else None

    def start_of_next(self, unit: Unit) -> int:
        """Where the next stage begins in the run, if it counts in this unit."""
        return sum(stage.duration for stage in self.stages if stage.unit == unit)

    def draft(self, index: int) -> StageDraft:
        """Stage `index` before the first pass. What no stage says of its model is as in `init`."""
        schedule = self.schedule
        if self.init is not None:
            schedule = schedule.model_copy(update={"model": _model_of(self.init.shape, schedule.model)})
        stage = schedule.resolved(index)
        return StageDraft(index, stage, self._seed_of(stage), self._has_own_rate(index))

    def continued(self, index: int, begun: StageDraft) -> StageDraft:
        """Stage `index` as it was begun for a schedule with the same data, model and objective; all else is as here."""
        written, known = self.schedule.stages[index], begun.stage
        same = {"data": known.data, "model": known.model, "objective": known.objective}
        stage = written.model_copy(update={**same, "training": self.schedule.training.overlaid(written.training)})
        return replaced(begun, stage=stage, seed=self._seed_of(stage), own_rate=self._has_own_rate(index))

    def _seed_of(self, stage: Stage) -> int:
        return self.schedule.seed if stage.seed is None else stage.seed

    def _has_own_rate(self, index: int) -> bool:
        return "lr_schedule" in self.schedule.stages[index].training.model_fields_set

    def error(self, index: int, key: str, problem: str) -> InputError:
        """An error in a key of stage `index` ('model.hidden_size'), told at the place where the user wrote it."""
        return InputError(problem, key=written_key(self.schedule, index, key))

    @contextmanager
    def errors_of(self, index: int) -> Iterator[None]:
        """Passes name a stage's own key; within this their errors name the place where the user wrote it."""
        try:
            yield
        except InputError as error:
            key = written_key(self.schedule, index, error.key) if error.key else None
            raise InputError(error.problem, key=key, file=error.file) from None

    def with_stages(self, stages: tuple[StageDraft, ...]) -> Context:
        return replaced(self, stages=stages)


# Sizes that some families do not have.
_NONE_IF_ZERO = (
    "num_heads", "num_kv_heads", "head_size", "num_experts", "experts_per_token", "patch_size", "vocab_size",
    "sliding_window", "query_pre_attn_scalar",
)  # fmt: skip
# What follows from the images.
_OF_IMAGES = ("context_length", "tied_embeddings")


def _model_of(init: ModelShape, written: Model) -> Model:
    """The sizes of `init`, with a model section applied to them. Norms' eps and positions go from shape to shape."""
    without = {"norm_eps", *POSITIONS, *(name for name in _NONE_IF_ZERO if not getattr(init, name))}
    without |= {*_OF_IMAGES, *(("patch_size",) if init.family == "mlp" else ())} if init.image_size else set()
    given = {name: getattr(init, name) for name in Model.model_fields if name not in without and hasattr(init, name)}
    return Model(**given).overlaid(written)


def written_key(schedule: Schedule, index: int, key: str) -> str:
    """A stage's key ('model.hidden_size') as the user wrote it: in the stage where that sets it, else in the file.

    A key that nobody set is told at the file, unless other stages set it.
    """
    of_stage = f"stages[{index}].{key}"
    path = key.partition("[")[0].split(".")  # an entry of a list stands where the list does
    if path[0] not in Schedule.model_fields or _sets(schedule.stages[index], path):
        return of_stage
    if _sets(schedule, path):
        return key
    return of_stage if any(_sets(stage, path) for stage in schedule.stages) else key


def _sets(section: Section, path: list[str]) -> bool:
    """Whether a path leads to something that the user wrote."""
    place: object = section
    for step in path:
        if isinstance(place, Section) and (name := field_of(type(place), step)) in place.model_fields_set:
            place = getattr(place, name)
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return False
    return True
