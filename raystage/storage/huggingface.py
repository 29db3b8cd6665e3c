"""Hugging Face folders, read and written: weights slice by slice, grown tensor by tensor into a new folder.

A copied tensor is copied as bytes, in its own type. A mapped tensor is computed slice by slice from the bytes that it
needs. No tensor is ever in memory as a whole. `config.json` is written last: without it the folder is no model.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystage.errors import InputError
from raystage.files.filesystem import FileToWrite, Folder
from raystage.files.reading import uri_in
from raystage.files.safetensors import CHUNK_BYTES, StoredTensor, Tensor, cut_into_shards, header_bytes, laid_out
from raystage.growth.apply import Grown
from raystage.growth.request import PlannedGrowth
from raystage.growth.rules import Rule, slices
from raystage.models.build import drawn_weights
from raystage.models.families import BUILT_IN
from raystage.models.hf_config import by_name, check_no_rule, grown_config
from raystage.models.hf_folder import CONFIG, INDEX, WEIGHTS, HuggingFaceModel
from raystage.models.hf_layers import deepened, is_known
from raystage.models.hf_table import StoredTensorPlace, check_alike
from raystage.models.shape import ModelShape
from raystage.models.tables.networks import NETWORKS
from raystage.storage.averaging import summed

# Files that are copied unchanged: about the text, not about the weights.
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip

# The types that can be computed with, as safetensors and as torch name them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Bytes = bytes | memoryview


@dataclass(frozen=True)
class _Planned:
    """A tensor to write: its rule, and the source's tensor if it is a plain copy."""

    tensor: Tensor
    rule: Rule
    copied: StoredTensor | None


def configured(source: HuggingFaceModel, target: ModelShape, layers: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of the model that a folder grows into. layers: for each target layer its source layer.

    Raises InputError where no configuration makes every copy what its origin is.
    """
    config, file, count = source.config, uri_in(source.folder, CONFIG), source.shape.num_layers
    if source.shape.family in {family.name for family in (*BUILT_IN, *NETWORKS)} or layers == tuple(range(count)):
        config = by_name(config, count, layers, file)
    elif is_known(config):
        config = deepened(config, layers, file, source.table, count)
    else:
        check_alike(source.table, count, source.folder.uri)
        check_no_rule(config, file)
        config = by_name(config, count, layers, file)
    return grown_config(config, source.shape, target, layers, file)


def write_grown(
    source: HuggingFaceModel,
    target: Folder,
    growth: PlannedGrowth,
    layers: tuple[int, ...],
    grown_from: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Write the model that `growth` makes of `source`.

    layers: for each target layer the source layer whose entries in per-layer lists of the config it takes. Raises
    InputError where the lists do not fit, or where a type cannot be computed with.
    """
    config = configured(source, growth.target, layers)
    planned = {one.tensor.name: one for one in _planned(source, growth)}
    with _Reader(source.tensors) as reader:
        seed = grown_from["seed"]
        grown = Grown(growth.rules, reader.read, seed, partial(drawn_weights, growth.target, seed))

        def content(tensor: Tensor) -> Iterable[Bytes]:
            one = planned[tensor.name]
            return one.copied.chunks() if one.copied else _computed(one, grown)

        metadata = {"grown_from": json.dumps(grown_from)}
        write_weights(target, [one.tensor for one in planned.values()], content, metadata, max_shard_bytes)
    _copy_others(source, target)
    target.write_whole(CONFIG, as_json(config))


def _copy_others(source: HuggingFaceModel, target: Folder) -> None:
    """The files that are about the text, and the model's own code: copied, never run."""
    copied = (*_COPIED, *(("*.py",) if "auto_map" in source.config else ()))
    for name in source.folder.names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in copied) and source.folder.size_of(name) is not None:
            target.write_whole(name, source.folder.read(name))


