"""Checkpoints of a few numbers, cut into shards as several workers would cut them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from raystage.files.filesystem import Folder
from raystage.models.shape import ModelShape
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.writing import Piece, placed, shard_name, write_shard

SHAPE = ModelShape("llama", 1, 8, 2, 2, 4, 16, 11, 10)
SHAPES = {"embed.weight": (11, 8), "layers.0.up.weight": (16, 8), "layers.0.norm.weight": (8,), "scale": (1,)}
STATES = ("fp32", "exp_avg", "exp_avg_sq")


def make_values(seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """Every state of every parameter, flat."""
    generator = np.random.default_rng(seed)
    return {
        (name, state): generator.standard_normal(int(np.prod(shape)), dtype=np.float32)
        for name, shape in SHAPES.items()
        for state in STATES
    }


def flat_cuts(workers: int) -> list[list[tuple[str, int, int]]]:
    """As ZeRO 1 and 2 cut: all parameters end to end, in `workers` equal stretches."""
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    begins = [0, *itertools.accumulate(sizes)]
    part = -(-begins[-1] // workers)
    return [
        [
            (name, max(0, rank * part - begin), min(size, (rank + 1) * part - begin))
            for name, begin, size in zip(SHAPES, begins, sizes, strict=False)
            if max(begin, rank * part) < min(begin + size, (rank + 1) * part)
        ]
        for rank in range(workers)
    ]


def parameter_cuts(workers: int) -> list[list[tuple[str, int, int]]]:
    """As ZeRO 3 cuts: every parameter in `workers` stretches, of which the last may be short or empty."""
    cuts: list[list[tuple[str, int, int]]] = [[] for _ in range(workers)]
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        part = -(-size // workers)
        for rank, own in enumerate(cuts):
            if rank * part < size:
                own.append((name, rank * part, min(size, (rank + 1) * part)))
    return cuts


def write(
    folder: Folder,
    cuts: list[list[tuple[str, int, int]]],
    seed: int = 0,
    tokens: int = 300,
    shape: ModelShape = SHAPE,
) -> Manifest:
    """A checkpoint of `make_values(seed)` with a shard for each list of slices. shape: what its manifest says."""
    values = make_values(seed)
    shards = placed(
        write_shard(folder, shard_name(rank, len(cuts)), _pieces(values, own)) for rank, own in enumerate(cuts)
    )
    entries = tuple(ParameterEntry(name, shape, "float32", 3) for name, shape in SHAPES.items())
    manifest = Manifest(shape, entries, shards, "key", 3, tokens, {}, {"seed": seed}, {"name": "adamw"}, {"steps": 3})
    checkpoint.commit(folder, manifest)
    return manifest


def _pieces(values: dict[tuple[str, str], np.ndarray], cuts: list[tuple[str, int, int]]) -> Iterator[Piece]:
    for name, start, stop in cuts:
        for state in STATES:
            yield name, state, start, values[name, state][start:stop]
