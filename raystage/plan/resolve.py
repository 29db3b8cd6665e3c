"""From a stage as written to a stage with every value known, and the checks that take more than one key."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from raystage.config.conditions import Accept, Until
from raystage.config.deepspeed import DEEPSPEED_OPTIONS, read_deepspeed
from raystage.config.schedule import Schedule
from raystage.config.section import Section, field_of
from raystage.config.stage import NOTHING_REQUIRED, Freeze, Grow, Model, Optimizer, Stage, Training
from raystage.data.documents import BYTE_TOKENIZER
from raystage.data.plan import DataPlan
from raystage.errors import InputError
from raystage.growth.checks import changed_fields, refusal
from raystage.growth.operators import is_trained, layer_origins
from raystage.growth.trained import stage_refusal
from raystage.models.shape import ModelShape, token_flops
from raystage.plan.freezing import Freezing, find_freezing
from raystage.plan.gates import check_gates, planned_retries
from raystage.plan.initial import InitPlan
from raystage.plan.inputs import Sources
from raystage.plan.learning_rate import decay_start
from raystage.plan.length import DecayStart, cap_steps, is_open, placed_mixing
from raystage.plan.shapes import inherited_norm_eps, resolve_shape
from raystage.plan.steps import StepSchedule, check_ramp, check_ramp_fits, step_schedule
from raystage.units import shown
from raystage.user_code import check_call

DEFAULT_MICRO_BATCH_TOKENS = 8_192


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with every value known and checked on its own."""

    name: str
    shape: ModelShape
    data: DataPlan
    training: Training
    grow: Grow | None
    steps: int
    own_rate: bool
    seed: int
    accept: Accept | None = None
    until: Until | None = None  # what may end it before its steps; positions in it are from the stage's start
    freezing: Freezing | None = None
    window_tokens: int = 0  # of the text that all stages read in one piece, the longest context of them

    @property
    def step_schedule(self) -> StepSchedule:
        return step_schedule(self.training, self.shape.context_length)

    @property
    def tokens(self) -> int:
        return self.step_schedule.tokens(self.steps)


def resolve(
    schedule: Schedule, init: InitPlan | None = None, sources: Sources | None = None
) -> tuple[ResolvedStage, ...]:
    """Every stage resolved; what no stage says of its model is as in `init`, which the first stage starts from.

    Every attempt that `on_reject` may come to is resolved, too, to be refused now rather than after days.
    Raises InputError at the first thing that does not fit.
    """
    sources = sources or Sources()
    _check_names(schedule)
    check_gates(schedule)
    stages = _resolve_stages(schedule, init, sources)
    for retry in planned_retries(schedule):
        try:
            _resolve_stages(retry.schedule, init, sources)
        except InputError as error:
            raise retry.refused(error) from None
    return stages


def _resolve_stages(schedule: Schedule, start: InitPlan | None, sources: Sources) -> tuple[ResolvedStage, ...]:
    init = start.shape if start else None
    completed = schedule if init is None else schedule.model_copy(update={"model": _model_of(init, schedule.model)})
    check_optimizer(schedule.training.optimizer, schedule.training.optimizer)
    stages: list[ResolvedStage] = []
    start_tokens = 0
    for index in range(len(schedule.stages)):
        before = stages[-1].shape if stages else init
        try:
            stages.append(_resolve_stage(completed, index, sources, before, start_tokens))
            check_ramp_fits(stages[-1].training, stages[-1].tokens)
            _check_growth(before, stages[-1])
            stages[-1] = _with_freezing(schedule.stages[index].freeze, before, stages[-1])
            if index == 0 and init is not None:
                _check_first_growth(stages[0].grow)
        except InputError as error:
            raise InputError(error.problem, key=written_key(schedule, index, error.key)) from None
        start_tokens += stages[-1].tokens
    _check_held_out(schedule, stages, sources)
    _check_held_out_of_init(schedule, stages, start, sources)
    resolved = _with_windows(schedule, stages)
    for index, stage in enumerate(resolved):
        _check_length(schedule, index, stage)
    return resolved


