"""Hugging Face folders of Llama models: opened by their headers, grown tensor by tensor into a new folder.

What is copied is copied as bytes, in the type it has; no tensor is ever held whole. `config.json` is
written last: without it the folder is no model.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystage.errors import InputError
from raystage.growth.apply import grown_slice, slices
from raystage.growth.operator import GrowthMap, Rule
from raystage.shape import FAMILIES, ModelShape, parameters
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
from raystage.units import shown

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What goes along unchanged: all about the text, nothing about the weights.
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip

# transformers' name of each field, and what LlamaConfig takes where it is left out.
_FIELDS = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "ffn_size": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
}
_PER_LAYER = ("layer_types", "mlp_layer_types")  # lists in a config with an entry for every layer
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class HuggingFaceModel:
    """A folder that transformers loads, seen through its config and its files' headers."""

    folder: Folder
    config: dict[str, Any]
    shape: ModelShape
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True)
class _Planned:
    """A tensor to be written: what it will be, by which rule, and the source's tensor that the rule names."""

    tensor: Tensor
    rule: Rule
    source: StoredTensor


def is_model(folder: Folder) -> bool:
    return folder.size_of(CONFIG) is not None


def open_model(folder: Folder) -> HuggingFaceModel:
    """The model in `folder`. Raises InputError where its files are no whole Llama model."""
    config = _read_json(folder, CONFIG)
    shape = _shape(config, f"{folder.uri}/{CONFIG}")
    tensors = _stored_tensors(folder)
    _check_tensors(folder, shape, tensors)
    return HuggingFaceModel(folder, config, shape, tensors)


