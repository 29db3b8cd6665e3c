"""The DeepSpeed options that a schedule may pass on, and how each is read.

DeepSpeed itself accepts unknown options without a message.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from raystage.errors import InputError
from raystage.units import parse_bool, parse_count, parse_real, shown


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


# How each option is read; for a section its own options.
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
# Options that only decide what DeepSpeed logs: no result depends on them.
ONLY_LOGGED = frozenset({
    "comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print", "wall_clock_breakdown",
})  # fmt: skip
# DeepSpeed options that raystage sets itself, and the keys that they follow from.
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
    "zero_optimization.offload_optimizer": "training.offload_optimizer",
}


def read_deepspeed(options: dict, known: dict, prefix: str = "") -> dict:
    """The options that are set, read as `known` says. An option that is null is not set.

    Raises InputError for options that raystage sets itself, that are unknown, or that have the wrong type.
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