def write_averaged(
    sources: Sequence[HuggingFaceModel],
    weights: Sequence[float],
    target: Folder,
    averaged_from: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Write the weighted average of models that have the same tensors; in the types and with the files of the last.

    What is no floating-point number is the last model's. Raises InputError where a type cannot be computed with.
    """
    last = sources[-1]
    with ExitStack() as opened:
        readers = [opened.enter_context(_Reader(one.tensors)) for one in sources]

        def content(tensor: Tensor) -> Iterable[Bytes]:
            if tensor.dtype not in DTYPES:
                yield from last.tensors[tensor.name].chunks()
                return
            numel, step = math.prod(tensor.shape), CHUNK_BYTES // 8
            for start in range(0, numel, step):
                values = summed(readers, weights, tensor.name, start, min(start + step, numel))
                yield memoryview(torch.from_numpy(values).to(DTYPES[tensor.dtype]).view(torch.uint8).numpy())

        metadata = {"averaged_from": json.dumps(averaged_from)}
        write_weights(target, [one.tensor for one in last.tensors.values()], content, metadata, max_shard_bytes)
    _copy_others(last, target)
    target.write_whole(CONFIG, as_json(last.config))


# --- reading ------------------------------------------------------------------------------------


class FolderWeights:
    """The weights of a folder under the names of the model that is trained, slice by slice; fp32.

    Raises InputError where the folder lacks a tensor of that model, or has one too many.
    """

    def __init__(self, model: HuggingFaceModel) -> None:
        self._parts: dict[str, list[StoredTensorPlace]] = {}
        for one in model.placed():
            self._parts.setdefault(one.parameter, []).append(one)
        self._reader = _Reader(model.tensors)

    @property
    def steps(self) -> dict[str, int]:
        return dict.fromkeys(self._parts, 0)

    def has(self, states: Iterable[str]) -> bool:
        return set(states) <= {"fp32"}

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of a parameter's weights: float32."""
        pieces = []
        for one in self._parts[parameter]:
            first, last = max(start, one.start), min(stop, one.stop)
            if first < last:
                pieces.append(self._reader.read(one.name, state, first - one.start, last - one.start))
        return np.concatenate([np.empty(0, np.float32), *pieces]).astype(np.float32, copy=False)

    def close(self) -> None:
        self._reader.close()


class _Reader:
    """Slices of the folder's tensors as floats. Each file is opened once."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._files: dict[str, pa.NativeFile] = {}
        self._open = ExitStack()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.clear()
        self._open.close()

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of a tensor: fp64 where it is stored as fp64, else fp32."""
        stored = self._tensors[parameter]
        if stored.file not in self._files:
            self._files[stored.file] = self._open.enter_context(stored.folder.open_reader(stored.file))
        size = stored.tensor.item_bytes
        return _floats(self._files[stored.file].read_at((stop - start) * size, stored.offset + start * size), stored)


def _floats(content: bytes, stored: StoredTensor) -> np.ndarray:
    match stored.tensor.dtype:
        case "BF16":  # the upper 16 bits of an fp32
            return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case "F64":
            return np.frombuffer(content, np.float64)
        case "F32":
            return np.frombuffer(content, np.float32)
        case _:
            return np.frombuffer(content, np.float16).astype(np.float32)


# --- writing ------------------------------------------------------------------------------------


def _planned(source: HuggingFaceModel, growth: PlannedGrowth) -> list[_Planned]:
    """The tensors to write, in the order of the model."""
    names = {rule.target: parameter.spec.name for parameter, rule in zip(growth.parameters, growth.rules, strict=True)}
    planned = []
    for rule in growth.rules:
        like = _like(source, rule, names[rule.target])
        is_copy = rule.weights == "copy" and len(rule.sources) == 1
        if not is_copy and like.tensor.dtype not in DTYPES:
            problem = f"found the type {like.tensor.dtype}; expected one of {', '.join(DTYPES)} where it is no copy"
            raise InputError(problem, key=like.tensor.name, file=source.folder.uri)
        planned.append(_Planned(Tensor(rule.target, like.tensor.dtype, rule.shape), rule, like if is_copy else None))
    return planned


def _like(source: HuggingFaceModel, rule: Rule, row: str) -> StoredTensor:
    """The source's tensor whose type a target tensor gets: its own source, else that of layer 0, else the embedding."""
    names = (rule.source, row.format(layer=0, expert=0), *source.table.embeddings)
    return source.tensors[next(name for name in names if name in source.tensors)]


def write_weights(
    target: Folder,
    tensors: list[Tensor],
    content: Callable[[Tensor], Iterable[Bytes]],
    metadata: dict[str, str],
    max_shard_bytes: int,
) -> None:
    """Write the tensors as transformers does: in one file, or in several with an index.

    `content` yields the bytes of each tensor, part by part.
    """
    shards = cut_into_shards([tensor.num_bytes for tensor in tensors], max_shard_bytes)
    weight_map = {}
    for number, places in enumerate(shards, start=1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(target, name, [tensors[place] for place in places], metadata, content)
        weight_map |= {tensors[place].name: name for place in places}
    if len(shards) > 1:
        target.write_whole(INDEX, _index_json(tensors, weight_map))


def _write_file(
    target: Folder,
    name: str,
    tensors: list[Tensor],
    metadata: dict[str, str],
    content: Callable[[Tensor], Iterable[Bytes]],
) -> None:
    """Write one file from front to back. Wider types come first, as in the library, so that all are aligned."""
    tensors = laid_out(sorted(tensors, key=lambda tensor: -tensor.item_bytes))

    def write(file: FileToWrite) -> None:
        file.write(header_bytes(tensors, {"format": "pt", **metadata}))  # transformers requires the format
        for tensor in tensors:
            for chunk in content(tensor):
                file.write(chunk)

    target.write_stream(name, write)
    target.sync(name)


def _computed(planned: _Planned, grown: Grown) -> Iterator[memoryview]:
    """The bytes of a tensor that is not a plain copy, computed by its rule."""
    dtype = DTYPES[planned.tensor.dtype]
    for start, stop in slices(planned.rule, CHUNK_BYTES // 4):
        values = torch.from_numpy(grown.slice(planned.rule.target, "fp32", start, stop))
        yield memoryview(values.to(dtype).view(torch.uint8).numpy())


def _index_json(tensors: list[Tensor], weight_map: dict[str, str]) -> bytes:
    total = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "total_size": sum(tensor.num_bytes for tensor in tensors),
    }
    return as_json({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})


def as_json(content: dict[str, Any]) -> bytes:
    """As transformers writes its JSON files."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
