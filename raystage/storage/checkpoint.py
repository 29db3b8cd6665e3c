"""Sharded checkpoints: safetensors fragments written by the workers that own them, a manifest last.

    shard-00000-of-00002.safetensors   flat fp32 fragments, one tensor each
    manifest.json                      written last; without it the checkpoint does not exist

A fragment is the flat slice [start, stop) of one state of one parameter: of the weight (`fp32`) or of what the
optimizer keeps (`exp_avg` and `exp_avg_sq`, or `momentum_buffer`). The manifest says which fragments each shard holds,
where in the file and with which checksum. Nothing is pickled. Any slice of any parameter can be read without reading
the rest, into any number of workers. docs/checkpoints.md describes the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, OpenFile
from raystage.files.safetensors import Tensor, header_bytes, laid_out
from raystage.files.sealed_json import NoObject, sealed, unsealed
from raystage.growth.counts import HeadStarts, Runs, from_runs
from raystage.models.manifest import check_manifest
from raystage.models.shape import ModelShape

FORMAT = "raystage-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_ITEM_BYTES = 4
_LARGEST_MANIFEST = 2**30  # some 7 million fragments, of a model of 600 billion parameters with Adam
_CHUNK_BYTES = 2**20
_READ_BYTES = 16 * 2**20  # of a fragment at a time: few requests to an object store, little memory
_SYNC_BYTES = 32 * 2**20  # handed to the disk at a time, while more is written


@dataclass(frozen=True)
class StoredFragment:
    """A slice of a state in a shard: the bytes [offset, offset + 4 * (stop - start)) of the file."""

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
    fragments: tuple[StoredFragment, ...]


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter: its shape, and the optimizer steps that its moments have seen. States are stored as float32.

    head_starts: by axis, of elements that have seen fewer steps; not in the manifest where there are none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    step: int
    head_starts: Runs = ()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "head_starts" or value}


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint except the numbers.

    stage_key: the stage that wrote it; empty for a checkpoint without training. progress: the state of the training
    (steps, tokens, curves so far, ...), as the engine left it. grown_from: for a checkpoint of `raystage grow`, its
    source and how it was grown. averaged_from: for one of `raystage average`, its sources and their weights. adapter:
    of one from within a stage with an adapter, which holds what is trained there in place of the model.
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
    grown_from: dict[str, Any] | None = None
    averaged_from: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        later = ("averaged_from", "adapter")
        own = {name: value for name, value in vars(self).items() if name not in later or value is not None}
        content = {"format": FORMAT, "version": VERSION, **own}
        return sealed(json.dumps(content, default=_plain).encode())  # asdict would first copy every fragment


def _plain(one: Any) -> dict[str, Any]:
    if isinstance(one, ModelShape):
        return one.facts()
    return one.to_json() if isinstance(one, ParameterEntry) else vars(one)


# What a worker writes: parameter, state, start and the flat float32 values.
Piece = tuple[str, str, int, np.ndarray]
# What a fragment is going to hold: parameter, state, start and stop.
Span = tuple[str, str, int, int]

# The longest fragment that workers write, in elements. A reader verifies every fragment of which it reads a part. With
# short fragments several workers verify less of the same data; each fragment takes about 150 bytes in the manifest.
FRAGMENT_NUMEL = 2**18


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05}-of-{world:05}.safetensors"


def write_shard(folder: Folder, name: str, pieces: Iterable[Piece]) -> Shard:
    """Write one worker's fragments as a safetensors file, from front to back, and sync it to disk."""
    pieces = list(pieces)
    spans = [(parameter, state, start, start + values.size) for parameter, state, start, values in pieces]
    return stream_shard(folder, name, spans, (values for *_, values in pieces))


