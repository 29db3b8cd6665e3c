"""From a stage as written to a stage with every value known, and the checks that take more than one key."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from raystage.corpus import BYTE_TOKENIZER, Corpus, read_corpus, tokenizer_fingerprint
from raystage.errors import InputError
from raystage.growth.operator import changed_fields, refusal
from raystage.schedule import Data, Grow, LrSchedule, Model, Schedule, Section, Stage, Training, Until
from raystage.shape import ModelShape, flops_per_token
from raystage.units import parse_bool, parse_count, parse_real, shown

BYTE_VOCABULARY = 257  # 256 bytes and the end of a document
DEFAULT_MICRO_BATCH_TOKENS = 8_192


def _size(value: object) -> int:
    size = parse_count(value)
    if size < 0:
        raise ValueError(f"found {shown(value)}; expected at least 0")
    return size


def _positive(value: object) -> float:
    number = parse_real(value)
    if number <= 0:
        raise ValueError(f"found {shown(value)}; expected more than 0")
    return number


def _data_type(value: object) -> str:
    if value not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"found {shown(value)}; expected 'fp32', 'bf16' or 'fp16'")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {shown(value)}; expected text")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"found {shown(value)}; expected a list of texts")
    return [_text(entry) for entry in value]


# DeepSpeed options a schedule may pass on: how to read each, or a section's own options.
# DeepSpeed itself says nothing of an option it does not know.
DEEPSPEED_OPTIONS: dict = {
    "zero_optimization": {
        "allgather_bucket_size": _size,
        "allgather_partitions": parse_bool,
        "contiguous_gradients": parse_bool,
        "overlap_comm": parse_bool,
        "reduce_bucket_size": _size,
        "reduce_scatter": parse_bool,
        "stage3_gather_16bit_weights_on_model_save": parse_bool,
        "stage3_max_live_parameters": _size,
        "stage3_max_reuse_distance": _size,
        "stage3_param_persistence_threshold": _size,
        "stage3_prefetch_bucket_size": _size,
        "sub_group_size": _size,
    },
    "activation_checkpointing": {
        "contiguous_memory_optimization": parse_bool,
        "cpu_checkpointing": parse_bool,
        "number_checkpoints": _size,
        "partition_activations": parse_bool,
        "profile": parse_bool,
        "synchronize_checkpoint_boundary": parse_bool,
    },
    "comms_logger": {
        "debug": parse_bool,
        "enabled": parse_bool,
        "prof_all": parse_bool,
        "prof_ops": _texts,
        "verbose": parse_bool,
    },
    "communication_data_type": _data_type,
    "dump_state": parse_bool,
    "flops_profiler": {
        "detailed": parse_bool,
        "enabled": parse_bool,
        "module_depth": parse_count,
        "output_file": _text,
        "profile_step": _size,
        "recompute_fwd_factor": parse_real,
        "top_modules": _size,
    },
    "gradient_predivide_factor": _positive,
    "memory_breakdown": parse_bool,
    "prescale_gradients": parse_bool,
    "steps_per_print": _size,
    "wall_clock_breakdown": parse_bool,
}
# DeepSpeed options raystage works out itself, and from what.
DEEPSPEED_OWNED = {
    "train_batch_size": "training.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_tokens",
    "gradient_clipping": "training.gradient_clipping",
    "optimizer": "training.optimizer",
    "scheduler": "training.lr_schedule",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "zero_optimization.stage": "training.zero_stage",
}


@dataclass(frozen=True)
class DataPlan:
    """What is read. `fingerprint` identifies the text itself and `tokenizer_fingerprint` the tokenizer
    ("bytes", a hub name, or the hash of a folder's files), wherever they lie."""

    source: str
    path: tuple[str, ...]
    tokenizer: str
    validation_fraction: float
    fingerprint: str
    tokenizer_fingerprint: str = BYTE_TOKENIZER


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

    @property
    def tokens(self) -> int:
        return self.steps * self.training.global_batch_tokens


def resolve(schedule: Schedule) -> tuple[ResolvedStage, ...]:
    """Every stage resolved. Raises InputError at the first thing that does not fit."""
    _check_names(schedule)
    corpora: dict[tuple, Corpus] = {}
    stages: list[ResolvedStage] = []
    for index in range(len(schedule.stages)):
        previous = stages[-1] if stages else None
        try:
            stages.append(_resolve_stage(schedule, index, corpora))
            _check_growth(previous, stages[-1])
        except InputError as error:
            raise InputError(error.problem, key=written_key(schedule, index, error.key)) from None
    return tuple(stages)


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
        if isinstance(place, Section) and step in place.model_fields_set:
            place = getattr(place, step)
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


def _resolve_stage(schedule: Schedule, index: int, corpora: dict[tuple, Corpus]) -> ResolvedStage:
    written, stage = schedule.stages[index], schedule.resolved(index)
    data = _resolve_data(stage.data, corpora)
    shape = resolve_shape(stage.model, stage.data)
    training = _resolve_training(stage.training, shape)
    return ResolvedStage(
        name=stage.name,
        shape=shape,
        data=data,
        training=training,
        grow=stage.grow,
        steps=_steps(stage, training, shape),
        own_rate="lr_schedule" in written.training.model_fields_set,
    )


def resolve_shape(model: Model, data: Data) -> ModelShape:
    """The model's shape with what follows filled in: heads, feed-forward size, vocabulary."""
    for field in ("num_layers", "hidden_size", "num_heads", "context_length"):
        if getattr(model, field) is None:
            raise InputError(
                "missing; expected a number, in the file's model section or a stage's", key=f"model.{field}"
            )
    num_kv_heads = model.num_kv_heads or model.num_heads
    if model.num_heads % num_kv_heads:
        problem = f"found {num_kv_heads}; expected a divisor of num_heads ({model.num_heads})"
        raise InputError(problem, key="model.num_kv_heads")
    return ModelShape(
        family=model.family,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=num_kv_heads,
        head_size=_head_size(model),
        ffn_size=model.ffn_size or 4 * model.hidden_size,
        vocab_size=_vocab_size(model, data),
        context_length=model.context_length,
        tied_embeddings=model.tied_embeddings,
    )


def _head_size(model: Model) -> int:
    if model.head_size is not None:
        if model.head_size % 2:
            problem = f"found {model.head_size}; expected an even number, for rotary positions"
            raise InputError(problem, key="model.head_size")
        return model.head_size
    head_size, left = divmod(model.hidden_size, model.num_heads)
    if left or head_size % 2:
        raise InputError(
            f"found {model.hidden_size} for {model.num_heads} heads; expected a multiple of {2 * model.num_heads} "
            f"(rotary positions need heads of even size), or a head_size beside it",
            key="model.hidden_size",
        )
    return head_size


def _vocab_size(model: Model, data: Data) -> int:
    if data.tokenizer != BYTE_TOKENIZER:
        if model.vocab_size is None:
            raise InputError(f"missing; expected the size of the tokenizer {data.tokenizer!r}", key="model.vocab_size")
        return model.vocab_size
    if model.vocab_size is not None and model.vocab_size < BYTE_VOCABULARY:
        problem = f"found {model.vocab_size}; expected at least {BYTE_VOCABULARY} for the byte tokenizer"
        raise InputError(problem, key="model.vocab_size")
    return model.vocab_size or BYTE_VOCABULARY


def _resolve_data(data: Data, corpora: dict[tuple, Corpus]) -> DataPlan:
    if data.source == "text" and not data.path:
        raise InputError("missing; expected a file or folder, or a list of them, for source: text", key="data.path")
    if data.source != "text" and data.path:
        problem = f"found a path, but source {data.source} reads none; expected source: text, or path: []"
        raise InputError(problem, key="data.path")
    source = (data.source, data.path)
    if source not in corpora:
        corpora[source] = read_corpus(*source)
    _check_split(corpora[source], data.validation_fraction)
    return DataPlan(
        source=data.source,
        path=data.path,
        tokenizer=data.tokenizer,
        validation_fraction=data.validation_fraction,
        fingerprint=corpora[source].fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint(data.tokenizer),
    )


def _check_split(corpus: Corpus, fraction: float) -> None:
    """Refuse a split with nothing on one side: documents are held out by their hash, so few may fall on one."""
    training, held_out = corpus.split(fraction)
    if training and held_out:
        return
    count, working = len(corpus.documents), corpus.working_fraction()
    if working is None:
        found = "1 document" if count == 1 else f"{count} documents of one and the same text"
        raise InputError(f"found {found}; expected two or more, some of them to hold out", key="data.path")
    side = "holds out none" if training else "leaves none for training"
    problem = (
        f"found {fraction:g}, which {side} of {count} documents; expected more documents, or for example {working}"
    )
    raise InputError(problem, key="data.validation_fraction")


def _resolve_training(training: Training, shape: ModelShape) -> Training:
    batch, context = training.global_batch_tokens, shape.context_length
    if batch is None:
        problem = "missing; expected the tokens of one optimizer step over all workers"
        raise InputError(problem, key="training.global_batch_tokens")
    if batch % context:
        near = max(1, round(batch / context)) * context
        problem = f"found {batch}; expected a multiple of context_length ({context}), such as {near}"
        raise InputError(problem, key="training.global_batch_tokens")
    sequences = batch // context
    if sequences < training.workers:
        problem = f"found {training.workers}; expected at most one for each of a global batch's {sequences} sequences"
        raise InputError(problem, key="training.workers")
    share = -(-sequences // training.workers)
    micro = training.micro_batch_size or max(1, DEFAULT_MICRO_BATCH_TOKENS // context)
    options = read_deepspeed(training.deepspeed, DEEPSPEED_OPTIONS)
    return training.model_copy(update={"micro_batch_size": min(micro, share), "deepspeed": options})


def read_deepspeed(options: dict, known: dict, prefix: str = "") -> dict:
    """The options that are set, read as `known` says; one that is null is not set.

    Raises InputError for options that are raystage's own to set, that nobody knows, or of the wrong kind.
    """
    read = {}
    for name, value in options.items():
        reader = _known_option(name, known, prefix)
        if value is not None:
            read[name] = _read_option(f"{prefix}{name}", value, reader)
    return read


def _known_option(name: str, known: dict, prefix: str) -> Callable | dict:
    path, key = f"{prefix}{name}", f"training.deepspeed.{prefix}{name}"
    if path in DEEPSPEED_OWNED:
        raise InputError(f"is worked out from {DEEPSPEED_OWNED[path]}; set that instead", key=key)
    if name not in known:
        close = difflib.get_close_matches(name, [*known, *DEEPSPEED_OWNED], 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        raise InputError(f"not an option that is passed on to DeepSpeed; {hint}", key=key)
    return known[name]


def _read_option(path: str, value: object, reader: Callable | dict) -> object:
    if isinstance(reader, dict):
        if not isinstance(value, dict):
            problem = f"found {shown(value)}; expected a mapping of keys to values"
            raise InputError(problem, key=f"training.deepspeed.{path}")
        return read_deepspeed(value, reader, f"{path}.")
    try:
        return reader(value)
    except ValueError as error:
        raise InputError(str(error), key=f"training.deepspeed.{path}") from None


def _steps(stage: Stage, training: Training, shape: ModelShape) -> int:
    """Whole optimizer steps: a stage ends with the first step that reaches its budget."""
    until: Until = stage.until
    given = [field for field in Until.model_fields if getattr(until, field) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        raise InputError(f"found {found}; expected exactly one of tokens, steps, flops", key="until")
    if until.steps is not None:
        return until.steps
    batch = training.global_batch_tokens
    if until.tokens is not None:
        return -(-until.tokens // batch)
    return -(-until.flops // (batch * flops_per_token(shape)))


def _check_growth(previous: ResolvedStage | None, stage: ResolvedStage) -> None:
    if previous is None:
        if stage.grow is not None:
            raise InputError("found in the first stage, which has nothing to grow from; remove it", key="grow")
        return
    if stage.grow is None:
        _check_unchanged(previous.shape, stage.shape)
        return
    found = refusal(previous.shape, stage.shape, stage.grow.operator, stage.grow.options)
    if found:
        field, problem = found
        section = "grow" if field in Grow.model_fields else "model"
        raise InputError(problem, key=f"{section}.{field}")


def _check_unchanged(source: ModelShape, target: ModelShape) -> None:
    changed = changed_fields(source, target)
    if changed == ["num_layers"] and target.num_layers > source.num_layers:
        layers = f"num_layers goes from {source.num_layers} to {target.num_layers}"
        operator = "stack" if source.num_layers else "random"
        raise InputError(f"missing, though {layers}; expected for example grow: {{operator: {operator}}}", key="grow")
    if changed:
        field = changed[0]
        found, before = getattr(target, field), getattr(source, field)
        raise InputError(f"found {found} after {before}; a stage without grow keeps its shape", key=f"model.{field}")


def span_tokens(span: float, total: int) -> int:
    """A span of a run in tokens: below 1 a fraction of the whole."""
    return round(span * total) if span < 1 else round(span)


def check_rate(schedule: LrSchedule, total: int, key: str) -> None:
    """Refuse a warm-up and decay that do not fit into `total` tokens."""
    warmup = span_tokens(schedule.warmup, total)
    decay = span_tokens(schedule.decay, total) if schedule.kind == "wsd" else 0
    if warmup + decay > total:
        stretches = f"a warm-up of {warmup}" + (f" and a decay of {decay}" if decay else "")
        raise InputError(f"found {stretches} tokens in a run of {total}; expected them to fit into it", key=key)