def write_grown(
    source: HuggingFaceModel,
    target: Folder,
    shape: ModelShape,
    rules: GrowthMap,
    layers: tuple[int, ...],
    grown_from: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Write the model of `shape` that `rules` make of `source`.

    layers: for each target layer the source layer whose entries in per-layer lists of the config it takes.
    Raises InputError where the config's lists do not fit or a type cannot be made up.
    """
    config = _grown_config(source, shape, layers)
    planned = _planned(source, shape, rules)
    shards = cut_into_shards([one.tensor.num_bytes for one in planned], max_shard_bytes)
    metadata = {"format": "pt", "grown_from": json.dumps(grown_from)}  # transformers asks for the format
    weight_map = {}
    for number, places in enumerate(shards, start=1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(target, name, [planned[place] for place in places], metadata, grown_from["seed"])
        weight_map |= {planned[place].tensor.name: name for place in places}
    if len(shards) > 1:
        target.write_whole(INDEX, _index_json(planned, weight_map))
    for name in source.folder.names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in _COPIED) and source.folder.size_of(name) is not None:
            target.write_whole(name, source.folder.read(name))
    target.write_whole(CONFIG, _json(config))


# --- reading ------------------------------------------------------------------------------------


def _shape(config: dict[str, Any], file: str) -> ModelShape:
    """The shape that a Llama's config describes, its defaults filled in."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"found {shown(family)}; expected {', '.join(FAMILIES)}", key="model_type", file=file)
    sizes = {field: _size(config, key, default, file) for field, (key, default) in _FIELDS.items()}
    return ModelShape(
        family=family,
        **sizes,
        num_kv_heads=_size(config, "num_key_value_heads", sizes["num_heads"], file),
        head_size=_size(config, "head_dim", sizes["hidden_size"] // sizes["num_heads"], file),
        tied_embeddings=config.get("tie_word_embeddings") is True,
    )


def _size(config: dict[str, Any], key: str, default: int, file: str) -> int:
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or value < 1:
        raise InputError(f"found {shown(value)}; expected a whole number from 1 on", key=key, file=file)
    return value


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


def _check_tensors(folder: Folder, shape: ModelShape, tensors: dict[str, StoredTensor]) -> None:
    """Every parameter there, in its shape, and nothing that would be left behind."""
    known = {parameter.name: parameter.shape for parameter in parameters(shape)}
    missing = [name for name in known if name not in tensors]
    if missing:
        raise InputError(f"found no tensor for {_some(missing)}; expected a whole model", file=folder.uri)
    for name, expected in known.items():
        found = tensors[name].tensor.shape
        if found != expected:
            raise InputError(f"found the shape {list(found)}; expected {list(expected)}", key=name, file=folder.uri)
    # Old models also stored what is computed, and some store a tied head twice.
    left_out = {FAMILIES[shape.family].head} if shape.tied_embeddings else set()
    unknown = [
        name for name in tensors if name not in known and name not in left_out and not name.endswith(".inv_freq")
    ]
    if unknown:
        problem = f"found {_some(unknown)}; expected a {shape.family} without biases, adapters or quantization"
        raise InputError(problem, file=folder.uri)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise InputError(f"damaged ({error}); expected JSON", file=f"{folder.uri}/{name}") from None
    if not isinstance(content, dict):
        raise InputError("damaged; expected a JSON object", file=f"{folder.uri}/{name}")
    return content


# --- writing ------------------------------------------------------------------------------------


def _grown_config(source: HuggingFaceModel, shape: ModelShape, layers: tuple[int, ...]) -> dict[str, Any]:
    """The source's config with the grown sizes in it, all else kept, in its order."""
    config = dict(source.config)
    for field, (key, _) in _FIELDS.items():
        if getattr(shape, field) != getattr(source.shape, field):
            config[key] = getattr(shape, field)
    for key in _PER_LAYER:
        entries = config.get(key)
        if entries is None:
            continue
        if not isinstance(entries, list) or len(entries) != source.shape.num_layers:
            problem = f"found {shown(entries)}; expected a list with an entry for each layer"
            raise InputError(problem, key=key, file=f"{source.folder.uri}/{CONFIG}")
        config[key] = [entries[layer] for layer in layers]
    return config


def _planned(source: HuggingFaceModel, shape: ModelShape, rules: GrowthMap) -> list[_Planned]:
    """What is to be written, in the model's order; a tensor that is made up has the type of layer 0's."""
    planned = []
    for parameter, rule in zip(parameters(shape), rules, strict=True):
        stored = source.tensors[rule.source or parameter.spec.name.format(layer=0)]
        dtype = stored.tensor.dtype
        if rule.weights != "copy" and dtype not in _DTYPES:
            problem = f"found the type {dtype}; expected one of {', '.join(_DTYPES)} where new layers are made"
            raise InputError(problem, key=stored.tensor.name, file=source.folder.uri)
        planned.append(_Planned(Tensor(rule.target, dtype, rule.shape), rule, stored))
    return planned


def _write_file(target: Folder, name: str, planned: list[_Planned], metadata: dict[str, str], seed: int) -> None:
    """Write one file front to back. Wider types come first, as the library does it, so that all are aligned."""
    planned = sorted(planned, key=lambda one: -one.tensor.item_bytes)
    with target.open_writer(name) as file:
        file.write(header_bytes(laid_out(one.tensor for one in planned), metadata))
        for one in planned:
            for chunk in one.source.chunks() if one.rule.weights == "copy" else _made_up(one, seed):
                file.write(chunk)
    target.sync(name)


def _made_up(planned: _Planned, seed: int) -> Iterator[memoryview]:
    """The bytes of a tensor that is no copy, from its rule."""
    dtype = _DTYPES[planned.tensor.dtype]
    for start, stop in slices(planned.rule, CHUNK_BYTES // 4):
        values = torch.from_numpy(grown_slice(planned.rule, "fp32", start, stop, _nothing_to_read, seed))
        yield memoryview(values.to(dtype).view(torch.uint8).numpy())


def _nothing_to_read(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    raise ValueError(f"{state} of {parameter} is made up; it has no source to be read from")


def _index_json(planned: list[_Planned], weight_map: dict[str, str]) -> bytes:
    total = {
        "total_parameters": sum(int(np.prod(one.tensor.shape)) for one in planned),
        "total_size": sum(one.tensor.num_bytes for one in planned),
    }
    return _json({"metadata": total, "weight_map": dict(sorted(weight_map.items()))})


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
