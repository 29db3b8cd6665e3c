"""A Hugging Face folder, opened by its config and the headers of its files, as transformers would load it.

Folders may come from anywhere. Nothing outside of the folder is opened, no file is read before its size is known to be
sensible, and the sizes in a config are compared with the tensors in the folder before anything is built from them.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raystage.errors import InputError
from raystage.files.reading import Files, read_json, uri_in
from raystage.files.safetensors import StoredTensor, read_header
from raystage.models.families import FAMILIES, TRAINED
from raystage.models.hf_config import shape_of
from raystage.models.hf_table import StoredTensorPlace, folder_table, is_buffer, old_name, placed, target_table
from raystage.models.hf_trainable import check_trainable
from raystage.models.shape import ModelShape, table_of
from raystage.models.table import Family
from raystage.units import shown

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The types that can be computed with, as safetensors names them.
COMPUTED = ("F64", "F32", "F16", "BF16")
_ADAPTER = "adapter_config.json"
_MOST_TENSORS = 400_000  # twice what any published model has
_FILE = re.compile(r"[\w-][\w.-]*\.safetensors")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A folder that transformers can load, known by its config and the headers of its files. `table` names its
    tensors."""

    folder: Files
    config: dict[str, Any]
    shape: ModelShape
    tensors: dict[str, StoredTensor]
    table: Family

    def tables(self, target: ModelShape, layers: Sequence[int | None]) -> tuple[Family, Family]:
        """The tables of this folder and of the folder it grows into, whose layers come from `layers` of it.

        Raises InputError where a tensor cannot grow with the model.
        """
        return self.table, target_table(self.table, self.shape, target, layers, self.folder.uri)

    def placed(self) -> list[StoredTensorPlace]:
        """Every tensor with its place in the model that is trained.

        Raises InputError where one is missing, is left over, or has another size or type.
        """
        base = table_of(self.shape).base
        found = [replace(one, name=_name_in(self.tensors, one.name, base)) for one in placed(self.shape)]
        _check_tensors(self, found)
        return found


def is_model(files: Files) -> bool:
    return files.size_of(CONFIG) is not None


def open_model(files: Files) -> HuggingFaceModel:
    """The model in a folder. Raises InputError where its files are not a complete model."""
    config = read_json(files, CONFIG)
    if files.size_of(_ADAPTER) is not None:  # transformers would load it, and perhaps a base model that it names
        raise InputError("found an adapter; expected it merged into the weights", file=uri_in(files, _ADAPTER))
    shape = shape_of(config, uri_in(files, CONFIG))
    tensors = _stored_tensors(files)
    _check_counts(shape, len(tensors), uri_in(files, CONFIG))
    shape = _as_tied(shape, tensors, files.uri)
    table = folder_table(shape, {name: stored.tensor.shape for name, stored in tensors.items()}, files.uri)
    return HuggingFaceModel(files, config, shape, tensors, table)


def open_trainable(files: Files) -> HuggingFaceModel:
    """The model in a folder, which a schedule can train as it is. Raises InputError where that is not possible."""
    config, file = read_json(files, CONFIG), uri_in(files, CONFIG)
    shape = shape_of(config, file)
    if shape.family not in TRAINED:
        problem = f"found {shown(shape.family)}; expected one of {', '.join(TRAINED)}"
        raise InputError(problem, key="model_type", file=file)
    check_trainable(config, shape, file)
    model = open_model(files)
    model.placed()
    return model


def weight_files(files: Files) -> tuple[str, ...]:
    """The names of the files with the weights: a single file first, as in transformers, else an index and its files.

    Raises InputError.
    """
    if files.size_of(WEIGHTS) is not None:
        return (WEIGHTS,)
    if files.size_of(INDEX) is None:
        raise InputError(f"found neither {WEIGHTS} nor {INDEX}; expected a model saved as safetensors", file=files.uri)
    return (INDEX, *sorted(set(_weight_map(files).values())))


# --- reading ------------------------------------------------------------------------------------


def _weight_map(files: Files) -> dict[str, str]:
    found = read_json(files, INDEX).get("weight_map")
    if not isinstance(found, dict):
        problem = "damaged; expected the file of every tensor"
        raise InputError(problem, key="weight_map", file=uri_in(files, INDEX))
    for name in found.values():
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            problem = f"found {shown(name)}; expected names of .safetensors files in this folder"
            raise InputError(problem, key="weight_map", file=uri_in(files, INDEX))
    return found


