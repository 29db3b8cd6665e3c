"""`raystage average`: the weighted average of whole models of one shape, in one process that holds little of each.

The models are raystage checkpoints or Hugging Face folders, all of one kind; the result has the same format. Weights
are summed up in float64. A checkpoint gets the moments, the step counts and the place in the data of the last model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import numpy as np

from raystage.data.trained_on import TrainedOn
from raystage.errors import InputError
from raystage.files.filesystem import Folder
from raystage.files.safetensors import CHUNK_BYTES, cut_into_shards
from raystage.models.shape import num_params, stored
from raystage.plans.averaging import weights_of
from raystage.storage import checkpoint
from raystage.storage.averaging import averaged
from raystage.storage.checkpoint import Checkpoint, Manifest
from raystage.storage.huggingface import write_averaged
from raystage.storage.shards.contents import Shards, Span
from raystage.storage.shards.writing import placed, shard_name, stream_shard
from raystage.tools.grow import MAX_SHARD_BYTES, Source, as_input_errors, fresh_progress
from raystage.units import parse_real, shown

UNIFORM, WSM = "uniform", "wsm"
WEIGHTS, CHECKPOINT = "--weights", "CHECKPOINT"
_STEP = CHUNK_BYTES // 4


def average(
    sources: Sequence[Source],
    target: Folder,
    weights: str = UNIFORM,
    decay_shape: str = "linear",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write the average of some models into `target`; what it came to, for --json.

    weights: uniform; wsm, as under a decay of this shape from the first model to the last; or a number for each model.
    Where it fails nothing stays behind. Raises InputError where the models cannot be averaged, RaystageError where the
    target cannot be written.
    """
    began = time.monotonic()
    check_alike(sources)
    found = weights_from(weights, decay_shape, sources)
    averaged_from = {"sources": [one.uri for one in sources], "stage_keys": [one.stage_key for one in sources],
                     "weights": list(found)}  # fmt: skip
    try:
        with as_input_errors(CHECKPOINT):
            if sources[0].is_checkpoint:
                _write_checkpoint(sources, found, target, averaged_from, max_shard_bytes)
            else:
                write_averaged([one.model for one in sources], found, target, averaged_from, max_shard_bytes)
    except BaseException:
        target.delete()
        raise
    return {
        **averaged_from,
        "target": target.uri,
        "kind": "checkpoint" if sources[0].is_checkpoint else "huggingface",
        "num_params": num_params(sources[-1].shape),
        "files": target.names(),
        "bytes": sum(target.size_of(name) or 0 for name in target.names()),
        "seconds": time.monotonic() - began,
    }


# --- which models, and what they count --------------------------------------------------------


def check_alike(sources: Sequence[Source]) -> None:
    """Raises InputError, about the first model that is not like the first of all."""
    first = sources[0]
    if len(sources) < 2:
        raise InputError("found one model; expected two or more", key=CHECKPOINT)
    for one in sources[1:]:
        if problem := _difference(first, one):
            raise InputError(f"{problem}, as in {first.uri}: only models of one shape have an average", key=CHECKPOINT,
                             file=one.uri)  # fmt: skip


def _difference(first: Source, other: Source) -> str | None:
    """'found num_layers 4; expected 2'; None where two models have the same tensors and the same tokens."""
    kinds = ["a checkpoint" if one.is_checkpoint else "a Hugging Face folder" for one in (first, other)]
    if kinds[0] != kinds[1]:
        return f"found {kinds[1]}; expected {kinds[0]}"
    for name, size in vars(first.shape).items():
        if (found := getattr(other.shape, name)) != size:
            return f"found {name} {shown(found)}; expected {shown(size)}"
    if first.is_checkpoint:
        tokenizers = [one.model.manifest.data_cursor.get("tokenizer_fingerprint") for one in (first, other)]
        if None not in tokenizers and tokenizers[0] != tokenizers[1]:
            return "found a model that was trained with another tokenizer; expected the same"
        return None
    return _tensor_difference(*({name: one.tensor for name, one in it.model.tensors.items()} for it in (first, other)))