def stream_shard(folder: Folder, name: str, spans: list[Span], values: Iterable[np.ndarray]) -> Shard:
    """Write a shard whose fragments are known before; `values` yields their flat float32 values one after the other.

    The file is written in a stream, because the safetensors library would first build all of it in memory.
    """
    tensors = laid_out(_tensor(*span) for span in spans)
    header = header_bytes(tensors, {"format": FORMAT})
    whole = xxhash.xxh3_128(header)
    fragments, begun = [], 0
    with folder.open_writer(name) as file:
        file.write(header)
        for span, tensor, part in zip(spans, tensors, values, strict=True):
            data = memoryview(np.ascontiguousarray(part, dtype="<f4")).cast("B") if part.size else b""
            if len(data) != tensor.num_bytes:
                raise ValueError(f"found {len(data)} bytes for {tensor.name}; expected {tensor.num_bytes}")
            checksum = xxhash.xxh3_128()
            for first in range(0, len(data), _CHUNK_BYTES):  # written and hashed while it is in the CPU cache
                chunk = data[first : first + _CHUNK_BYTES]
                file.write(chunk)
                whole.update(chunk)
                checksum.update(chunk)
            fragments.append(StoredFragment(*span, len(header) + tensor.place, checksum.hexdigest()))
            end = tensor.place + tensor.num_bytes
            if end - begun >= _SYNC_BYTES:
                begun = end
                folder.begin_sync(name)
        size = file.tell()
    folder.sync(name)
    return Shard(name, size, f"xxh3_128:{whole.hexdigest()}", tuple(fragments))


def shard_header(shard: Shard) -> bytes:
    """The header of a shard with these fragments."""
    tensors = laid_out(_tensor(one.parameter, one.state, one.start, one.stop) for one in shard.fragments)
    return header_bytes(tensors, {"format": FORMAT})


def _tensor(parameter: str, state: str, start: int, stop: int) -> Tensor:
    return Tensor(f"{parameter}:{state}:{start}-{stop}", "F32", (stop - start,))


def commit(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest: from here on the checkpoint exists."""
    folder.write_whole(MANIFEST, manifest.to_bytes())


def exists(folder: Folder) -> bool:
    return folder.size_of(MANIFEST) is not None


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of the checkpoint in `folder`. Raises CheckpointError where it is missing, damaged or not ours."""
    try:
        content = unsealed(folder.read(MANIFEST, _LARGEST_MANIFEST))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.uri}: no {MANIFEST}; not a finished checkpoint") from None
    except NoObject:
        content = {}
    except ValueError as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged ({error})") from None
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: not a raystage checkpoint")
    version = content.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: found format version {version!r}; expected {VERSION}")
    try:
        check_manifest(content)
        return _manifest_from(content)
    except KeyError as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged (the key {error} is missing)") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged ({error})") from None


