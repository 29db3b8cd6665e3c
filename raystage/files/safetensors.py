"""Safetensors files as bytes: headers are written and read here, so that tensors are streamed and never all in memory.

A file is 8 bytes of length, a JSON header padded to 8 bytes, and the bytes of the tensors one after another.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from raystage.errors import InputError
from raystage.files.reading import Files, parse_json, uri_in
from raystage.units import shown

# The bytes of one element, by the type's name in safetensors.
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
CHUNK_BYTES = 4 * 2**20
# The library accepts four times as much, which would take gigabytes of memory. This is enough for 200,000 tensors.
_LARGEST_HEADER_BYTES = 25_000_000
_MOST_AXES = 16


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, type and shape; `place` is where its bytes begin, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: int = 0

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `offset` is where its bytes begin, counted from the beginning of the file."""

    tensor: Tensor
    folder: Files
    file: str
    offset: int

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, CHUNK_BYTES at a time."""
        with self.folder.open_reader(self.file) as file:
            for start in range(0, self.tensor.num_bytes, CHUNK_BYTES):
                count = min(CHUNK_BYTES, self.tensor.num_bytes - start)
                yield file.read_at(count, self.offset + start)


def laid_out(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, each placed at the end of the one before."""
    placed, position = [], 0
    for tensor in tensors:
        placed.append(Tensor(tensor.name, tensor.dtype, tensor.shape, position))
        position += tensor.num_bytes
    return placed


def header_bytes(tensors: Iterable[Tensor], metadata: dict[str, str]) -> bytes:
    """Everything before the bytes of the tensors."""
    entries = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [tensor.place, tensor.place + tensor.num_bytes],
        }
        for tensor in tensors
    }
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(folder: Files, name: str) -> dict[str, StoredTensor]:
    """The tensors of the file, by name. Raises InputError where the file is missing, cut off or not safetensors."""
    size = folder.size_of(name)
    if size is None:
        raise InputError("no such file; expected safetensors", file=uri_in(folder, name))
    try:
        with folder.open_reader(name) as file:
            (length,) = struct.unpack("<Q", file.read_at(8, 0))
            if not 2 <= length <= min(_LARGEST_HEADER_BYTES, size - 8):
                most = f"expected at most {_LARGEST_HEADER_BYTES}"
                raise ValueError(f"found a header of {length} bytes in a file of {size}; {most}")
            tensors = _parsed(parse_json(file.read_at(length, 8)))
        end = 8 + length + _end(tensors)
        if end != size:
            raise ValueError(f"found {size} bytes; expected {end}")
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise InputError(f"damaged ({error}); expected safetensors", file=uri_in(folder, name)) from None
    return {tensor.name: StoredTensor(tensor, folder, name, 8 + length + tensor.place) for tensor in tensors}


def _parsed(header: dict[str, Any]) -> list[Tensor]:
    """Raises ValueError and similar errors for what is no header."""
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]), first)
        if len(tensor.shape) > _MOST_AXES or not all(type(size) is int and size >= 0 for size in tensor.shape):
            raise ValueError(f"{name} has no shape of {_MOST_AXES} sizes at most")
        if tensor.dtype not in ITEM_BYTES:
            raise ValueError(f"{name} is of the unknown type {shown(tensor.dtype)}")
        if type(first) is not int or type(last) is not int or first < 0 or last - first != tensor.num_bytes:
            raise ValueError(f"{name} lies at {shown([first, last])}; expected {tensor.num_bytes} bytes")
        tensors.append(tensor)
    return tensors


def _end(tensors: list[Tensor]) -> int:
    """The end of the last tensor. Raises ValueError where tensors do not lie end to end, as the format requires."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.place, tensor.num_bytes)):
        if tensor.place != end:
            raise ValueError(f"{tensor.name} begins at {tensor.place}; expected {end}")
        end += tensor.num_bytes
    return end


def cut_into_shards(sizes: list[int], max_shard_bytes: int) -> list[range]:
    """Which items of these sizes go into which file: in order, with a new file where one would become too large."""
    firsts, filled = [0], 0
    for position, size in enumerate(sizes):
        if filled and filled + size > max_shard_bytes:
            firsts.append(position)
            filled = 0
        filled += size
    return [range(first, last) for first, last in itertools.pairwise([*firsts, len(sizes)])]