def _stored_tensors(files: Files) -> dict[str, StoredTensor]:
    """All tensors of the folder, by name."""
    names = weight_files(files)
    if names == (WEIGHTS,):
        return read_header(files, WEIGHTS)
    headers: dict[str, dict[str, StoredTensor]] = {}
    for name in names[1:]:
        headers[name] = read_header(files, name)
        if sum(map(len, headers.values())) > _MOST_TENSORS:
            raise InputError(f"found more than {_MOST_TENSORS} tensors; expected fewer", file=files.uri)
    return {tensor: headers[name][tensor] for tensor, name in _weight_map(files).items() if tensor in headers[name]}


def _check_counts(shape: ModelShape, num_tensors: int, file: str) -> None:
    """Raises InputError where the config has more layers or experts than there are tensors. Nothing is listed."""
    if shape.num_layers > num_tensors:
        problem = f"found {shape.num_layers} layers and {num_tensors} tensors; expected a tensor or more for each"
        raise InputError(problem, file=file)
    if shape.family in FAMILIES and shape.num_layers * shape.num_experts > num_tensors:
        found = f"found {shape.num_experts} experts in {shape.num_layers} layers and {num_tensors} tensors"
        raise InputError(f"{found}; expected a tensor or more for each expert", file=file)


# --- tied embeddings ----------------------------------------------------------------------------


def _as_tied(shape: ModelShape, tensors: dict[str, StoredTensor], folder: str) -> ModelShape:
    """The shape as transformers loads it: tied in the config counts only where the tensors do not differ.

    Raises InputError where a part of a separate head exists and another part is missing.
    """
    if not shape.ties_head or shape.family not in FAMILIES:
        return shape
    pairs = list(_tied_pairs(FAMILIES[shape.family], tensors))
    unlike = next(((own, tied) for own, tied in pairs if _differ(own, tied, tensors)), None)
    if unlike is None:
        return shape
    missing = [own for own, _ in pairs if own not in tensors]
    if missing:
        problem = (
            f"found {unlike[0]} unlike {unlike[1]}, but no {missing[0]}; expected a whole head, or none of its own"
        )
        raise InputError(problem, file=folder)
    return replace(shape, tied_embeddings=False)


def _tied_pairs(family: Family, tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """The tensors of a separate head, each with its counterpart in a tied model."""
    for own, tied in {(family.on_disk or family).head: family.embeddings[0], **family.ties}.items():
        yield own, tied if tied in tensors else tied.removeprefix(family.base)


def _differ(own: str, tied: str, tensors: dict[str, StoredTensor]) -> bool:
    """Whether both exist and have different bytes."""
    if own not in tensors or tied not in tensors:
        return False
    one, other = tensors[own], tensors[tied]
    if (one.tensor.dtype, one.tensor.shape) != (other.tensor.dtype, other.tensor.shape):
        return True
    return any(left != right for left, right in zip(one.chunks(), other.chunks(), strict=True))


# --- training -----------------------------------------------------------------------------------


def _name_in(tensors: Container[str], name: str, base: str) -> str:
    """The name of a tensor in a folder, which may omit the base's prefix or have a former name for it; its name where
    the folder lacks it."""
    names = (name, name.removeprefix(base))
    return next((one for one in (*names, *map(old_name, names)) if one in tensors), names[-1])


def _check_tensors(model: HuggingFaceModel, used: list[StoredTensorPlace]) -> None:
    for one in used:
        stored = model.tensors.get(one.name)
        if stored is None or stored.tensor.shape != one.shape or stored.tensor.dtype not in COMPUTED:
            found = "no such tensor" if stored is None else f"found {stored.tensor.dtype} {list(stored.tensor.shape)}"
            expected = f"expected {list(one.shape)} of {', '.join(COMPUTED)}"
            raise InputError(f"{found}; {expected}", key=one.name, file=model.folder.uri)
    family = table_of(model.shape)
    head = {(family.on_disk or family).head} if model.shape.ties_head else set()
    known = {*head, *(one.name for one in used), *_left_aside(family)}
    others = [name for name in model.tensors if name not in known and not is_buffer(name)]
    if others:
        problem = f"found a tensor that a {model.shape.family} has not in training; expected none"
        raise InputError(problem, key=others[0], file=model.folder.uri)


def _left_aside(family: Family) -> set[str]:
    """What works on one position of a sample, for a head that the model in training has not."""
    names = {row.name for row in family.optional if row.acts_on == "sample"}
    return names | {name.removeprefix(family.base) for name in names}
