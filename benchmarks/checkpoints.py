"""How fast a sharded checkpoint passes from one layout of workers into another, against `cp -r` of the same bytes.

    python benchmarks/checkpoints.py [--params 100M|500M] [--repeats 3]

Two workers' partitions as ZeRO 1 cuts them are saved and loaded into three workers' as ZeRO 3 cuts them; then a model
of half the layers, and one of half the width, are grown while they load. All of it in fp32 with Adam's moments, through
raystage's own code on partitions of the engines' sizes; no engine is built, so no weights are broadcast afterwards.

Files are brought to the disk (fsync) wherever any are written; everything that is read lies in the page
cache. Prints a Markdown table of medians and each repeat's ratios; needs Linux and six times the state's bytes of
disk (1.3 GB at 100M).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch

from raystage.files.filesystem import open_folder
from raystage.growth.apply import Grown
from raystage.growth.operators import parse_operator
from raystage.growth.rules import growth_map
from raystage.models.shape import ModelShape, num_params, parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.writing import WrittenShard, placed, shard_name
from raystage.train.entry import fill_partitions
from raystage.train.partitions import Partition
from raystage.train.state.shards import fragments_of, write_fragments

STATES = ("fp32", "exp_avg", "exp_avg_sq")
SHAPES = {
    "100M": ModelShape("llama", 12, 768, 12, 12, 64, 2048, 16000, 512),
    "500M": ModelShape("llama", 14, 1536, 24, 24, 64, 4096, 32000, 512),
}
SAVING, LOADING = 2, 3
# Forked, so that the imports are paid for once; nothing here has started a thread by then.
FORK = multiprocessing.get_context("fork")

# A worker's part of a measurement: what comes before its `yield` is not measured; it says its result through `tell`.
Work = Callable[..., Iterator[None]]


def timed(world: int, work: Work, *arguments: Any, then: Callable[[list], None] = list) -> float:
    """The seconds that `world` processes take for `work(rank, world, tell, *arguments)`, all of them ready beforehand,
    with what the first one does `then` with their results."""
    barrier, told = FORK.Barrier(world + 1), FORK.Queue()
    workers = [FORK.Process(target=_worked, args=(barrier, told, work, r, world, *arguments)) for r in range(world)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.monotonic()
    results = [told.get() for _ in workers]
    then(results)
    seconds = time.monotonic() - began
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit("a worker failed")
    return seconds


def _worked(barrier: Any, told: Any, work: Work, rank: int, world: int, *arguments: Any) -> None:
    torch.set_num_threads(1)
    result: list[Any] = []
    try:
        steps = work(rank, world, result.append, *arguments)
        next(steps)
        barrier.wait()
        next(steps, None)
        told.put(result)
    except BaseException:
        barrier.abort()
        told.put(result)
        raise


# --- raystage ---------------------------------------------------------------------------------


def partitions(shape: ModelShape, rank: int, world: int, zero_stage: int) -> list[Partition]:
    """A worker's partitions as DeepSpeed cuts them, in memory that is there already."""
    spans = list(_spans(shape, rank, world, zero_stage))
    flats = {state: torch.randn(sum(stop - start for _, start, stop in spans)) for state in STATES}
    parts, offset = [], 0
    for name, start, stop in spans:
        tensors = {state: flat.narrow(0, offset, stop - start) for state, flat in flats.items()}
        parts.append(Partition(name, start, stop, tensors, (0, stop - start), flats["fp32"]))
        offset += stop - start
    return parts


