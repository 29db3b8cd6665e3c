"""Hugging Face folders: opened by their headers, grown tensor by tensor into a new folder.

What is copied is copied as bytes, in the type it has; what is mapped is computed a slice at a time from the bytes it
needs. No tensor is ever held whole. `config.json` is written last: without it the folder is no model.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystage.errors import InputError
from raystage.families import FAMILIES, Family
from raystage.growth.apply import Grown, slices
from raystage.growth.maps import Rule
from raystage.growth.request import Growth
from raystage.hf_config import grown_config, shape_of
from raystage.hf_family import Placed, folder_table, is_buffer, placed, target_table
from raystage.shape import ModelShape
from raystage.storage import Folder
from raystage.tensorfile import (
    CHUNK_BYTES,
    StoredTensor,
    Tensor,
    cut_into_shards,
    header_bytes,
    laid_out,
    read_header,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"

# What goes along unchanged: all about the text, nothing about the weights.
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip

# The types that can be computed with, as safetensors and as torch name them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Bytes = bytes | memoryview


@dataclass(frozen=True)
class HuggingFaceModel:
    """A folder that transformers loads, seen through its config and its files' headers; `table` names its tensors."""

    folder: Folder
    config: dict[str, Any]
    shape: ModelShape
    tensors: dict[str, StoredTensor]
    table: Family

    def tables(self, target: ModelShape) -> tuple[Family, Family]:
        """The tables of this folder and of what it grows into. Raises InputError where a tensor cannot grow along."""
        return self.table, target_table(self.table, self.shape, target, self.folder.uri)


@dataclass(frozen=True)
class _Planned:
    """A tensor to be written: what it will be, by which rule, and the source's tensor if it is a plain copy."""

    tensor: Tensor
    rule: Rule
    copied: StoredTensor | None


def is_model(folder: Folder) -> bool:
    return folder.size_of(CONFIG) is not None


def open_model(folder: Folder) -> HuggingFaceModel:
    """The model in `folder`. Raises InputError where its files are no whole model."""
    config = _read_json(folder, CONFIG)
    if folder.size_of(_ADAPTER) is not None:  # transformers would load it, and perhaps a base model of its choice
        raise InputError("found an adapter; expected it merged into the weights", file=f"{folder.uri}/{_ADAPTER}")
    shape = shape_of(config, f"{folder.uri}/{CONFIG}")
    tensors = _stored_tensors(folder)
    table = folder_table(shape, {name: stored.tensor.shape for name, stored in tensors.items()}, folder.uri)
    return HuggingFaceModel(folder, config, shape, tensors, table)


