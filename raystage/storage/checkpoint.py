"""Sharded checkpoints: safetensors fragments written by the workers that own them, a manifest last.

    shard-00000-of-00002.safetensors   flat fp32 fragments, one tensor each, and behind them their checksums
    manifest.json                      written last; without it the checkpoint does not exist

A fragment is the flat slice [start, stop) of one state of one parameter: of the weight (`fp32`) or of what the
optimizer keeps (`exp_avg` and `exp_avg_sq`, or `momentum_buffer`). The manifest says which shard holds what
(`shards.placed`). Nothing is pickled. Any slice of any parameter can be read without reading the rest, into any number
of workers: a reader needs the manifest, and of each shard from which it reads the index. docs/checkpoints.md describes
the format.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import xxhash

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, OpenFile
from raystage.files.sealed_json import NoObject, sealed, unsealed
from raystage.growth.counts import HeadStarts, Runs, from_runs
from raystage.models.manifest import check_manifest
from raystage.models.shape import ModelShape
from raystage.storage.shards.ahead import Ahead, AheadFile, in_order_of_files, wanted_of
from raystage.storage.shards.contents import ITEM_BYTES, ListedShards, Shards, Span, StoredFragment
from raystage.storage.shards.placed import PlacedShards
from raystage.storage.shards.writing import FORMAT

Item = TypeVar("Item")

VERSION = 2
READABLE = (1, 2)
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**30  # of version 1, which lists fragments: some 7 million
_LARGEST_INDEX = 2**27  # of 8 million fragments, 8 TiB at their usual length
_READ_BYTES = 16 * 2**20  # of a fragment at a time: few requests to an object store, little memory
_MOST_OPEN = 64  # files of shards; a system may allow 1,024 to a process


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
    shards: Shards
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
        del own["shards"]
        content = {"format": FORMAT, "version": VERSION, **own, **self.shards.to_json()}
        return sealed(json.dumps(content, default=_plain).encode())


def _plain(one: Any) -> dict[str, Any]:
    if isinstance(one, ModelShape):
        return one.facts()
    return one.to_json() if isinstance(one, ParameterEntry) else vars(one)


def commit(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest: from here on the checkpoint exists."""
    folder.write_whole(MANIFEST, manifest.to_bytes())


def exists(folder: Folder) -> bool:
    return folder.size_of(MANIFEST) is not None


def read_manifest(folder: Folder) -> Manifest:
    """The manifest of the checkpoint in `folder`. Raises CheckpointError where it is missing, damaged or not ours."""
    return manifest_from(manifest_bytes(folder), folder)


def manifest_bytes(folder: Folder) -> bytes:
    """The file of the manifest. Raises CheckpointError where there is none."""
    try:
        return folder.read(MANIFEST, _LARGEST_MANIFEST)
    except FileNotFoundError:
        raise CheckpointError(f"{folder.uri}: no {MANIFEST}; not a finished checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged ({error})") from None


def manifest_from(file: bytes, folder: Folder) -> Manifest:
    """The manifest that was read from `folder`. Raises CheckpointError where it is damaged or not ours."""
    try:
        content = unsealed(file)
    except NoObject:
        content = {}
    except ValueError as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged ({error})") from None
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: not a raystage checkpoint")
    if (version := content.get("version")) not in READABLE:
        expected = " or ".join(map(str, READABLE))
        raise CheckpointError(f"{(folder / MANIFEST).uri}: found format version {version!r}; expected {expected}")
    try:
        check_manifest(content)
        return _manifest_from(content)
    except KeyError as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged (the key {error} is missing)") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{(folder / MANIFEST).uri}: damaged ({error})") from None