class Checkpoint:
    """A finished checkpoint, open for reading slices. Every fragment is verified when it is first read."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self._index = _index(self.manifest.shards)
        self._files: dict[str, OpenFile] = {}
        self._checked: set[tuple[str, int]] = set()
        self.bytes_read = 0
        for shard in self.manifest.shards:
            self._check_size(shard)

    @property
    def steps(self) -> dict[str, int]:
        return {entry.name: entry.step for entry in self.manifest.parameters}

    @property
    def head_starts(self) -> dict[str, HeadStarts]:
        """The head starts of the parameters that have any, by name."""
        return {
            entry.name: from_runs(entry.head_starts, entry.shape)
            for entry in self.manifest.parameters
            if entry.head_starts
        }

    @property
    def states(self) -> tuple[str, ...]:
        """The states it holds, the weights first."""
        found = {fragment.state for shard in self.manifest.shards for fragment in shard.fragments}
        return tuple(sorted(found, key=lambda state: (state != "fp32", state)))

    def states_of(self, parameter: str) -> tuple[str, ...]:
        """The states it holds of one parameter. Muon keeps fewer of matrices."""
        return tuple(state for state in self.states if (parameter, state) in self._index)

    def has(self, states: Iterable[str]) -> bool:
        return set(states) <= set(self.states)

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of a state: float32, assembled from its fragments.

        Raises CheckpointError where a part of it is missing or damaged.
        """
        result = np.empty(stop - start, dtype="<f4")
        self.read_into(parameter, state, start, result)
        return result

    def read_into(self, parameter: str, state: str, start: int, into: np.ndarray) -> None:
        """The same into a flat float32 array of that length. Where this raises, the content of the array is
        undefined."""
        stop = start + into.size
        filled = start
        for shard, fragment in self._index.get((parameter, state), ()):
            first, last = max(start, fragment.start), min(stop, fragment.stop)
            if first < last:
                self._copy(shard, fragment, first, into[first - start : last - start])
                filled += last - first
        if filled != stop:
            raise CheckpointError(f"{self.folder.uri}: {state} of {parameter} [{start}:{stop}] is not all there")

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _copy(self, shard: Shard, fragment: StoredFragment, first: int, into: np.ndarray) -> None:
        """Copy the fragment's values from `first` on into `into`, as many as fit.

        The first read of a fragment reads all of it, for its checksum. Beside `into` at most _READ_BYTES are in memory.
        """
        begin = _ITEM_BYTES * (first - fragment.start)
        wanted, data = range(begin, begin + into.nbytes), into.view(np.uint8)
        file, place = self._opened(shard), (shard.file, fragment.offset)
        is_checked, checksum, is_whole = place in self._checked, xxhash.xxh3_128(), True
        touched = wanted if is_checked else range(fragment.num_bytes)
        for start in range(touched.start, touched.stop, _READ_BYTES):
            stop = min(start + _READ_BYTES, touched.stop)
            if wanted.start <= start and stop <= wanted.stop:  # read in place, verified while in the CPU cache
                room = memoryview(data[start - begin : stop - begin])
                chunk = room[: file.read_into(room, fragment.offset + start)]
            else:
                chunk = file.view_at(stop - start, fragment.offset + start)
                low, high = max(start, wanted.start), min(start + len(chunk), wanted.stop)
                if low < high:
                    data[low - begin : high - begin] = np.frombuffer(chunk, np.uint8)[low - start : high - start]
            self.bytes_read += len(chunk)
            is_whole &= len(chunk) == stop - start
            if not is_checked:
                checksum.update(chunk)
        if not is_whole or (not is_checked and checksum.hexdigest() != fragment.checksum):
            raise CheckpointError(
                f"{(self.folder / shard.file).uri}: damaged; {fragment.state} of {fragment.parameter} "
                f"does not match its checksum"
            )
        self._checked.add(place)

    def _opened(self, shard: Shard) -> OpenFile:
        """The file of the shard. Its header must be the one that follows from its fragments, so that the shard of
        another checkpoint is refused, unless it is equal."""
        if shard.file not in self._files:
            file = self._files[shard.file] = self.folder.open_reader(shard.file)
            header = shard_header(shard)
            if file.read_at(len(header), 0) != header:
                self._files.pop(shard.file).close()
                raise CheckpointError(f"{(self.folder / shard.file).uri}: damaged; its header is not what was written")
        return self._files[shard.file]

    def _check_size(self, shard: Shard) -> None:
        size = self.folder.size_of(shard.file)
        if size != shard.size_bytes:
            found = "no such file" if size is None else f"found {size} bytes"
            raise CheckpointError(f"{(self.folder / shard.file).uri}: {found}; expected {shard.size_bytes}")


def _index(shards: Iterable[Shard]) -> Mapping[tuple[str, str], list[tuple[Shard, StoredFragment]]]:
    index: dict[tuple[str, str], list[tuple[Shard, StoredFragment]]] = {}
    for shard in shards:
        for fragment in shard.fragments:
            index.setdefault((fragment.parameter, fragment.state), []).append((shard, fragment))
    return index


def _manifest_from(content: dict[str, Any]) -> Manifest:
    shards = tuple(
        Shard(**{**shard, "fragments": tuple(StoredFragment(**fragment) for fragment in shard["fragments"])})
        for shard in content.pop("shards")
    )
    parameters = tuple(
        ParameterEntry(**{**entry, "shape": tuple(entry["shape"]), "head_starts": _runs(entry.get("head_starts", ()))})
        for entry in content.pop("parameters")
    )
    return Manifest(model=ModelShape(**content.pop("model")), shards=shards, parameters=parameters, **content)


def _runs(axes: Iterable[Iterable[Iterable[int]]]) -> Runs:
    return tuple(tuple(tuple(run) for run in axis) for axis in axes)
