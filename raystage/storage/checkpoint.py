"""Sharded checkpoints: safetensors fragments written by the workers that own them, a manifest last.

    shard-00000-of-00002.safetensors   flat fp32 fragments, one tensor each
    manifest.json                      written last; without it the checkpoint does not exist

A fragment is the flat slice [start, stop) of one state of one parameter: of the weight (`fp32`) or of
what the optimizer keeps (`exp_avg` and `exp_avg_sq`, or `momentum_buffer`). The manifest says which
fragments each shard holds, where in the file and with which checksum. Nothing is pickled. Any slice of
any parameter can be read without reading the rest, into any number of workers. docs/checkpoints.md is its description.
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
_READ_BYTES = 16 * 2**20  # of a fragment at a time: few requests to an object store, little to hold
_SYNC_BYTES = 32 * 2**20  # the disk is given so much at a time while more is written


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
    """A parameter: its shape and the optimizer steps its moments have seen. States are stored as float32.

    head_starts: of elements that have seen fewer, by axis; left out of the manifest where there are none.
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
    """All about a checkpoint but the numbers themselves.

    stage_key: the stage whose training wrote it; empty where no training did.
    progress: where training stood (steps, tokens, curves so far, ...), as the engine left it.
    grown_from: for one that `raystage grow` wrote, its source and how it was grown.
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

    def to_bytes(self) -> bytes:
        content = {"format": FORMAT, "version": VERSION, **vars(self)}
        return sealed(json.dumps(content, default=_plain).encode())  # asdict would copy every fragment first


def _plain(one: Any) -> dict[str, Any]:
    if isinstance(one, ModelShape):
        return one.facts()
    return one.to_json() if isinstance(one, ParameterEntry) else vars(one)


# What a worker hands over to be written: parameter, state, start and the flat float32 values.
Piece = tuple[str, str, int, np.ndarray]
# What a fragment will hold: parameter, state, start and stop.
Span = tuple[str, str, int, int]

# The longest fragment that workers write, in elements. A reader checks every fragment that it touches a part of, so
# that short ones keep small what several workers check of the same; each costs the manifest some 150 bytes.
FRAGMENT_NUMEL = 2**18


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05}-of-{world:05}.safetensors"


def write_shard(folder: Folder, name: str, pieces: Iterable[Piece]) -> Shard:
    """Write one worker's fragments as a safetensors file, front to back, and bring it to the disk."""
    pieces = list(pieces)
    spans = [(parameter, state, start, start + values.size) for parameter, state, start, values in pieces]
    return stream_shard(folder, name, spans, (values for *_, values in pieces))


def stream_shard(folder: Folder, name: str, spans: list[Span], values: Iterable[np.ndarray]) -> Shard:
    """Write a shard whose fragments are known beforehand; `values` yields their flat float32 one after the other.

    The file is streamed by hand, because the safetensors library would first build it whole in memory.
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
            for first in range(0, len(data), _CHUNK_BYTES):  # written and hashed while the cache holds it
                chunk = data[first : first + _CHUNK_BYTES]
                file.write(chunk)
                whole.update(chunk)
                checksum.update(chunk)
            fragments.append(Fragment(*span, len(header) + tensor.place, checksum.hexdigest()))
            end = tensor.place + tensor.num_bytes
            if end - begun >= _SYNC_BYTES:
                begun = end
                folder.begin_sync(name)
        size = file.tell()
    folder.sync(name)
    return Shard(name, size, f"xxh3_128:{whole.hexdigest()}", tuple(fragments))


def shard_header(shard: Shard) -> bytes:
    """The bytes that the shard begins with, as they follow from its fragments."""
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
    """The manifest of the checkpoint in `folder`. Raises CheckpointError where it is missing, damaged or foreign."""
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
    """A finished checkpoint, open for reading slices. Every fragment is checked when it is first touched."""

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
        """By parameter, of those that have any."""
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

    def has(self, states: Iterable[str]) -> bool:
        return set(states) <= set(self.states)

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of a state: float32, put together from the fragments that hold it.

        Raises CheckpointError where a part of it is missing or damaged.
        """
        result = np.empty(stop - start, dtype="<f4")
        self.read_into(parameter, state, start, result)
        return result

    def read_into(self, parameter: str, state: str, start: int, into: np.ndarray) -> None:
        """The same into a flat float32 array of that length, which holds anything where this raises."""
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

    def _copy(self, shard: Shard, fragment: Fragment, first: int, into: np.ndarray) -> None:
        """The fragment's values from `first` on, as many as go into `into`. The first touch reads all of the fragment,
        for its checksum. Besides `into` no more than _READ_BYTES are held."""
        begin = _ITEM_BYTES * (first - fragment.start)
        wanted, data = range(begin, begin + into.nbytes), into.view(np.uint8)
        file, place = self._opened(shard), (shard.file, fragment.offset)
        is_checked, checksum, is_whole = place in self._checked, xxhash.xxh3_128(), True
        touched = wanted if is_checked else range(fragment.num_bytes)
        for start in range(touched.start, touched.stop, _READ_BYTES):
            stop = min(start + _READ_BYTES, touched.stop)
            if wanted.start <= start and stop <= wanted.stop:  # read to its place, and checked while the cache holds it
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
        """The shard's file. It must begin as its fragments say: another checkpoint's does not, unless it is equal."""
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
        ParameterEntry(**{**entry, "shape": tuple(entry["shape"]), "head_starts": _runs(entry.get("head_starts", ()))})
        for entry in content.pop("parameters")
    )
    return Manifest(model=ModelShape(**content.pop("model")), shards=shards, parameters=parameters, **content)


def _runs(axes: Iterable[Iterable[Iterable[int]]]) -> Runs:
    return tuple(tuple(tuple(run) for run in axis) for axis in axes)