class Checkpoint:
    """A finished checkpoint, open for reading slices. Every fragment is verified when it is first read, and the index
    of a shard, too. From an object store neighbours come in one request (`shards.ahead`); for one thread at a time.

    manifest: as it was read before, of a checkpoint whose shards are known to be there; otherwise it is read, and the
    sizes of all shards are checked.
    """

    def __init__(self, folder: Folder, manifest: Manifest | None = None) -> None:
        self.folder, self.manifest = folder, manifest or read_manifest(folder)
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._indexes: dict[int, bytes] = {}
        self._checked: set[tuple[int, int]] = set()
        self._ahead = None if folder.is_local else Ahead()
        self._is_planned = False
        self.bytes_read = 0
        if manifest is None:
            self._check_sizes()

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
        return self.manifest.shards.states

    def states_of(self, parameter: str) -> tuple[str, ...]:
        """The states it holds of one parameter. Muon keeps fewer of matrices."""
        held = self.manifest.shards.states_by_parameter.get(parameter, ())
        return tuple(state for state in self.states if state in held)

    def has(self, states: Iterable[str]) -> bool:
        return set(states) <= set(self.states)

    def fragments(self, number: int) -> tuple[StoredFragment, ...]:
        """All fragments of a shard, in the order of its file. Raises CheckpointError where its index is damaged."""
        return tuple(self.manifest.shards.fragments(number, self._index))

    def in_reading_order(self, items: Sequence[Item], needs: Callable[[Item], Iterable[Span]]) -> Sequence[Item]:
        """Prepare to read what the items need; returns them in an order that takes few requests. On a disk nothing is
        prepared, and they stay as they are. needs: slices; none that are missing.

        Ends with `forget`. Raises CheckpointError where an index is damaged.
        """
        if self._ahead is None:
            return items
        ordered, wanted = in_order_of_files(items, lambda item: [self._overlapping(*need) for need in needs(item)])
        self._ahead.want(wanted)
        self._is_planned = True
        return ordered

    def cuts(self, parameter: str, state: str, start: int, stop: int) -> list[tuple[int, int]]:
        """The slice [start, stop), cut where fragments end, so that each part comes from one. On a disk it stays
        whole."""
        found = [one.stop for _, one in self._overlapping(parameter, state, start, stop)] if self._ahead else []
        return list(pairwise(sorted({start, stop, *(one for one in found if one < stop)})))

    def forget(self) -> None:
        """Drop what was prepared and held."""
        self._is_planned = False
        if self._ahead is not None:
            self._ahead.want(())

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
        found = self._overlapping(parameter, state, start, stop)
        if self._ahead is not None and not self._is_planned:
            found = list(found)
            self._ahead.want(wanted_of(found))
        for number, fragment in found:
            first, last = max(start, fragment.start), min(stop, fragment.stop)
            self._copy(number, fragment, first, into[first - start : last - start])
            filled += last - first
        if filled != stop:
            raise CheckpointError(f"{self.folder.uri}: {state} of {parameter} [{start}:{stop}] is not all there")

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self.forget()

    def _overlapping(self, *needed: Any) -> Iterable[tuple[int, StoredFragment]]:
        return self.manifest.shards.overlapping(*needed, self._index)

    def _copy(self, number: int, fragment: StoredFragment, first: int, into: np.ndarray) -> None:
        """Copy the fragment's values from `first` on into `into`, as many as fit.

        The first read of a fragment reads all of it, for its checksum. Beside `into` at most _READ_BYTES are in memory.
        """
        begin = ITEM_BYTES * (first - fragment.start)
        wanted, data = range(begin, begin + into.nbytes), into.view(np.uint8)
        file, place = self._reader(number), (number, fragment.offset)
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
            is_whole = len(chunk) == stop - start
            if not is_whole:  # a sparse file may be said to have any size
                break
            if not is_checked:
                checksum.update(chunk)
        if not is_whole or (not is_checked and checksum.hexdigest() != fragment.checksum):
            what = f"{fragment.state} of {fragment.parameter} does not match its checksum"
            raise self._damaged(number, what)
        self._checked.add(place)

    def _index(self, number: int) -> bytes:
        """The checksums of a shard's fragments, as they stand behind them."""
        if number not in self._indexes:
            shards = self.manifest.shards
            shard, length = shards[number], shards.index_bytes(number)
            if (size := shards.sized(number)) != shard.size_bytes:
                what = f"the manifest gives it {shard.size_bytes} bytes; expected {size} for what it holds"
                raise self._damaged(number, what)
            if length > _LARGEST_INDEX:
                raise self._damaged(number, f"an index of {length} bytes; expected at most {_LARGEST_INDEX}")
            found = self._opened(number).read_at(length, shard.size_bytes - length) if length else b""
            self.bytes_read += len(found)
            if xxhash.xxh3_128_hexdigest(found) != shard.index_checksum:
                raise self._damaged(number, "its index, the checksums at its end, does not match its checksum")
            self._indexes[number] = found
        return self._indexes[number]

    def _reader(self, number: int) -> OpenFile | AheadFile:
        file = self._opened(number)
        return file if self._ahead is None else AheadFile(self._ahead, number, file)

    def _opened(self, number: int) -> OpenFile:
        """The file of a shard. Those that were used last stay open."""
        name = self.manifest.shards[number].file
        if name not in self._files:
            if len(self._files) == _MOST_OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[name] = self._open(name)
        self._files.move_to_end(name)
        return self._files[name]

    def _open(self, name: str) -> OpenFile:
        try:
            return self.folder.open_reader(name)
        except FileNotFoundError:
            raise CheckpointError(f"{(self.folder / name).uri}: no such file; the manifest names it") from None

    def _damaged(self, number: int, what: str) -> CheckpointError:
        return CheckpointError(f"{(self.folder / self.manifest.shards[number].file).uri}: damaged; {what}")

    def _check_sizes(self) -> None:
        sizes = {one.path: one.bytes for one in self.folder.files(deep=False)}  # one request for all
        for shard in self.manifest.shards:
            if (size := sizes.get(shard.file)) != shard.size_bytes:
                found = "no such file" if size is None else f"found {size} bytes"
                raise CheckpointError(f"{(self.folder / shard.file).uri}: {found}; expected {shard.size_bytes}")


def _manifest_from(content: dict[str, Any]) -> Manifest:
    """content: checked."""
    if content.pop("version") == 1:
        shards: Shards = ListedShards.from_json(content.pop("shards"))
    else:
        shards = PlacedShards.from_json(content.pop("shards"), content.pop("layout"), content.pop("fragment_numel"))
    parameters = tuple(
        ParameterEntry(**{**entry, "shape": tuple(entry["shape"]), "head_starts": _runs(entry.get("head_starts", ()))})
        for entry in content.pop("parameters")
    )
    return Manifest(model=ModelShape(**content.pop("model")), shards=shards, parameters=parameters, **content)


def _runs(axes: Iterable[Iterable[Iterable[int]]]) -> Runs:
    return tuple(tuple(tuple(run) for run in axis) for axis in axes)
