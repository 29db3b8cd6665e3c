"""Writes the file of a shard, from front to back; and tells what a manifest says of shards that were written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import xxhash

from raystage.files.filesystem import FileToWrite, Folder
from raystage.files.safetensors import Tensor, header_bytes, laid_out
from raystage.storage.shards.contents import CHECKSUM_BYTES, Shard, Span
from raystage.storage.shards.placed import Held, PlacedShards, Run

FORMAT = "raystage-checkpoint"
INDEX = "checksums"  # the tensor that holds the index of a shard
# The elements of a fragment. A reader verifies every fragment of which it reads a part. With short fragments several
# workers verify less of the same data; each fragment takes 16 bytes in the index of its shard.
FRAGMENT_NUMEL = 2**18
_CHUNK_BYTES = 2**20
_SYNC_BYTES = 32 * 2**20  # handed to the disk at a time, while more is written

# What a worker writes: parameter, state, start and the flat float32 values.
Piece = tuple[str, str, int, np.ndarray]
Values = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class WrittenShard:
    """A shard's file, and the spans that it holds, in order."""

    file: Shard
    spans: tuple[Span, ...]


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05}-of-{world:05}.safetensors"


def write_shard(folder: Folder, name: str, pieces: Iterable[Piece]) -> WrittenShard:
    """Write one worker's slices as a safetensors file, from front to back, and sync it to disk."""
    pieces = sorted(pieces, key=itemgetter(0, 1, 2))
    spans = [(parameter, state, start, start + values.size) for parameter, state, start, values in pieces]
    return stream_shard(folder, name, spans, lambda: (values for *_, values in pieces))


def stream_shard(folder: Folder, name: str, spans: Iterable[Span], values: Values) -> WrittenShard:
    """Write a shard whose spans are known before, and sync it to disk. spans: sorted. values: the flat float32 values
    of one after the other; asked for again where a storage service did not answer for a while.

    The file is written in a stream, because the safetensors library would first build all of it in memory.
    """
    spans = list(spans)
    joined = tuple(_joined(spans))
    fragments = [one for span in joined for one in fragments_in(span)]
    header = header_of(fragments)

    def write(file: FileToWrite) -> Shard:
        whole, index = xxhash.xxh3_128(header), _Index(fragments)
        file.write(header)
        written = begun = len(header)
        for chunk in _chunks(spans, values()):  # written and hashed while it is in the CPU cache
            file.write(chunk)
            whole.update(chunk)
            index.update(chunk)
            written += len(chunk)
            if written - begun >= _SYNC_BYTES:
                begun = written
                folder.begin_sync(name)
        checksums = index.content()
        file.write(checksums)
        whole.update(checksums)
        index_checksum = xxhash.xxh3_128_hexdigest(checksums)
        return Shard(name, file.tell(), f"xxh3_128:{whole.hexdigest()}", len(header), index_checksum)

    shard = folder.write_stream(name, write)
    folder.sync(name)
    return WrittenShard(shard, joined)


def fragments_in(span: Span) -> Iterator[Span]:
    """A span cut into the fragments that it is stored as."""
    parameter, state, start, stop = span
    for first in range(start, stop, FRAGMENT_NUMEL):
        yield parameter, state, first, min(first + FRAGMENT_NUMEL, stop)


def header_of(fragments: Iterable[Span], has_index: bool = True) -> bytes:
    """The header of a shard with these fragments."""
    tensors = [
        Tensor(f"{name}:{state}:{start}-{stop}", "F32", (stop - start,)) for name, state, start, stop in fragments
    ]
    index = [Tensor(INDEX, "U8", (len(tensors), CHECKSUM_BYTES))] if has_index else []
    return header_bytes(laid_out(tensors + index), {"format": FORMAT})


class _Index:
    """Makes the index of a shard while its values pass by."""

    def __init__(self, fragments: Iterable[Span]) -> None:
        self._left = [4 * (stop - start) for *_, start, stop in reversed(list(fragments))]
        self._checksums = bytearray()
        self._current = xxhash.xxh3_128()

    def update(self, chunk: memoryview) -> None:
        while chunk:
            own = chunk[: self._left[-1]]
            self._current.update(own)
            self._left[-1] -= len(own)
            chunk = chunk[len(own) :]
            if not self._left[-1]:
                self._left.pop()
                self._checksums += self._current.digest()
                self._current = xxhash.xxh3_128()

    def content(self) -> bytes:
        return bytes(self._checksums)


def _chunks(spans: Iterable[Span], values: Iterable[np.ndarray]) -> Iterator[memoryview]:
    """The bytes of the values. Raises ValueError where they are not as many as the spans have."""
    for span, part in zip(spans, values, strict=True):
        data = memoryview(np.ascontiguousarray(part, dtype="<f4")).cast("B") if part.size else memoryview(b"")
        expected = 4 * (span[3] - span[2])
        if len(data) != expected:
            raise ValueError(f"found {len(data)} bytes for {span}; expected {expected}")
        for first in range(0, len(data), _CHUNK_BYTES):
            yield data[first : first + _CHUNK_BYTES]


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans without empty ones, and those joined that lie end to end. Raises ValueError where they are not in the
    order of a shard."""
    current: Span | None = None
    for span in spans:
        *_, start, stop = span
        if start == stop:
            continue
        if current is not None and current[:2] == span[:2] and current[3] == start:
            current = (*current[:3], stop)
            continue
        if current is not None:
            if not current < span:
                raise ValueError(f"found {span} behind {current}; expected spans in order")
            yield current
        current = span
    if current is not None:
        yield current


# --- what a manifest says of them -----------------------------------------------------------


def placed(written: Iterable[WrittenShard]) -> PlacedShards:
    """The shards of a checkpoint that one process has written, or knows all spans of."""
    written = list(written)
    spans = ((*span, number) for number, one in enumerate(written) for span in one.spans)
    return placed_from((one.file for one in written), runs_of(spans))


def placed_from(files: Iterable[Shard], runs: Mapping[tuple[str, str], tuple[Run, ...]]) -> PlacedShards:
    """runs: by parameter and state."""
    held: dict[tuple[str, tuple[Run, ...]], list[str]] = {}
    for (parameter, state), own in sorted(runs.items()):
        held.setdefault((parameter, own), []).append(state)
    found = tuple(Held(parameter, tuple(states), own) for (parameter, own), states in held.items())
    return PlacedShards(tuple(files), found, FRAGMENT_NUMEL)


def runs_of(spans: Iterable[tuple[str, str, int, int, int]]) -> dict[tuple[str, str], tuple[Run, ...]]:
    """spans: each with the number of its shard."""
    return {name: tuple(_runs(own)) for name, own in groupby(sorted(spans), key=itemgetter(0, 1))}


def _runs(spans: Iterable[tuple[str, str, int, int, int]]) -> Iterator[Run]:
    """Of one state of a parameter, in the order of their starts."""
    run: Run | None = None
    for *_, start, stop, shard in spans:
        is_next = run is not None and (start, shard) == (run.stop, run.shard + run.count)
        if is_next and (run.stop - run.start) % run.length == 0 and stop - start <= run.length:
            run = run._replace(stop=stop)
            continue
        if run is not None:
            yield run
        run = Run(start, stop, stop - start, shard)
    if run is not None:
        yield run
