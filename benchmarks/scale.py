"""What a resume reads before it reads numbers, by workers and parameters: python benchmarks/scale.py [--version 1|2]

    python benchmarks/scale.py --requests [--params 70B]

Llama shapes of 1, 7 and 70 billion parameters with Adam's moments, cut over 8, 64 and 1,024 workers as ZeRO 3 cuts. No
training, and no numbers: the files of the shards are sparse, with a real index at their end. Manifest and indexes are
written, read and verified by raystage's own code. A worker then plans what it reads in three layouts: as it was saved,
on half as many workers, and as ZeRO 1 cuts. "told" is what a worker sends to the first one at a save.

`--version 1` gives the size of the manifest that listed all fragments, which every worker read. It is counted fragment
by fragment, with the keys and the separators that it had, and not written.

`--requests` fills a worker's partitions through the code of a resume, and counts its requests to the shards, those for
indexes included, and the bytes that they bring: for each fragment by itself, as from a disk, and read ahead, as from an
object store. Of 1,024 workers; the shards hold zeros. "stack" grows a model of half the layers, in the same layout.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import torch
import xxhash

from raystage.files.filesystem import OpenFile, open_folder
from raystage.growth.apply import Grown
from raystage.growth.rules import growth_map
from raystage.models.shape import ModelShape, num_params, parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry, manifest_bytes, manifest_from
from raystage.storage.shards.ahead import Ahead
from raystage.storage.shards.contents import CHECKSUM_BYTES, ITEM_BYTES, Shard, Span, StoredFragment
from raystage.storage.shards.telling import equal_cut, placed_as_told, told
from raystage.storage.shards.writing import WrittenShard, fragments_in, header_of, shard_name
from raystage.train.entry import fill_partitions
from raystage.train.partitions import Partition
from raystage.train.state.shards import in_pieces

STATES = ("exp_avg", "exp_avg_sq", "fp32")
SHAPES = {
    "1B": ModelShape("llama", 16, 2048, 32, 8, 64, 8192, 128_256, 4096),
    "7B": ModelShape("llama", 32, 4096, 32, 32, 128, 11_008, 32_000, 4096),
    "70B": ModelShape("llama", 80, 8192, 64, 8, 128, 28_672, 128_256, 4096),
}
TITLES = {
    1: ("model", "workers", "fragments", "manifest, read by every worker", "by a node of 8"),
    2: ("model", "workers", "manifest", "indexes, same layout", "on half the workers", "as ZeRO 1", "node of 8", "told",
        "s, same", "s, ZeRO 1", "s, joining"),
}  # fmt: skip
WORKERS = (8, 64, 1024)
WORKERS_PER_NODE = 8
RANK = 3  # of the worker that plans a resume
HEADER_BYTES = 2**18  # in place of the header of a shard of zeros


def spans_of(sizes: dict[str, int], rank: int, world: int) -> tuple[Span, ...]:
    """As ZeRO 3 cuts, in the order of a shard."""
    cuts = ((name, *equal_cut(size, rank, world)) for name, size in sorted(sizes.items()))
    return tuple((name, state, *cut) for name, *cut in cuts for state in STATES if cut[0] < cut[1])


def flat_spans(sizes: dict[str, int], rank: int, world: int) -> Iterator[Span]:
    """As ZeRO 1 cuts: all parameters end to end."""
    first, last = (sum(sizes.values()) * edge // world for edge in (rank, rank + 1))
    at = 0
    for name, size in sizes.items():
        start, stop = max(first - at, 0), min(last - at, size)
        if start < stop:
            yield from ((name, state, start, stop) for state in STATES)
        at += size


# --- version 2 --------------------------------------------------------------------------------


def write(shape: ModelShape, world: int, folder: Path) -> tuple[int, float]:
    """A checkpoint without numbers. Returns the bytes that a worker tells, and the first worker's seconds to join what
    all have told and write the manifest."""
    sizes = {one.name: one.numel for one in parameters(shape)}
    all_told = [told(_shard(sizes, rank, world, folder), sizes, rank, world) for rank in range(world)]
    began = time.perf_counter()
    entries = tuple(ParameterEntry(one.name, one.shape, "float32", 1) for one in parameters(shape))
    shards = placed_as_told(all_told, sizes)
    checkpoint.commit(open_folder(folder), Manifest(shape, entries, shards, "", 1, 1, {}, {}, {}, {}))
    return len(pickle.dumps(all_told[RANK])), time.perf_counter() - began


def _index_of_zeros(numels: Iterable[int]) -> bytes:
    """The index of fragments of so many zeros."""
    return b"".join(_checksum_of_zeros(numel) for numel in numels)


@cache
def _checksum_of_zeros(numel: int) -> bytes:
    return xxhash.xxh3_128_digest(bytes(ITEM_BYTES * numel))


def _shard(sizes: dict[str, int], rank: int, world: int, folder: Path) -> WrittenShard:
    spans = spans_of(sizes, rank, world)
    fragments = [one for span in spans for one in fragments_in(span)]
    header, index = len(header_of(fragments)), os.urandom(CHECKSUM_BYTES * len(fragments))
    size, name = header + 4 * sum(stop - start for *_, start, stop in spans) + len(index), shard_name(rank, world)
    with (folder / name).open("wb") as file:
        file.seek(size - len(index))
        file.write(index)
    shard = Shard(name, size, f"xxh3_128:{'0' * 32}", header, xxhash.xxh3_128_hexdigest(index))
    return WrittenShard(shard, spans)


def planned(folder: Path, spans: Iterator[Span] | tuple[Span, ...]) -> tuple[int, float]:
    """What a worker that has these spans reads besides the manifest, in bytes, and how long it takes in all."""
    began, place = time.perf_counter(), open_folder(folder).unmapped
    opened = Checkpoint(place, manifest_from(manifest_bytes(place), place))
    for parameter, state, start, stop in spans:
        for _ in opened.manifest.shards.overlapping(parameter, state, start, stop, opened._index):
            pass
    opened.close()
    return opened.bytes_read, time.perf_counter() - began


def row(name: str, world: int) -> str:
    shape = SHAPES[name]
    sizes = {one.name: one.numel for one in parameters(shape)}
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        told_bytes, joining = write(shape, world, folder)
        manifest = (folder / checkpoint.MANIFEST).stat().st_size
        same, same_seconds = planned(folder, spans_of(sizes, RANK, world))
        node = manifest + WORKERS_PER_NODE * same
        half, _ = planned(folder, spans_of(sizes, RANK, max(1, world // 2)))
        flat, flat_seconds = planned(folder, flat_spans(sizes, RANK, world))
    figures = [_kilobytes(one) for one in (manifest, same, half, flat, node, told_bytes)]
    seconds = [f"{one:.2f}" for one in (same_seconds, flat_seconds, joining)]
    return f"| {name} | {world:,} | {' | '.join([*figures, *seconds])} |"


def _kilobytes(count: int) -> str:
    return f"{count / 1e3:,.1f} kB"


# --- requests -----------------------------------------------------------------------------------


class CountedFile(OpenFile):
    """reads: the length of every read of such files."""

    reads: ClassVar[list[int]] = []

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self.reads.append(num_bytes)
        return super().read_at(num_bytes, offset)

    def view_at(self, num_bytes: int, offset: int) -> pa.Buffer:
        self.reads.append(num_bytes)
        return super().view_at(num_bytes, offset)

    def read_into(self, into: memoryview, offset: int) -> int:
        self.reads.append(len(into))
        return super().read_into(into, offset)


class CountedCheckpoint(Checkpoint):
    """The files of its shards are counted."""

    def _open(self, name: str) -> OpenFile:
        return CountedFile(self.folder / name)


def write_zeros(shape: ModelShape, world: int, folder: Path) -> None:
    """A checkpoint of zeros in sparse files, as ZeRO 3 cuts; in place of their headers there is a gap."""
    sizes = {one.name: one.numel for one in parameters(shape)}
    spans = [spans_of(sizes, rank, world) for rank in range(world)]
    written = [
        WrittenShard(_shard_of_zeros(own, shard_name(rank, world), folder), own) for rank, own in enumerate(spans)
    ]
    entries = tuple(ParameterEntry(one.name, one.shape, "float32", 1) for one in parameters(shape))
    shards = placed_as_told([told(one, sizes, rank, world) for rank, one in enumerate(written)], sizes)
    checkpoint.commit(open_folder(folder), Manifest(shape, entries, shards, "", 1, 1, {}, {}, {}, {}))


def _shard_of_zeros(spans: tuple[Span, ...], name: str, folder: Path) -> Shard:
    numels = [stop - start for *_, first, last in spans for start, stop in in_pieces(first, last)]
    index = _index_of_zeros(numels)
    size = HEADER_BYTES + ITEM_BYTES * sum(numels) + len(index)
    with (folder / name).open("wb") as file:
        file.seek(size - len(index))
        file.write(index)
    return Shard(name, size, f"xxh3_128:{'0' * 32}", HEADER_BYTES, xxhash.xxh3_128_hexdigest(index))


def partitions_of(spans: Iterable[tuple[str, int, int]]) -> list[Partition]:
    """All of them in one place: nobody looks at the numbers."""
    spans = list(spans)
    place = torch.empty(max(stop - start for _, start, stop in spans))
    return [
        Partition(name, start, stop, dict.fromkeys(STATES, place[: stop - start]), (0, 0), place)
        for name, start, stop in spans
    ]


def requests_row(name: str, source: ModelShape, target: ModelShape, folder: Path, world: int, zero_stage: int) -> str:
    """world, zero_stage: of the workers that resume."""
    sizes = {one.name: one.numel for one in parameters(target)}
    if zero_stage == 3:
        spans = [(one, *equal_cut(size, RANK, world)) for one, size in sizes.items()]
    else:
        spans = list(dict.fromkeys((one, start, stop) for one, _, start, stop in flat_spans(sizes, RANK, world)))
    parts = partitions_of(one for one in spans if one[1] < one[2])
    rules, cells = growth_map(source, target, "stack" if source != target else "identity", "grow"), []
    for ahead in (None, Ahead()):
        place = open_folder(folder).unmapped
        opened = CountedCheckpoint(place, manifest_from(manifest_bytes(place), place))
        opened._ahead = ahead
        CountedFile.reads.clear()
        fill_partitions(parts, Grown(rules, opened.read, 0), opened)
        opened.close()
        cells += [f"{len(CountedFile.reads):,}", f"{sum(CountedFile.reads) / 1e6:,.0f} MB"]
    return f"| {name} | {' | '.join(cells)} |"


def requests_table(name: str) -> None:
    shape = SHAPES[name]
    half, world = shape.with_layers(shape.num_layers // 2), WORKERS[-1]
    print(f"| {name} | fragments | bytes | ahead | bytes |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as path:
        write_zeros(shape, world, Path(path))
        for title, workers, zero_stage in (("same layout", world, 3), ("half the workers", world // 2, 3),
                                           ("ZeRO 1", world, 1)):  # fmt: skip
            print(requests_row(title, shape, shape, Path(path), workers, zero_stage), flush=True)
    with tempfile.TemporaryDirectory() as path:
        write_zeros(half, world, Path(path))
        print(requests_row("stack", half, shape, Path(path), world, 3), flush=True)


# --- version 1 --------------------------------------------------------------------------------


def row_of_version_1(name: str, world: int) -> str:
    shape = SHAPES[name]
    sizes = {one.name: one.numel for one in parameters(shape)}
    count = manifest = 0
    for rank in range(world):
        offset = 0
        for span in spans_of(sizes, rank, world):
            for one in fragments_in(span):
                fragment = StoredFragment(*one, offset, "0" * 32)
                count, manifest = count + 1, manifest + len(json.dumps(vars(fragment))) + 2
                offset += fragment.num_bytes
    return (
        f"| {name} | {world:,} | {count:,} | {manifest / 1e6:,.1f} MB | {WORKERS_PER_NODE * manifest / 1e6:,.0f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", type=int, choices=(1, 2), default=2)
    parser.add_argument("--params", choices=SHAPES, action="append")
    parser.add_argument("--requests", action="store_true")
    asked = parser.parse_args()
    names = asked.params or list(SHAPES)
    if asked.requests:
        for name in names:
            requests_table(name)
        return
    titles = TITLES[asked.version]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in names:
        for world in WORKERS:
            print((row if asked.version == 2 else row_of_version_1)(name, world), flush=True)
    print(f"\n{', '.join(f'{name}: {num_params(SHAPES[name]) / 1e9:.2f}e9' for name in names)} parameters; "
          f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip


if __name__ == "__main__":
    main()