def _with_windows(schedule: Schedule, stages: list[ResolvedStage]) -> tuple[ResolvedStage, ...]:
    """The stages with the windows that they all read: as long as the longest context, and whole numbers of any.

    So the text at a token position of the run is the same for every stage, and none is read twice or left out where
    the context changes (but for less than one sequence, where a longer one begins inside of a shorter).
    """
    longest = max(stage.shape.context_length for stage in stages)
    for index, stage in enumerate(stages):
        length = stage.shape.context_length
        if longest % length:
            found = f"found {length} in a run whose longest context is {longest}"
            fitting = _largest_divisor(longest, length)
            expected = f"expected a divisor of that, such as {fitting}: all stages read the same windows of text"
            raise InputError(f"{found}; {expected}", key=written_key(schedule, index, "model.context_length"))
    return tuple(replace(stage, window_tokens=longest) for stage in stages)


def _check_length(schedule: Schedule, index: int, stage: ResolvedStage) -> None:
    """Refuse text that is shorter than one sequence, whatever the tokenizer makes of it: hardly more tokens than
    bytes."""
    own_end = 1 if stage.data.tokenizer == BYTE_TOKENIZER else 2  # a document's end, and what some put at its beginning
    sides = (stage.data.train, stage.window_tokens, "to train on"), (
        stage.data.held_out, stage.shape.context_length, "to hold out"
    )  # fmt: skip
    for text, length, what in sides:
        tokens = text.num_bytes + own_end * text.documents
        if tokens <= length:
            found = f"found {text.num_bytes} bytes {what}, at most {tokens} tokens"
            problem = f"{found}; expected more than a sequence's {length} (context_length)"
            raise InputError(problem, key=written_key(schedule, index, "data.path"))


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return max(one for one in (*small, *(number // one for one in small)) if one <= most)


def _check_held_out(schedule: Schedule, stages: list[ResolvedStage], sources: Sources) -> None:
    """Refuse to evaluate a model on documents that a stage before was trained on."""
    seen: list[ResolvedStage] = []  # of each text that was trained on the first stage that was
    for index, stage in enumerate(stages):
        if any(stage.data.text == earlier.data.text for earlier in seen):
            continue
        # Before the first there is nothing to compare with, and to split a corpus takes a quarter of a plan's time.
        held_out = {document.digest for document in sources.split(stage.data)[1]} if seen else set()
        for earlier in seen:
            trained = {document.digest for document in sources.split(earlier.data)[0]}
            count = len(held_out & trained)
            if count:
                by = f"that stage {earlier.name!r} was trained on"
                raise _held_out_error(schedule, index, stage, count, by, earlier.data.text.validation_fraction)
        seen.append(stage)


def _check_held_out_of_init(
    schedule: Schedule, stages: list[ResolvedStage], init: InitPlan | None, sources: Sources
) -> None:
    """Refuse to evaluate a model on documents that it was trained on before it came here, as far as it is known."""
    for text in init.trained_on.texts if init else ():
        for index, stage in enumerate(stages):
            count = text.count_in(sources.split(stage.data)[1])
            if count:
                by = "that the model in init was trained on"
                raise _held_out_error(schedule, index, stage, count, by, text.validation_fraction)


def _held_out_error(
    schedule: Schedule, index: int, stage: ResolvedStage, count: int, by: str, fraction: float | None
) -> InputError:
    """fraction: what the other text held out; None where that was text of its own."""
    documents = f"{count} document{'s' if count > 1 else ''} {by}"
    key, problem = "data.validation_fraction", f"found {stage.data.validation_fraction:g}, which holds out {documents}"
    expected = "expected other text to hold out"
    if stage.data.options.validation_path:
        key, problem = "data.validation_path", f"found {documents}"
    elif fraction is not None:
        expected = f"expected at most the {fraction:g} there"
    return InputError(f"{problem}; {expected}", key=written_key(schedule, index, key))


def _with_freezing(freeze: Freeze | None, before: ModelShape | None, stage: ResolvedStage) -> ResolvedStage:
    return replace(stage, freezing=find_freezing(freeze, before, stage.shape, stage.grow, stage.tokens))


def _model_of(init: ModelShape, written: Model) -> Model:
    """A model section with the sizes of `init` under what is written. The norms' eps goes from shape to shape."""
    sizes = {name: getattr(init, name) for name in Model.model_fields if name != "norm_eps" and hasattr(init, name)}
    given = {name: value for name, value in sizes.items() if value or name not in ("num_experts", "experts_per_token")}
    return Model(**given).overlaid(written)


def _check_first_growth(grow: Grow | None) -> None:
    """What a growth from `init` cannot be held to or fitted on: there is no stage before it."""
    if grow is not None and is_trained(grow.operator):
        problem = f"found {grow.operator}, which needs training; expected another operator for a growth from init"
        raise InputError(problem, key="grow.operator")
    if grow is not None and grow.require != NOTHING_REQUIRED:
        problem = "found in the first stage, whose growth from init has no certificate; remove it"
        raise InputError(f"{problem} (raystage certify measures one)", key="grow.require")


def written_key(schedule: Schedule, index: int, key: str) -> str:
    """A stage's key ('model.hidden_size') as the user wrote it: in the stage where that sets it, else in the file.

    A key that nobody set is looked for in the file, unless other stages have it.
    """
    of_stage = f"stages[{index}].{key}"
    path = key.split(".")
    if path[0] not in Schedule.model_fields or _sets(schedule.stages[index], path):
        return of_stage
    if _sets(schedule, path):
        return key
    return of_stage if any(_sets(stage, path) for stage in schedule.stages) else key


def _sets(section: Section, path: list[str]) -> bool:
    """Whether a path leads to something that was written down."""
    place: object = section
    for step in path:
        if isinstance(place, Section) and (name := field_of(type(place), step)) in place.model_fields_set:
            place = getattr(place, name)
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return False
    return True


def _check_names(schedule: Schedule) -> None:
    names = [stage.name for stage in schedule.stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"found {name!r} a second time; expected a name of its own", key=f"stages[{index}].name")


# Below, the key of an error is the stage's own ('model.num_heads'); `resolve` says where the user wrote it.


def _resolve_stage(
    schedule: Schedule, index: int, sources: Sources, before: ModelShape | None, start_tokens: int
) -> ResolvedStage:
    written, stage = schedule.stages[index], schedule.resolved(index)
    data = sources.data(stage.data)
    shape = resolve_shape(stage.model, data)
    if before:
        shape = replace(shape, rope_theta=before.rope_theta, rope_scaling=before.rope_scaling)
        if stage.model.norm_eps is None:
            shape = inherited_norm_eps(before, shape, stage.grow)
    check_optimizer(written.training.optimizer, stage.training.optimizer)
    training = resolve_training(stage.training, shape)
    _check_metrics(training, stage.accept, sources.with_code)
    return ResolvedStage(
        name=stage.name,
        shape=shape,
        data=data,
        training=training,
        grow=stage.grow,
        steps=_steps(stage, training, shape, start_tokens),
        own_rate="lr_schedule" in written.training.model_fields_set,
        seed=schedule.seed if stage.seed is None else stage.seed,
        accept=stage.accept,
        until=placed_mixing(stage.until, start_tokens, _stable_end(training)) if is_open(stage.until) else None,
    )


def resolve_training(training: Training, shape: ModelShape) -> Training:
    """With all that follows from the rest. Raises InputError, with the stage's own key."""
    batch, context = training.global_batch_tokens, shape.context_length
    if batch is None:
        problem = "missing; expected the tokens of one optimizer step over all workers"
        raise InputError(problem, key="training.global_batch_tokens")
    if batch % context:
        near = max(1, round(batch / context)) * context
        problem = f"found {batch}; expected a multiple of context_length ({context}), such as {near}"
        raise InputError(problem, key="training.global_batch_tokens")
    sequences = batch // context
    if sequences < training.workers.most:
        problem = f"found {training.workers}; expected at most one for each of a global batch's {sequences} sequences"
        raise InputError(problem, key="training.workers")
    if training.workers.is_elastic and not training.max_failures:
        problem = f"found 0 with {training.workers} workers, which start again when they become fewer"
        raise InputError(f"{problem}; expected 1 or more", key="training.max_failures")
    if training.offload_optimizer != "none" and training.zero_stage == 0:
        problem = f"found {training.offload_optimizer!r} with zero_stage: 0, where nothing is offloaded"
        raise InputError(f"{problem}; expected zero_stage 1, 2 or 3, or none", key="training.offload_optimizer")
    check_ramp(training, context)
    share = -(-sequences // training.workers.most)
    micro = training.micro_batch_size or max(1, DEFAULT_MICRO_BATCH_TOKENS // context)
    options = read_deepspeed(training.deepspeed, DEEPSPEED_OPTIONS)
    return training.model_copy(update={"micro_batch_size": min(micro, share), "deepspeed": options})


def _check_metrics(training: Training, accept: Accept | None, with_code: bool) -> None:
    """Refuse what cannot be imported or called here: on the workers it would fail after the cluster has started.

    Importing runs a file that the schedule names.
    """
    for metric in training.evaluate.metrics if with_code else ():
        try:
            check_call(metric.function, 2, metric.options)
        except InputError as error:
            raise InputError(error.problem, key="training.evaluate.metrics") from None
    if accept is not None and accept.metrics and not training.evaluate.metrics:
        raise InputError("found without training.evaluate.metrics, which would measure them", key="accept.metrics")


def check_optimizer(written: Optimizer, chosen: Optimizer) -> None:
    """Refuse a key that the optimizer it was written for has no use for."""
    for field in sorted(written.model_fields_set.intersection(chosen.unused)):
        fitting = "sgd" if field == "momentum" else "adamw or adam"
        problem = f"found {shown(written.model_dump(mode='json')[field])}, but {chosen.name} takes no {field}"
        raise InputError(f"{problem}; expected it with {fitting} alone", key=f"training.optimizer.{field}")


def _steps(stage: Stage, training: Training, shape: ModelShape, start_tokens: int) -> int:
    """Whole optimizer steps: a stage ends with the first step that reaches its cap."""
    course = step_schedule(training, shape.context_length)
    return cap_steps(stage.until, course, partial(token_flops, shape), start_tokens, _stable_end(training))


def _stable_end(training: Training) -> DecayStart:
    return partial(decay_start, training.lr_schedule)


def _check_growth(before: ModelShape | None, stage: ResolvedStage) -> None:
    if before is None:
        if stage.grow is not None:
            raise InputError("found in the first stage, which has nothing to grow from; remove it", key="grow")
        return
    if stage.grow is None:
        _check_unchanged(before, stage.shape)
        return
    growth = before, stage.shape, stage.grow.operator, stage.grow.options
    found = refusal(*growth) or stage_refusal(*growth, stage.tokens)
    if found:
        field, problem = found
        section = "grow" if field in Grow.model_fields else "model"
        raise InputError(problem, key=f"{section}.{field}")
    if stage.grow.rewarm:
        _check_rewarm(before, stage)


def _check_rewarm(before: ModelShape, stage: ResolvedStage) -> None:
    """Refuse one that concerns nothing, or that the stage is too short for."""
    operator, tokens = stage.grow.operator, stage.grow.rewarm.tokens
    origins = layer_origins(before, stage.shape, operator, stage.grow.options)
    changed = set(changed_fields(before, stage.shape))
    if not (changed - {"num_layers"} or any(origin.new for origin in origins) or (changed and is_trained(operator))):
        problem = f"found a rewarm, but {operator} makes no new parameters here, only copies with their state"
        raise InputError(f"{problem}; expected none, or another operator", key="grow.rewarm")
    if 2 * tokens > stage.tokens:
        problem = f"found {tokens}, which rise and fall over {2 * tokens} tokens in a stage of {stage.tokens}"
        raise InputError(f"{problem}; expected at most {stage.tokens // 2}", key="grow.rewarm.tokens")


def _check_unchanged(source: ModelShape, target: ModelShape) -> None:
    changed = changed_fields(source, target)
    if changed == ["num_layers"] and target.num_layers > source.num_layers:
        layers = f"num_layers goes from {source.num_layers} to {target.num_layers}"
        operator = "stack" if source.num_layers else "random"
        raise InputError(f"missing, though {layers}; expected for example grow: {{operator: {operator}}}", key="grow")
    if changed:
        field = changed[0]
        found, before = getattr(target, field), getattr(source, field)
        keeps = "a stage without grow keeps its shape"
        if field == "context_length":  # of rotary families it is none of the shape's
            learned = f"a {target.family} learns its positions"
            way = "expected a grow, of any operator" if found > before else f"expected {before} or more"
            keeps = f"{learned}, which can become more but not fewer; {way}"
        raise InputError(f"found {found} after {before}; {keeps}", key=f"model.{field}")
