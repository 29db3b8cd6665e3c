"""`raystage export`: the weights of a checkpoint as a Hugging Face folder, with config and tokenizer.

The weights are copied piece by piece into files as `save_pretrained` writes them. `config.json` is written last.
transformers does not know the networks of raystage's own: their folder has the same files, and `tools.load` reads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from raystage.data.hf_tokenizer import for_samples, load_tokenizer, num_ids, saved_files, tokenizer_files
from raystage.data.tokenizer_names import NO_TOKENIZER
from raystage.errors import InputError
from raystage.files.filesystem import Folder
from raystage.files.safetensors import CHUNK_BYTES, Tensor
from raystage.models import build as models
from raystage.models.families import family_of
from raystage.models.hf_folder import CONFIG
from raystage.models.hf_table import StoredTensorPlace, placed
from raystage.models.network_config import network_config
from raystage.models.own import ANY, own_model
from raystage.models.shape import ModelShape, buffers, num_params
from raystage.plans.adapters import ADAPTER_FILES
from raystage.storage.checkpoint import MANIFEST
from raystage.storage.huggingface import DTYPES, as_json, write_weights
from raystage.tools.grow import MAX_SHARD_BYTES, Source, as_input_errors

# Types of the weights, as torch names them, and safetensors' names for them.
EXPORT_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ADAPTER = "adapter"
_GENERATION_CONFIG = "generation_config.json"
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ExportOptions:
    """tokenizer: a folder or name to use instead of the checkpoint's own, or "none"."""

    dtype: str = "float32"
    max_shard_bytes: int = MAX_SHARD_BYTES
    tokenizer: str | None = None


def export(source: Source, target: Folder, options: ExportOptions) -> dict[str, Any]:
    """Write the checkpoint's model into `target`; returns a summary for --json.

    If it fails, nothing is left behind. Raises InputError if the source is not a checkpoint, is damaged or has no
    tokenizer that can be found; RaystageError if the target cannot be written.
    """
    began = time.monotonic()
    if not source.is_checkpoint:
        problem = f"found a Hugging Face folder; expected a raystage checkpoint, which has a {MANIFEST}"
        raise InputError(problem, key="CHECKPOINT", file=source.uri)
    name, tokenizer = _tokenizer(source, options)
    end = None if tokenizer is None else _end(source, options, tokenizer)
    try:
        with as_input_errors("CHECKPOINT"):
            _write_weights(source, target, options)
            for file, content in _tokenizer_files(source, options, name, tokenizer, end).items():
                target.write_whole(file, content)
            _copy_adapter(source, target)
            if end is not None and not (source.shape.head or _is_network(source.shape)):
                generation = transformers.GenerationConfig(eos_token_id=end)
                target.write_whole(_GENERATION_CONFIG, generation.to_json_string().encode())
            if source.shape.image_size and not _is_network(source.shape):
                target.write_whole(_PREPROCESSOR, as_json(_preprocessor(source.shape)))
            target.write_whole(CONFIG, as_json(config_of(source.shape, options.dtype, end, _classes(source))))
    except BaseException:
        target.delete()
        raise
    finally:
        source.model.close()
    return {
        "source": source.uri,
        "stage_key": source.stage_key or source.model.manifest.stage_key or None,
        "target": target.uri,
        "format": "raystage" if _is_network(source.shape) else "huggingface",
        "dtype": options.dtype,
        "tokenizer": name,
        "num_params": num_params(source.shape),
        "files": target.names(),
        "bytes": sum(target.size_of(file) or 0 for file in target.names()),
        "seconds": time.monotonic() - began,
    }


def _copy_adapter(source: Source, target: Folder) -> None:
    """The adapter that a stage kept beside its merged weights, in a folder of its own: beside a `config.json`
    transformers would put it on the merged model."""
    folder = source.model.folder
    for name in ADAPTER_FILES if folder.size_of(ADAPTER_FILES[0]) is not None else ():
        (target / ADAPTER).write_whole(name, folder.read(name))


def config_of(shape: ModelShape, dtype: str, end: int | None, classes: Sequence[str] = ()) -> dict[str, Any]:
    """`config.json` of a model of `shape`, as `save_pretrained` writes it. end: the token that ends a document.
    classes: their names, in the order of their numbers."""
    if shape.family == ANY:
        return _config_as_found(shape) | {"dtype": dtype} | (_labels(classes) if classes else {})
    if _is_network(shape):
        return network_config(shape) | {"dtype": dtype} | (_labels(classes) if classes else {})
    config = models.config(shape)
    config.architectures = [models.model_class(shape).__name__]
    config.dtype = dtype
    for key, labels in (_labels(classes) if classes else {}).items():
        setattr(config, key, labels)
    if not shape.image_size:
        config.eos_token_id = end
        config.use_cache = True
    return json.loads(config.to_json_string())


