"""Reads shards of an object store in few large requests, where what will be read of them is known.

A fragment is at most 1 MiB, and each read of one would be a request. Neighbours in a shard that are both wanted come in
one request, over a gap if it is small. What comes with a request before its turn is held until it is read. So readers
should go through a shard from front to back; where they go another way, the bits are the same, and requests more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TypeVar

from raystage.files.filesystem import OpenFile
from raystage.storage.shards.contents import StoredFragment

Item = TypeVar("Item")

GAP_BYTES = 256 * 2**10  # what a request takes with it rather than ending
REQUEST_BYTES = 8 * 2**20
HELD_BYTES = 3 * REQUEST_BYTES


@dataclass(frozen=True)
class FileRange:
    """The bytes [start, stop) of the file of shard number `shard`: a whole fragment."""

    shard: int
    start: int
    stop: int


class Ahead:
    """What is wanted of the shards of a checkpoint, and what of it is held: at most HELD_BYTES."""

    def __init__(self) -> None:
        self._wanted: dict[int, tuple[list[int], list[int]]] = {}
        self._blocks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def want(self, found: Iterable[FileRange]) -> None:
        """Forget what was wanted and held before; from now on these are."""
        self._blocks.clear()
        self._wanted = {}
        for one in sorted(set(found), key=lambda one: (one.shard, one.start)):
            starts, stops = self._wanted.setdefault(one.shard, ([], []))
            starts.append(one.start)
            stops.append(one.stop)

    def view(self, shard: int, file: OpenFile, num_bytes: int, offset: int) -> memoryview:
        """The bytes [offset, offset + num_bytes) of a shard, or fewer where its file ends."""
        for place, (number, start) in enumerate(reversed(self._blocks)):
            held = self._blocks[number, start]
            if number == shard and start <= offset and offset + num_bytes <= start + len(held):
                if place:
                    self._blocks.move_to_end((number, start))
                return held[offset - start : offset - start + num_bytes]
        stop = self._end_of_request(shard, offset, offset + num_bytes)
        self._make_room(stop - offset)
        found = memoryview(file.read_at(stop - offset, offset))
        if stop - offset > num_bytes:
            self._blocks[shard, offset] = found
        return found[:num_bytes]

    def _end_of_request(self, shard: int, start: int, stop: int) -> int:
        """The end of the last wanted fragment that comes with the bytes [start, stop)."""
        starts, stops = self._wanted.get(shard, ([], []))
        for place in range(bisect_right(starts, start), len(starts)):
            if starts[place] - stop > GAP_BYTES or stops[place] - start > REQUEST_BYTES:
                break
            stop = max(stop, stops[place])
        return stop

    def _make_room(self, num_bytes: int) -> None:
        while self._blocks and num_bytes + sum(map(len, self._blocks.values())) > HELD_BYTES:
            self._blocks.popitem(last=False)


@dataclass(frozen=True)
class AheadFile:
    """The file of a shard, read through what is held of it. The methods are those of `OpenFile`."""

    ahead: Ahead
    shard: int
    file: OpenFile

    def view_at(self, num_bytes: int, offset: int) -> memoryview:
        return self.ahead.view(self.shard, self.file, num_bytes, offset)

    def read_into(self, into: memoryview, offset: int) -> int:
        found = self.view_at(len(into), offset)
        into[: len(found)] = found
        return len(found)


def wanted_of(fragments: Iterable[tuple[int, StoredFragment]]) -> list[FileRange]:
    """fragments: each with the number of its shard."""
    return [FileRange(number, one.offset, one.offset + one.num_bytes) for number, one in fragments]


def in_order_of_files(
    items: Iterable[Item], fragments: Callable[[Item], Iterable[Iterable[tuple[int, StoredFragment]]]]
) -> tuple[list[Item], set[FileRange]]:
    """The items in the order of the first byte that each needs, shard after shard; and all that they need.

    fragments: what an item needs, each with the number of its shard.
    """
    wanted, placed = set[FileRange](), []
    for item in items:
        own = wanted_of(chain.from_iterable(fragments(item)))
        wanted.update(own)
        placed.append((min(((one.shard, one.start) for one in own), default=(-1, 0)), item))
    return [item for _, item in sorted(placed, key=itemgetter(0))], wanted