def _spans(shape: ModelShape, rank: int, world: int, zero_stage: int) -> Iterator[tuple[str, int, int]]:
    """ZeRO 1: all parameters end to end, cut evenly. ZeRO 3: each on its own."""
    first, last = (num_params(shape) * edge // world for edge in (rank, rank + 1))
    at = 0
    for parameter in parameters(shape):
        if zero_stage == 3:
            length = -(-parameter.numel // world)
            start, stop = min(rank * length, parameter.numel), min((rank + 1) * length, parameter.numel)
        else:
            start, stop = max(first - at, 0), min(last - at, parameter.numel)
        if start < stop:
            yield parameter.name, start, stop
        at += parameter.numel


def save(rank: int, world: int, tell: Callable, shape: ModelShape, path: str) -> Iterator[None]:
    parts = partitions(shape, rank, world, 1)
    yield
    name = shard_name(rank, world)
    tell(write_fragments(fragments_of(parts), open_folder(path), name))


def commit(shape: ModelShape, path: str, shards: list[WrittenShard]) -> None:
    entries = tuple(ParameterEntry(one.name, one.shape, "float32", 1) for one in parameters(shape))
    checkpoint.commit(open_folder(path), Manifest(shape, entries, placed(shards), "", 1, 1, {}, {}, {}, {}))


def load(
    rank: int, world: int, tell: Callable, source: ModelShape, target: ModelShape, operator: str, path: str
) -> Iterator[None]:
    parts = partitions(target, rank, world, 3)
    yield
    opened = Checkpoint(open_folder(path).unmapped)  # as `entry.find_entry` opens it
    grown = Grown(growth_map(source, target, parse_operator(operator), "grow"), opened.read, 0)
    fill_partitions(parts, grown, opened)
    opened.close()
    tell(None)


def saved(shape: ModelShape, path: Path) -> float:
    def finish(results: list) -> None:
        commit(shape, str(path), [shard for (shard,) in results])

    return timed(SAVING, save, shape, str(path), then=finish)


def loaded(source: ModelShape, target: ModelShape, operator: str, path: Path) -> float:
    return timed(LOADING, load, source, target, operator, str(path))


def copied(path: Path, target: Path) -> float:
    """`cp -r`, and every file brought to the disk."""
    began = time.monotonic()
    subprocess.run(["cp", "-r", path, target], check=True)
    subprocess.run(["sync", *target.iterdir()], check=True)
    seconds = time.monotonic() - began
    subprocess.run(["rm", "-r", target], check=True)
    return seconds


# --- the table --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One line in one repeat: its seconds and those of what it is held against, on the same number of bytes."""

    name: str
    num_bytes: int
    seconds: float
    against: float


def measure(shape: ModelShape, folder: Path) -> list[Measured]:
    """One repeat."""
    found = []
    size = 4 * len(STATES) * num_params(shape)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place)
        saving = saved(shape, path / "whole")
        copy = copied(path / "whole", path / "copy")
        loading = loaded(shape, shape, "identity", path / "whole")
        found += [
            Measured("save, 2 workers ZeRO 1", size, saving, copy),
            Measured("load, 3 workers ZeRO 3", size, loading, copy),
            Measured("save and load", size, saving + loading, copy),
        ]
        for name, half, operator in halves(shape):
            saved(half, path / name)
            found.append(Measured(f"growth on load, {name}", size, loaded(half, shape, operator, path / name), copy))
    return found


def halves(shape: ModelShape) -> list[tuple[str, ModelShape, str]]:
    """The models that grow into `shape`: the name of the case, the source and the operator."""
    heads = shape.num_heads // 2
    narrow = replace(
        shape, hidden_size=shape.hidden_size // 2, ffn_size=shape.ffn_size // 2, num_heads=heads, num_kv_heads=heads
    )
    return [
        ("stack", shape.with_layers(shape.num_layers // 2), "stack"),
        ("duplicate", narrow, "width=duplicate"),
    ]


def table(repeats: list[list[Measured]]) -> str:
    lines = ["| what | GB | s | `cp -r`, s | ratio, median | each repeat |", "|---|---|---|---|---|---|"]
    for row in zip(*repeats, strict=True):
        ratios = [one.seconds / one.against for one in row]
        seconds, against = (statistics.median(getattr(one, what) for one in row) for what in ("seconds", "against"))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        figures = (row[0].num_bytes / 1e9, seconds, against, statistics.median(ratios))
        lines.append("| ".join(["", f"{row[0].name} ", *(f"{figure:.2f} " for figure in figures), f"{each} |"]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", choices=SHAPES, default="100M")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    asked = parser.parse_args()
    shape = SHAPES[asked.params]
    print(f"{num_params(shape) / 1e6:.0f}M parameters; load average {os.getloadavg()[0]:.1f}", flush=True)
    repeats = [measure(shape, asked.folder) for _ in range(asked.repeats)]
    print(table(repeats), flush=True)


if __name__ == "__main__":
    main()