def _is_network(shape: ModelShape) -> bool:
    """Whether it is a network of raystage's own or of the user's, which transformers does not know."""
    return bool(family_of(shape.family).module) and shape.family != ANY


def _config_as_found(shape: ModelShape) -> dict[str, Any]:
    """Of an architecture without a table the configuration that it was built from."""
    with torch.device("meta"):
        name = type(models.build(shape)).__name__
    return json.loads(own_model(shape.module).options)["config"] | {"architectures": [name]}


def _labels(classes: Sequence[str]) -> dict[str, dict]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def _classes(source: Source) -> tuple[str, ...]:
    """The names of the classes that the model was trained on, as far as its manifest says."""
    found = source.model.manifest.data_cursor.get("classes", [])
    fits = isinstance(found, list) and len(found) == source.shape.num_classes
    return tuple(found) if fits and all(isinstance(one, str) for one in found) else ()


def _preprocessor(shape: ModelShape) -> dict[str, Any]:
    """What makes of an image what the model was trained on: its size, and values from -1 to 1 (`objectives.images`)."""
    each = [0.5] * shape.num_channels
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": shape.image_size, "width": shape.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": each,
        "image_std": each,
    }


def _tokenizer(source: Source, options: ExportOptions) -> tuple[str | None, Any]:
    """The tokenizer's name and itself; None where there shall be none, or none is known."""
    trained_with = source.model.manifest.data_cursor
    name = options.tokenizer or trained_with.get("tokenizer", NO_TOKENIZER)
    if name == NO_TOKENIZER:
        return None, None
    fingerprint = trained_with.get("tokenizer_fingerprint")
    tokenizer = load_tokenizer(
        name, fingerprint, source.shape.context_length, is_asked_for=options.tokenizer is not None
    )
    if num_ids(tokenizer) > source.shape.vocab_size:
        found = f"found {name!r} with ids up to {num_ids(tokenizer) - 1}"
        problem = f"{found}; expected them below the model's vocab_size, {source.shape.vocab_size}"
        raise InputError(problem, key="tokenizer", file=source.uri)
    return name, tokenizer


def _tokenizer_files(
    source: Source, options: ExportOptions, name: str | None, tokenizer: Any, end: int | None
) -> dict[str, bytes]:
    """By name the files of the tokenizer, with the chat template of the training.

    That of a classifier adds the tokens that its texts were trained with: some families decide by the last one.
    """
    if tokenizer is None:
        return {}
    if source.shape.head == "classes" and end is not None:
        with_ends = for_samples(tokenizer, end, source.shape.context_length)
        if with_ends is not None:
            return dict(saved_files(with_ends))
    template = source.model.manifest.data_cursor.get("chat_template")
    is_own = options.tokenizer is None and isinstance(template, str)
    return {**tokenizer_files(name, tokenizer), **({"chat_template.jinja": template.encode()} if is_own else {})}


def _end(source: Source, options: ExportOptions, tokenizer: Any) -> int | None:
    """The id that ended documents in training: of the schedule's `data.end_token`, else the tokenizer's own."""
    named = source.model.manifest.data_cursor.get("end_token")
    if options.tokenizer is not None or not isinstance(named, str):
        return tokenizer.eos_token_id
    return tokenizer.get_vocab().get(named, tokenizer.eos_token_id)


def _write_weights(source: Source, target: Folder, options: ExportOptions) -> None:
    """What a network has measured stays in fp32."""
    stored = {one.name: one for one in placed(source.shape)}
    dtype, measured = EXPORT_DTYPES[options.dtype], {one.name for one in buffers(source.shape)}

    def content(tensor: Tensor) -> Iterator[memoryview]:
        return _converted(source, stored[tensor.name], tensor.dtype)

    tensors = [Tensor(one.name, "F32" if one.name in measured else dtype, one.shape) for one in stored.values()]
    write_weights(target, tensors, content, {}, options.max_shard_bytes)


def _converted(source: Source, one: StoredTensorPlace, dtype: str) -> Iterator[memoryview]:
    """The bytes of a tensor, a piece at a time. Raises InputError where a weight is too large for the type."""
    step = CHUNK_BYTES // 4
    for start in range(one.start, one.stop, step):
        values = torch.from_numpy(source.model.read(one.parameter, "fp32", start, min(start + step, one.stop)))
        converted = values.to(DTYPES[dtype])
        if dtype != "F32" and not torch.equal(converted.isfinite(), values.isfinite()):
            found = f"found {values.abs().max():.4g} in {one.parameter}"
            largest = torch.finfo(DTYPES[dtype]).max
            raise InputError(f"{found}; expected at most {largest:.4g} for this type", key="--dtype", file=source.uri)
        yield memoryview(converted.view(torch.uint8).numpy())
