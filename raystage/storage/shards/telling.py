"""How workers tell the first one what their shards hold, in few bytes.

Under ZeRO 3 every worker holds a slice of every parameter: all of them together are as many spans as workers times
parameters. Almost all of these come from one cut into equal slices, which follows from a worker's rank. So a worker
sends a bit for each parameter that is cut so, and only the other spans in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from raystage.storage.shards.contents import Shard, Span
from raystage.storage.shards.placed import PlacedShards, Run
from raystage.storage.shards.writing import WrittenShard, placed_from, runs_of


@dataclass(frozen=True)
class Told:
    """What a worker tells. Sets of parameters are numbers, with bit i for the i-th parameter by name.

    equal: by state the parameters of which it holds the equal cut. without: those whose equal cut is empty for it, and
    of which it holds nothing. others: all other spans.
    """

    file: Shard
    equal: Mapping[str, int]
    without: int
    others: tuple[Span, ...]


def equal_cut(numel: int, rank: int, world: int) -> tuple[int, int]:
    """The slice of a parameter that a worker has where all have equal ones, except for the last."""
    length = -(-numel // world)
    start = min(rank * length, numel)
    return start, min(start + length, numel)


class Bits:
    """Sets of parameters as numbers. sizes: the elements of every parameter."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.names = sorted(sizes)
        self._places = {name: place for place, name in enumerate(self.names)}

    def of(self, names: Iterable[str]) -> int:
        return reduce(or_, (1 << self._places[name] for name in names), 0)

    def in_set(self, bits: int) -> Iterator[str]:
        while bits:
            lowest = bits & -bits
            yield self.names[lowest.bit_length() - 1]
            bits ^= lowest


def packed_steps(steps: Mapping[str, int], sizes: Mapping[str, int]) -> dict[int, int]:
    """The optimizer steps of parameters: by the number of steps the parameters that have seen so many."""
    bits, by_step = Bits(sizes), dict[int, list[str]]()
    for name, step in steps.items():
        by_step.setdefault(step, []).append(name)
    return {step: bits.of(names) for step, names in by_step.items()}


def unpacked_steps(all_packed: Iterable[Mapping[int, int]], sizes: Mapping[str, int]) -> dict[str, int]:
    """The steps of all parameters, of which every worker has told those that it knows."""
    joined: dict[int, int] = {}
    for packed in all_packed:
        for step, own in packed.items():
            joined[step] = joined.get(step, 0) | own
    return {name: step for step, own in joined.items() for name in Bits(sizes).in_set(own)}


def told(written: WrittenShard, sizes: Mapping[str, int], rank: int, world: int) -> Told:
    """sizes: the elements of every parameter of the checkpoint."""
    bits, cuts = Bits(sizes), {name: equal_cut(size, rank, world) for name, size in sizes.items()}
    equal: dict[str, list[str]] = {}
    others = []
    for parameter, state, start, stop in written.spans:
        if (start, stop) == cuts[parameter]:
            equal.setdefault(state, []).append(parameter)
        else:
            others.append((parameter, state, start, stop))
    held = {parameter for parameter, *_ in written.spans}
    without = (name for name, (start, stop) in cuts.items() if start == stop and name not in held)
    by_state = {state: bits.of(names) for state, names in equal.items()}
    return Told(written.file, by_state, bits.of(without), tuple(others))


def placed_as_told(all_told: Sequence[Told], sizes: Mapping[str, int]) -> PlacedShards:
    """The shards of a checkpoint. all_told: by rank, of all workers."""
    bits, world = Bits(sizes), len(all_told)
    everywhere = {state: _everywhere(all_told, state) for state in all_told[0].equal}
    runs = {
        (name, state): (_equal_run(sizes[name], world),)
        for state, own in everywhere.items()
        for name in bits.in_set(own)
    }
    spans = [(*span, rank) for rank, one in enumerate(all_told) for span in one.others]
    for rank, one in enumerate(all_told):
        for state, own in one.equal.items():
            apart = bits.in_set(own & ~everywhere.get(state, 0))
            spans += ((name, state, *equal_cut(sizes[name], rank, world), rank) for name in apart)
    return placed_from((one.file for one in all_told), runs | runs_of(spans))


def _everywhere(all_told: Sequence[Told], state: str) -> int:
    """The parameters of which all workers hold the equal cut. The first worker's is empty for none of them."""
    found = all_told[0].equal[state]
    for one in all_told:
        found &= one.equal.get(state, 0) | one.without
    return found


def _equal_run(numel: int, world: int) -> Run:
    return Run(0, numel, -(-numel // world), 0)
