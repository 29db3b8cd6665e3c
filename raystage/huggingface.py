"""Hugging Face folders: opened by their headers, grown tensor by tensor into a new folder.

What is copied is copied as bytes, in the type it has; what is mapped is computed a slice at a time from the bytes it
needs. No tensor is ever held whole. `config.json` is written last: without it the folder is no model.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystage.errors import InputError
from raystage.families import Family
from raystage.growth.apply import Grown, slices
from raystage.growth.maps import Rule
from raystage.growth.request import Growth
from raystage.hf_config import grown_config, shape_of
from raystage.hf_family import folder_table, target_table
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

# What goes along unchanged: all about the text, nothing about the weights.
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip

# The types that can be computed with, as safetensors and as torch name them.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    planned = _planned(source, growth)
    shards = cut_into_shards([one.tensor.num_bytes for one in planned], max_shard_bytes)
    metadata = {"format": "pt", "grown_from": json.dumps(grown_from)}  # transformers asks for the format
    weight_map = {}
    with _Reader(source.tensors) as reader:
        grown = Grown(growth.rules, reader.read, grown_from["seed"])
        for number, places in enumerate(shards, start=1):
            name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_file(target, name, [planned[place] for place in places], metadata, grown)
            weight_map |= {planned[place].tensor.name: name for place in places}
    if len(shards) > 1:
        target.write_whole(INDEX, _index_json(planned, weight_map))
    for name in source.folder.names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in _COPIED) and source.folder.size_of(name) is not None:
            target.write_whole(name, source.folder.read(name))
    target.write_whole(CONFIG, _json(config))


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


class _Reader:
    """Slices of the folder's tensors as floats; each file is opened once."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._files: dict[str, pa.NativeFile] = {}
        self._open = ExitStack()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
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
        if not is_copy and like.tensor.dtype not in _DTYPES:
            problem = f"found the type {like.tensor.dtype}; expected one of {', '.join(_DTYPES)} where it is no copy"
            raise InputError(problem, key=like.tensor.name, file=source.folder.uri)
        planned.append(_Planned(Tensor(rule.target, like.tensor.dtype, rule.shape), rule, like if is_copy else None))
    return planned


def _like(source: HuggingFaceModel, rule: Rule, row: str) -> StoredTensor:
    """The source's tensor whose type a target has: its own source, else layer 0's, else the embedding."""
    names = (rule.source, row.format(layer=0, expert=0), *source.table.embeddings)
    return source.tensors[next(name for name in names if name in source.tensors)]


def _write_file(target: Folder, name: str, planned: list[_Planned], metadata: dict[str, str], grown: Grown) -> None:
    """Write one file front to back. Wider types come first, as the library does it, so that all are aligned."""
    planned = sorted(planned, key=lambda one: -one.tensor.item_bytes)
    with target.open_writer(name) as file:
        file.write(header_bytes(laid_out(one.tensor for one in planned), metadata))
        for one in planned:
            for chunk in one.copied.chunks() if one.copied else _computed(one, grown):
                file.write(chunk)
    target.sync(name)


def _computed(planned: _Planned, grown: Grown) -> Iterator[memoryview]:
    """The bytes of a tensor that is no copy, from its rule."""
    dtype = _DTYPES[planned.tensor.dtype]
    for start, stop in slices(planned.rule, CHUNK_BYTES // 4):
        values = torch.from_numpy(grown.slice(planned.rule.target, "fp32", start, stop))
        yield memoryview(values.to(dtype).view(torch.uint8).numpy())


def _index_json(planned: list[_Planned], weight_map: dict[str, str]) -> bytes:
    total = {
        "total_parameters": sum(int(np.prod(one.tensor.shape)) for one in planned),
        "total_size": sum(one.tensor.num_bytes for one in planned),
    }
    return _json({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