def _tensor_difference(first: dict[str, Any], other: dict[str, Any]) -> str | None:
    for name in first.keys() | other.keys():
        shapes = [one[name].shape if name in one else None for one in (first, other)]
        if shapes[0] != shapes[1]:
            found, expected = (f"{name} of shape {shape}" if shape else f"no {name}" for shape in reversed(shapes))
            return f"found {found}; expected {expected}"
    return None


def weights_from(written: str, decay_shape: str, sources: Sequence[Source]) -> tuple[float, ...]:
    """What each model counts; they add up to 1. Raises InputError."""
    if written == UNIFORM:
        return weights_of(range(len(sources)), None)
    if written == WSM:
        return weights_of(_positions(sources), decay_shape)
    try:
        numbers = [parse_real(one) for one in written.split(",")]
    except ValueError:
        problem = f"found {shown(written)}; expected {UNIFORM}, {WSM}, or a number for each model such as 0.2,0.3,0.5"
        raise InputError(problem, key=WEIGHTS) from None
    if len(numbers) != len(sources):
        raise InputError(f"found {len(numbers)} numbers for {len(sources)} models; expected one for each", key=WEIGHTS)
    if min(numbers) < 0 or not sum(numbers) > 0:
        raise InputError(f"found {shown(written)}; expected numbers from 0 on, one of them above 0", key=WEIGHTS)
    return tuple(number / sum(numbers) for number in numbers)


def _positions(sources: Sequence[Source]) -> Sequence[int]:
    """Where in a run its checkpoints are; of folders that do not say so, at equal distances."""
    if not sources[0].is_checkpoint:
        return range(len(sources))
    positions = [one.model.manifest.tokens for one in sources]
    for index, (before, after) in enumerate(pairwise(positions), start=1):
        if after <= before:
            problem = f"found a checkpoint at {after} after one at {before}; expected those of one run in their order"
            raise InputError(f"{problem}, for a decay from the first to the last, or {WEIGHTS} {UNIFORM}", key=WEIGHTS,
                             file=sources[index].uri)  # fmt: skip
    return positions


# --- raystage checkpoints -----------------------------------------------------------------------


def _write_checkpoint(
    sources: Sequence[Source],
    weights: Sequence[float],
    target: Folder,
    averaged_from: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Every state of every parameter in fragments of bounded size, then the manifest."""
    models: list[Checkpoint] = [one.model for one in sources]
    last = models[-1]
    spans = sorted(
        (one.name, state, start, min(start + _STEP, one.numel))
        for one in stored(last.manifest.model)
        for state in (("fp32",) if one.spec.is_buffer else last.states)
        for start in range(0, one.numel, _STEP)
    )
    parts = cut_into_shards([4 * (stop - start) for *_, start, stop in spans], max_shard_bytes)
    read = _reader(models, weights)
    shards = placed(
        stream_shard(
            target, shard_name(number, len(parts)), spans[places.start : places.stop],
            partial(map, read, spans[places.start : places.stop]),
        )
        for number, places in enumerate(parts)
    )  # fmt: skip
    for one in models:
        one.close()
    checkpoint.commit(target, _manifest(models, shards, averaged_from))


def _reader(models: Sequence[Checkpoint], weights: Sequence[float]) -> Callable[[Span], np.ndarray]:
    def read(span: Span) -> np.ndarray:
        parameter, state, start, stop = span
        if state == "fp32":
            return averaged(models, weights, parameter, start, stop)
        return models[-1].read(parameter, state, start, stop)

    return read


def _manifest(models: Sequence[Checkpoint], shards: Shards, averaged_from: dict[str, Any]) -> Manifest:
    """That of the last model, which has seen the text of all of them."""
    last = models[-1].manifest
    return replace(
        last,
        shards=shards,
        stage_key="",
        data_cursor={**last.data_cursor, "trained_on": _seen(models).to_json()},
        progress=last.progress | fresh_progress(),
        grown_from=None,
        averaged_from=averaged_from,
    )


def _seen(models: Sequence[Checkpoint]) -> TrainedOn:
    return reduce(TrainedOn.and_of, _texts(models))


def _texts(models: Sequence[Checkpoint]) -> Iterator[TrainedOn]:
    for one in models:
        try:
            yield TrainedOn.from_json(one.manifest.data_cursor.get("trained_on"))
        except ValueError as error:
            raise InputError(f"damaged ({error})", key=CHECKPOINT, file=one.folder.uri) from None
