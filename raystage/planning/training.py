"""A training section with everything that follows from the rest: that of a stage, and that of the baselines."""

from __future__ import annotations

from collections.abc import Sequence

from raystage.config.deepspeed import DEEPSPEED_OPTIONS, read_deepspeed
from raystage.config.schedule import Schedule
from raystage.config.training import LrSchedule, Optimizer, Training
from raystage.config.types import SELECTIVE
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.models.shape import ModelShape, table_of
from raystage.objectives.table import OBJECTIVES
from raystage.planning.draft import Context, StageDraft
from raystage.plans.learning_rate import span_length
from raystage.plans.steps import check_ramp, sample_length
from raystage.units import TOKENS, Unit, shown
from raystage.user_code import check_call

DEFAULT_MICRO_BATCH_TOKENS = 8_192

# The baselines have no ramp, and are evaluated like the last stage.
_NOT_ITS_OWN = ("ramp", "evaluate")
# The optimizers that take a key.
_TAKEN_BY = {"momentum": "sgd or muon", "fused": "adamw or adam"}


def fix_training(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the training section complete, its optimizer's keys and its metrics checked."""
    written = context.schedule.stages[draft.index]
    check_optimizer(written.training.optimizer, draft.stage.training.optimizer)
    begins = _from_current(draft.stage.training, written.training, draft.index)
    training = resolve_training(begins, draft.shape, draft.unit)
    _check_metrics(training, draft, context.sources.with_code)
    if training.compile and draft.within_documents:
        problem = "found true with data.window.mask: document, where every batch has documents of other lengths"
        raise InputError(f"{problem}; expected false", key="training.compile")
    check_cross_entropy(training, draft)
    return replaced(draft, training=training)


def check_cross_entropy(training: Training, draft: StageDraft) -> None:
    """Refuse a loss in chunks where no head of a language model gives it, or not it alone. Raises InputError."""
    kernel, key = training.cross_entropy, "training.cross_entropy"
    if kernel == "whole":
        return
    table = table_of(draft.shape)
    if not draft.objective.entry.in_chunks:
        fitting = " or ".join(name for name, one in OBJECTIVES.items() if one.in_chunks)
        problem = f"found {kernel!r} with objective: {draft.objective.name}, whose loss is not that of tokens alone"
        raise InputError(f"{problem}; expected whole, or objective: {fitting}", key=key)
    if not table.head:
        problem = f"found {kernel!r} with family: {draft.shape.family}, whose head no table names"
        raise InputError(f"{problem}; expected whole", key=key)
    if table.constants.get("final_logit_softcapping") is not None:
        problem = f"found {kernel!r} with family: {draft.shape.family}, which bends the scores behind its head"
        raise InputError(f"{problem}; expected whole", key=key)
    if kernel == "liger" and not training.gpus_per_worker:
        problem = "found 'liger' with gpus_per_worker: 0, and its kernels run on GPUs alone"
        raise InputError(f"{problem}; expected chunked, or gpus_per_worker: 1", key=key)
    if kernel == "liger" and training.deterministic:
        problem = "found 'liger' with deterministic: true, and torch cannot check kernels that are not its own"
        raise InputError(f"{problem}; expected chunked", key=key)


def _from_current(training: Training, written: Training, index: int) -> Training:
    """The section of a stage; of one whose rate begins at the current one, without the warm-up that the file may have.

    written: what the stage itself sets.
    """
    rate = training.lr_schedule
    if rate.start is None:
        return training
    key = "training.lr_schedule"
    if not index:
        problem = "found current in the first stage, before which there is no rate; expected it in a later stage"
        raise InputError(problem, key=f"{key}.from")
    if written.lr_schedule.warmup:
        problem = "found beside from: current, where the rate begins as high as it is; expected no warm-up"
        raise InputError(problem, key=f"{key}.warmup")
    if "lr" in written.optimizer.model_fields_set:
        problem = f"found {written.optimizer.lr:g} beside lr_schedule.from: current, where the rate begins as it is"
        raise InputError(f"{problem}; expected one of them", key="training.optimizer.lr")
    return training.model_copy(update={"lr_schedule": rate.model_copy(update={"warmup": 0.0})})


def check_run_rate(rate: LrSchedule, key: str) -> None:
    """Refuse `from: current` in a rate over a whole run."""
    if rate.start is not None:
        problem = "found current in the rate of a whole run; expected it in the lr_schedule of a stage"
        raise InputError(problem, key=f"{key}.from")


def resolve_training(training: Training, shape: ModelShape, unit: Unit) -> Training:
    """The section with its micro batch and its DeepSpeed options. Raises InputError, with the stage's own key."""
    batch, length, key = (
        training.global_batch,
        sample_length(shape.context_length, unit),
        f"training.global_batch_{unit}",
    )
    if batch is None:
        raise InputError(f"missing; expected the {unit} of one optimizer step over all workers", key=key)
    if batch % length:
        near = max(1, round(batch / length)) * length
        raise InputError(f"found {batch}; expected a multiple of context_length ({length}), such as {near}", key=key)
    sequences = batch // length
    if sequences < training.workers.most:
        batches = f"{sequences} {'sequences' if unit == TOKENS else unit}"
        problem = (
            f"found {training.workers}; expected at most one for each of a global batch's {batches}, "
            f"or {key} of at least {training.workers.most * length}"
        )
        raise InputError(problem, key="training.workers")
    if training.gpus_per_worker > 1:
        problem = f"found {training.gpus_per_worker}, but a worker trains on one GPU"
        raise InputError(f"{problem}; expected 1, and more training.workers", key="training.gpus_per_worker")
    if training.workers.is_elastic and not training.max_failures:
        problem = f"found 0 with {training.workers} workers, which start again when they become fewer"
        raise InputError(f"{problem}; expected 1 or more", key="training.max_failures")
    if training.offload_optimizer != "none" and training.zero_stage == 0:
        problem = f"found {training.offload_optimizer!r} with zero_stage: 0, where nothing is offloaded"
        raise InputError(f"{problem}; expected zero_stage 1, 2 or 3, or none", key="training.offload_optimizer")
    if training.optimizer.name == "muon" and training.offload_optimizer != "none":
        problem = f"found {training.offload_optimizer!r} with optimizer.name: muon, whose workers exchange matrices"
        raise InputError(f"{problem} between their devices; expected none", key="training.offload_optimizer")
    if training.compile and training.zero_stage == 3:
        problem = "found true with zero_stage: 3, which gathers the parameters of each module when it is called"
        raise InputError(f"{problem}; expected zero_stage 0, 1 or 2, or false", key="training.compile")
    _check_recomputed(training)
    _check_places(training)
    check_ramp(training, shape.context_length, unit)
    share = -(-sequences // training.workers.most)
    micro = training.micro_batch_size or max(1, DEFAULT_MICRO_BATCH_TOKENS // shape.context_length)
    options = read_deepspeed(training.deepspeed, DEEPSPEED_OPTIONS)
    return training.model_copy(update={"micro_batch_size": min(micro, share), "deepspeed": options})


def _check_recomputed(training: Training) -> None:
    """Refuse what is computed again in parts where torch cannot tell the parts. Raises InputError."""
    if training.activation_checkpointing != SELECTIVE:
        return
    key = "training.activation_checkpointing"
    if training.zero_stage == 3:
        problem = "found selective with zero_stage: 3, which gathers parameters at other places the second time"
        raise InputError(f"{problem}; expected zero_stage 0, 1 or 2, or true", key=key)
    if training.compile:
        problem = "found selective with compile: true, where the compiler chooses what is computed again"
        raise InputError(f"{problem}; expected true or false", key=key)


def _check_places(training: Training) -> None:
    """Refuse what cannot decide where workers run. Raises InputError."""
    if training.accelerator and not training.gpus_per_worker:
        problem = f"found {shown(training.accelerator)} with gpus_per_worker: 0, whose workers use no GPU"
        raise InputError(f"{problem}; expected gpus_per_worker: 1", key="training.accelerator")
    if training.node_labels and training.workers.is_elastic:
        # To choose the number of workers, Ray Train counts the nodes without these labels, too.
        problem = f"found with {training.workers} workers, whose number Ray chooses by all nodes of the cluster"
        raise InputError(f"{problem}; expected one number of workers", key="training.node_labels")


def check_optimizer(written: Optimizer, chosen: Optimizer) -> None:
    """Refuse a key that the optimizer it was written for does not use."""
    for field in sorted(written.model_fields_set.intersection(chosen.unused)):
        fitting = _TAKEN_BY.get(field, "adamw, adam or muon")
        problem = f"found {shown(written.model_dump(mode='json')[field])}, but {chosen.name} takes no {field}"
        raise InputError(f"{problem}; expected it with {fitting} alone", key=f"training.optimizer.{field}")


def _check_metrics(training: Training, draft: StageDraft, with_code: bool) -> None:
    """Refuse metrics that cannot be imported or called here: on the workers they would fail after the cluster started.

    Importing runs a file that the schedule names.
    """
    for metric in training.evaluate.metrics if with_code else ():
        try:
            check_call(metric.function, 2, metric.options)
        except InputError as error:
            raise InputError(error.problem, key="training.evaluate.metrics") from None
    accept, judged_by = draft.accept, OBJECTIVES[draft.objective.entry.judge]
    if accept is None:
        return
    if accept.metrics and not training.evaluate.metrics and not judged_by.measures:
        raise InputError("found without training.evaluate.metrics, which would measure them", key="accept.metrics")
    if accept.accuracy_above is not None and "accuracy" not in judged_by.shows:
        problem = f"found {accept.accuracy_above} with {draft.objective.name}, where nothing is right or wrong"
        raise InputError(f"{problem}; expected eval_loss_below", key="accept.accuracy_above")


# --- of the baselines -------------------------------------------------------------------------


def baseline_stage(schedule: Schedule, stages: Sequence[StageDraft]) -> StageDraft:
    """The last stage, trained as a baseline is. Raises InputError where `baseline.training` does not fit it.

    A baseline is trained like the last stage, without what belongs to the staging: a ramp, rates by depth, which spare
    what was learned before, and a rate of the last stage's own, which is the end of a schedule and not a whole one.
    `baseline.training` takes precedence over the latter two.
    """
    last, written = stages[-1], schedule.baseline.training
    optimizer = last.training.optimizer.model_copy(update={"lr_by_depth": 1.0})
    changes = {"ramp": None, "lr_schedule": whole_run_rate(schedule, stages), "optimizer": optimizer}
    if not written.model_fields_set:
        return replaced(last, training=last.training.model_copy(update=changes))
    for field in _NOT_ITS_OWN:
        if field in written.model_fields_set:
            problem = "found in the baseline, which has none of its own; remove it"
            raise InputError(problem, key=f"baseline.training.{field}")
    check_run_rate(written.lr_schedule, "baseline.training.lr_schedule")
    training = schedule.resolved(len(stages) - 1).training.model_copy(update=changes).overlaid(written)
    try:
        check_optimizer(written.optimizer, training.optimizer)
        resolved = resolve_training(training, last.shape, last.unit)
        check_cross_entropy(resolved, last)
        return replaced(last, training=resolved)
    except InputError as error:
        raise InputError(error.problem, key=f"baseline.{error.key}") from None


def whole_run_rate(schedule: Schedule, stages: Sequence[StageDraft]) -> LrSchedule:
    """The learning-rate schedule of the baselines.

    Where the last stage has one of its own: the file's, if that decays, else the last stage's kind. Either way with a
    warm-up: the one that the staged run began with. One that begins at the current rate continues the file's, also
    where the file does not set it.
    """
    first, last = stages[0], stages[-1]
    own, of_file = last.training.lr_schedule, schedule.training.lr_schedule
    if not last.own_rate or len(stages) == 1:
        return own
    is_set = "lr_schedule" in schedule.training.model_fields_set or own.start is not None
    decays, own = is_set and of_file.kind != "constant", own.model_copy(update={"start": None})
    if decays and of_file.warmup:
        return of_file
    total = first.duration if first.own_rate else sum(stage.duration for stage in stages)
    warmup = span_length(first.training.lr_schedule.warmup, total)
    rate = of_file if decays else own
    return rate.model_copy(update={"warmup": float(warmup)}) if warmup else rate