def write_grown(
    source: HuggingFaceModel,
    target: Folder,
    growth: Growth,
    layers: tuple[int, ...],
    grown_from: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Write the model that `growth` makes of `source`.

    layers: for each target layer the source layer whose entries in per-layer lists of the config it takes.
    Raises InputError where the config's lists do not fit or a type cannot be computed with.
    """
    config = grown_config(source.config, growth.source, growth.target, layers, f"{source.folder.uri}/{CONFIG}")
    planned = {one.tensor.name: one for one in _planned(source, growth)}
    with _Reader(source.tensors) as reader:
        grown = Grown(growth.rules, reader.read, grown_from["seed"])

        def content(tensor: Tensor) -> Iterable[Bytes]:
            one = planned[tensor.name]
            return one.copied.chunks() if one.copied else _computed(one, grown)

        metadata = {"grown_from": json.dumps(grown_from)}
        write_weights(target, [one.tensor for one in planned.values()], content, metadata, max_shard_bytes)
    for name in source.folder.names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in _COPIED) and source.folder.size_of(name) is not None:
            target.write_whole(name, source.folder.read(name))
    target.write_whole(CONFIG, as_json(config))


# --- reading ------------------------------------------------------------------------------------


def _stored_tensors(folder: Folder) -> dict[str, StoredTensor]:
    """All tensors of the folder, by name; of a single file where there is one, as transformers does."""
    if folder.size_of(WEIGHTS) is not None:
        return read_header(folder, WEIGHTS)
    if folder.size_of(INDEX) is None:
        raise InputError(f"found neither {WEIGHTS} nor {INDEX}; expected a model saved as safetensors", file=folder.uri)
    weight_map = _read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_plain_name(name) for name in weight_map.values()):
        problem = "damaged; expected the file of every tensor"
        raise InputError(problem, key="weight_map", file=f"{folder.uri}/{INDEX}")
    files = {name: read_header(folder, name) for name in sorted(set(weight_map.values()))}
    return {tensor: files[name][tensor] for tensor, name in weight_map.items() if tensor in files[name]}


def _is_plain_name(name: object) -> bool:
    """A file of the folder itself, and of no other."""
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\\" not in name


class FolderWeights:
    """A folder's weights under the names of the model that is trained, any slice of them at a time; fp32.

    Raises InputError where the folder lacks a tensor of that model, or has one too many.
    """

    def __init__(self, model: HuggingFaceModel) -> None:
        self._parts: dict[str, list[Placed]] = {}
        for one in placed(model.shape):
            self._parts.setdefault(one.parameter, []).append(replace(one, name=_name_in(model, one.name)))
        _check_tensors(model, [one for parts in self._parts.values() for one in parts])
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


def _name_in(model: HuggingFaceModel, name: str) -> str:
    """Some folders leave the base's prefix out."""
    return name if name in model.tensors else name.removeprefix(FAMILIES[model.shape.family].base)


def _check_tensors(model: HuggingFaceModel, used: list[Placed]) -> None:
    for one in used:
        stored = model.tensors.get(one.name)
        if stored is None or stored.tensor.shape != one.shape or stored.tensor.dtype not in DTYPES:
            found = "no such tensor" if stored is None else f"found {stored.tensor.dtype} {list(stored.tensor.shape)}"
            expected = f"expected {list(one.shape)} of {', '.join(DTYPES)}"
            raise InputError(f"{found}; {expected}", key=one.name, file=model.folder.uri)
    head = {FAMILIES[model.shape.family].head} if model.shape.tied_embeddings else set()
    others = [
        name for name in model.tensors if name not in {*head, *(one.name for one in used)} and not is_buffer(name)
    ]
    if others:
        problem = f"found a tensor that a {model.shape.family} has not in training; expected none"
        raise InputError(problem, key=others[0], file=model.folder.uri)


class _Reader:
    """Slices of the folder's tensors as floats; each file is opened once."""

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
        """The flat slice [start, stop) of a tensor: fp64 where it is stored so, else fp32."""
        stored = self._tensors[parameter]
        if stored.file not in self._files:
            self._files[stored.file] = self._open.enter_context(stored.folder.open_reader(stored.file))
        size = stored.tensor.item_bytes
        return _floats(self._files[stored.file].read_at((stop - start) * size, stored.offset + start * size), stored)


def _floats(content: bytes, stored: StoredTensor) -> np.ndarray:
    match stored.tensor.dtype:
        case "BF16":  # the upper half of an fp32's bits
            return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case "F64":
            return np.frombuffer(content, np.float64)
        case "F32":
            return np.frombuffer(content, np.float32)
        case _:
            return np.frombuffer(content, np.float16).astype(np.float32)


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise InputError(f"damaged ({error}); expected JSON", file=f"{folder.uri}/{name}") from None
    if not isinstance(content, dict):
        raise InputError("damaged; expected a JSON object", file=f"{folder.uri}/{name}")
    return content


# --- writing ------------------------------------------------------------------------------------


def _planned(source: HuggingFaceModel, growth: Growth) -> list[_Planned]:
    """What is to be written, in the model's order."""
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
    """The source's tensor whose type a target has: its own source, else layer 0's, else the embedding."""
    names = (rule.source, row.format(layer=0, expert=0), *source.table.embeddings)
    return source.tensors[next(name for name in names if name in source.tensors)]


def write_weights(
    target: Folder,
    tensors: list[Tensor],
    content: Callable[[Tensor], Iterable[Bytes]],
    metadata: dict[str, str],
    max_shard_bytes: int,
) -> None:
    """Write the tensors as transformers does: in one file, or in several and an index. `content` tells the bytes of
    each, piece by piece."""
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
    """Write one file front to back. Wider types come first, as the library does it, so that all are aligned."""
    tensors = laid_out(sorted(tensors, key=lambda tensor: -tensor.item_bytes))
    with target.open_writer(name) as file:
        file.write(header_bytes(tensors, {"format": "pt", **metadata}))  # transformers asks for the format
        for tensor in tensors:
            for chunk in content(tensor):
                file.write(chunk)
    target.sync(name)


def _computed(planned: _Planned, grown: Grown) -> Iterator[memoryview]:
    """The bytes of a tensor that is no copy, from its rule."""
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
