"""What a resume reads before it reads numbers, by workers and parameters: python benchmarks/scale.py [--version 1|2]

Llama shapes of 1, 7 and 70 billion parameters with Adam's moments, cut over 8, 64 and 1,024 workers as ZeRO 3 cuts. No
training, and no numbers: the files of the shards are sparse, with a real index at their end. Manifest and indexes are
written, read and verified by raystage's own code. A worker then plans what it reads in three layouts: as it was saved,
on half as many workers, and as ZeRO 1 cuts. "told" is what a worker sends to the first one at a save.

`--version 1` gives the size of the manifest that listed all fragments, which every worker read. It is counted fragment
by fragment, with the keys and the separators that it had, and not written.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import xxhash

from raystage.files.filesystem import open_folder
from raystage.models.shape import ModelShape, num_params, parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry, manifest_bytes, manifest_from
from raystage.storage.shards.contents import CHECKSUM_BYTES, Shard, Span, StoredFragment
from raystage.storage.shards.telling import equal_cut, placed_as_told, told
from raystage.storage.shards.writing import WrittenShard, fragments_in, header_of, shard_name

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
    asked = parser.parse_args()
    names = asked.params or list(SHAPES)
    titles = TITLES[asked.version]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in names:
        for world in WORKERS:
            print((row if asked.version == 2 else row_of_version_1)(name, world), flush=True)
    print(f"\n{', '.join(f'{name}: {num_params(SHAPES[name]) / 1e9:.2f}e9' for name in names)} parameters; "
          f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip


if __name__ == "__main__":
    main()
