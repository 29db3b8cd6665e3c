"""Sharded checkpoints: safetensors fragments written by the workers that own them, a manifest last.

    shard-00000-of-00002.safetensors   flat fp32 fragments, one tensor each
    manifest.json                      written last; without it the checkpoint does not exist

A fragment is the flat slice [start, stop) of one state (`fp32`, `exp_avg`, `exp_avg_sq`) of one
parameter. The manifest says which fragments each shard holds, where in the file and with which
checksum. Nothing is pickled. Any slice of any parameter can be read without reading the rest, into
any number of workers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from raystage.errors import CheckpointError
from raystage.shape import ModelShape
from raystage.storage import Folder

FORMAT = "raystage-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_ITEM_BYTES = 4


@dataclass(frozen=True)
class Fragment:
    """Where a slice of a state lies: bytes [offset, offset + 4 * (stop - start)) of its shard."""

    parameter: str
    state: str
    start: int
    stop: int
    offset: int
    checksum: str

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * _ITEM_BYTES


@dataclass(frozen=True)
class Shard:
    """One worker's file."""

    file: str
    size_bytes: int
    checksum: str
    fragments: tuple[Fragment, ...]


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter: its shape and the optimizer steps its moments have seen. States are stored as float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    step: int


@dataclass(frozen=True)
class Manifest:
    """All about a checkpoint but the numbers themselves.

    progress: where training stood (steps, tokens, curves so far, ...), as the engine left it.
    """

    model: ModelShape
    parameters: tuple[ParameterEntry, ...]
    shards: tuple[Shard, ...]
    stage_key: str
    step: int
    tokens: int
    data_cursor: dict[str, Any]
    rng: dict[str, Any]
    optimizer: dict[str, Any]
    progress: dict[str, Any]

    def to_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}).encode()


# What a worker hands over to be written: parameter, state, start and the flat float32 values.
Piece = tuple[str, str, int, np.ndarray]


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05}-of-{world:05}.safetensors"


def write_shard(folder: Folder, name: str, pieces: Iterable[Piece]) -> Shard:
    """Write one worker's fragments as a safetensors file, front to back, and bring it to the disk.

    The file is streamed by hand, because the safetensors library would first build it whole in memory.
    """
    pieces = list(pieces)
    header, offsets = _layout(pieces)
    whole = xxhash.xxh3_128(header)
    fragments = []
    with folder.open_writer(name) as file:
        file.write(header)
        for (parameter, state, start, values), offset in zip(pieces, offsets, strict=True):
            data = memoryview(np.ascontiguousarray(values, dtype="<f4")).cast("B") if values.size else b""
            file.write(data)
            whole.update(data)
            checksum = xxhash.xxh3_128_hexdigest(data)
            fragments.append(Fragment(parameter, state, start, start + values.size, len(header) + offset, checksum))
        size = file.tell()
    folder.sync(name)
    return Shard(name, size, f"xxh3_128:{whole.hexdigest()}", tuple(fragments))


def commit(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest: from here on the checkpoint exists."""
    folder.write_whole(MANIFEST, manifest.to_bytes())


def exists(folder: Folder) -> bool:
    return folder.size_of(MANIFEST) is not None


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of the checkpoint in `folder`. Raises CheckpointError where it is missing, damaged or foreign."""
    try:
        content = json.loads(folder.read(MANIFEST))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.uri}: no {MANIFEST}; not a finished checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{folder.uri}/{MANIFEST}: damaged ({error})") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder.uri}/{MANIFEST}: not a raystage checkpoint")
    version = content.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{folder.uri}/{MANIFEST}: found format version {version!r}; expected {VERSION}")
    try:
        return _manifest_from(content)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.uri}/{MANIFEST}: damaged ({error})") from None


class Checkpoint:
    """A finished checkpoint, open for reading slices. Every fragment is checked when it is first touched."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self._index = _index(self.manifest.shards)
        self._files: dict[str, Any] = {}
        self._checked: set[tuple[str, int]] = set()
        self.bytes_read = 0
        for shard in self.manifest.shards:
            self._check_size(shard)

    @property
    def steps(self) -> dict[str, int]:
        return {entry.name: entry.step for entry in self.manifest.parameters}

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of a state: float32, put together from the fragments that hold it.

        Raises CheckpointError where a part of it is missing or damaged.
        """
        result = np.empty(stop - start, dtype=np.float32)
        filled = start
        for shard, fragment in self._index.get((parameter, state), ()):
            first, last = max(start, fragment.start), min(stop, fragment.stop)
            if first < last:
                values = self._values(shard, fragment)
                result[first - start : last - start] = values[first - fragment.start : last - fragment.start]
                filled += last - first
        if filled != stop:
            raise CheckpointError(f"{self.folder.uri}: {state} of {parameter} [{start}:{stop}] is not all there")
        return result

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _values(self, shard: Shard, fragment: Fragment) -> np.ndarray:
        if shard.file not in self._files:
            self._files[shard.file] = self.folder.open_reader(shard.file)
        data = self._files[shard.file].read_at(fragment.num_bytes, fragment.offset)
        self.bytes_read += fragment.num_bytes
        place = (shard.file, fragment.offset)
        if place not in self._checked:
            if xxhash.xxh3_128_hexdigest(data) != fragment.checksum:
                raise CheckpointError(
                    f"{self.folder.uri}/{shard.file}: damaged; {fragment.state} of {fragment.parameter} "
                    f"does not match its checksum"
                )
            self._checked.add(place)
        return np.frombuffer(data, dtype="<f4")

    def _check_size(self, shard: Shard) -> None:
        size = self.folder.size_of(shard.file)
        if size != shard.size_bytes:
            found = "no such file" if size is None else f"found {size} bytes"
            raise CheckpointError(f"{self.folder.uri}/{shard.file}: {found}; expected {shard.size_bytes}")


def _layout(pieces: list[Piece]) -> tuple[bytes, list[int]]:
    """The safetensors header (8 bytes of length, then JSON padded to 8 bytes) and each piece's place after it."""
    entries, offsets, position = {}, [], 0
    for parameter, state, start, values in pieces:
        offsets.append(position)
        end = position + values.size * _ITEM_BYTES
        entries[f"{parameter}:{state}:{start}-{start + values.size}"] = {
            "dtype": "F32",
            "shape": [values.size],
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps({"__metadata__": {"format": FORMAT}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


def _index(shards: Iterable[Shard]) -> Mapping[tuple[str, str], list[tuple[Shard, Fragment]]]:
    index: dict[tuple[str, str], list[tuple[Shard, Fragment]]] = {}
    for shard in shards:
        for fragment in shard.fragments:
            index.setdefault((fragment.parameter, fragment.state), []).append((shard, fragment))
    return index


def _manifest_from(content: dict[str, Any]) -> Manifest:
    shards = tuple(
        Shard(**{**shard, "fragments": tuple(Fragment(**fragment) for fragment in shard["fragments"])})
        for shard in content.pop("shards")
    )
    parameters = tuple(
        ParameterEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in content.pop("parameters")
    )
    return Manifest(model=ModelShape(**content.pop("model")), shards=shards, parameters=parameters, **content)
