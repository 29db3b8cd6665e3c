"""Shards of version 2: the manifest says which shard holds which elements, and the rest follows from that.

A shard holds spans: slices of states of parameters, in the order of parameter, state and start. A span is stored as
fragments of `fragment_numel` elements, of which the last may be shorter. Behind the last fragment of a shard lies its
index: the checksum of every fragment, in the same order. So a manifest need not list fragments. Slices of one length in
neighbouring shards are one `Run`: a parameter that is cut evenly over all workers is one, however many workers there
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from raystage.storage.shards.contents import CHECKSUM_BYTES, ITEM_BYTES, ReadIndex, Shard, Shards, Span, StoredFragment

# Of how many shards a reader keeps in memory where everything lies; it is computed anew in a tenth of a millisecond.
_PLACES_KEPT = 64


class Run(NamedTuple):
    """The elements [start, stop) of a state: `length` of them in each shard from number `shard` on, the rest in the
    last one."""

    start: int
    stop: int
    length: int
    shard: int

    @property
    def count(self) -> int:
        return -(-(self.stop - self.start) // self.length)

    def shards_of(self, start: int, stop: int) -> range:
        """The shards that hold elements of [start, stop), a slice of it that is not empty."""
        first, last = ((at - self.start) // self.length for at in (start, stop - 1))
        return range(self.shard + first, self.shard + last + 1)

    def within(self, shard: int) -> tuple[int, int]:
        """What of it lies in one of its shards."""
        start = self.start + (shard - self.shard) * self.length
        return start, min(start + self.length, self.stop)


@dataclass(frozen=True)
class Held:
    """States of a parameter that are cut alike, and their runs in order."""

    parameter: str
    states: tuple[str, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class _Places:
    """Where the spans of a shard lie. rows: their numbers among all rows, rising. starts, stops: of the spans. offsets:
    the byte where each begins, counted from the header, then the end of the last. firsts: the same in fragments."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    offsets: np.ndarray
    firsts: np.ndarray


@dataclass(frozen=True)
class PlacedShards(Shards):
    """held: each state of a parameter once."""

    files: tuple[Shard, ...]
    held: tuple[Held, ...]
    fragment_numel: int

    @cached_property
    def states_by_parameter(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for one in self.held:
            found.setdefault(one.parameter, set()).update(one.states)
        return found

    def sized(self, number: int) -> int:
        return self.files[number].header_bytes + int(self._places(number).offsets[-1]) + self.index_bytes(number)

    def index_bytes(self, number: int) -> int:
        return CHECKSUM_BYTES * int(self._places(number).firsts[-1])

    def fragments(self, number: int, read_index: ReadIndex) -> Iterator[StoredFragment]:
        places = self._places(number)
        for place, row in enumerate(places.rows.tolist()):
            parameter, state, _ = self._rows[row]
            span = parameter, state, int(places.starts[place]), int(places.stops[place])
            yield from self._fragments_of(span, number, place, read_index)

    def overlapping(
        self, parameter: str, state: str, start: int, stop: int, read_index: ReadIndex
    ) -> Iterator[tuple[int, StoredFragment]]:
        for row in self._rows_of.get((parameter, state), ()):
            run = self._rows[row][2]
            low, high = max(start, run.start), min(stop, run.stop)
            for number in run.shards_of(low, high) if low < high else ():
                first, last = run.within(number)
                place = int(np.searchsorted(self._places(number).rows, row))
                span = parameter, state, max(first, low), min(last, high)
                for one in self._fragments_of(span, number, place, read_index):
                    yield number, one

    def _fragments_of(self, span: Span, number: int, place: int, read_index: ReadIndex) -> Iterator[StoredFragment]:
        """The fragments that hold elements of `span`, which lies within the span at this place of the shard."""
        parameter, state, low, high = span
        places, index, length = self._places(number), read_index(number), self.fragment_numel
        start, stop, before = (int(one[place]) for one in (places.starts, places.stops, places.firsts))
        begin = self.files[number].header_bytes + int(places.offsets[place])
        for count in range((low - start) // length, -(-(high - start) // length)):
            first, at = start + count * length, CHECKSUM_BYTES * (before + count)
            checksum = index[at : at + CHECKSUM_BYTES].hex()
            last, offset = min(first + length, stop), begin + ITEM_BYTES * (first - start)
            yield StoredFragment(parameter, state, first, last, offset, checksum)

    @cached_property
    def _rows(self) -> list[tuple[str, str, Run]]:
        """Every run of every state, in the order in which shards hold them."""
        return sorted((one.parameter, state, run) for one in self.held for state in one.states for run in one.runs)

    @cached_property
    def _rows_of(self) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = {}
        for number, (parameter, state, _) in enumerate(self._rows):
            found.setdefault((parameter, state), []).append(number)
        return found

    @cached_property
    def _columns(self) -> tuple[np.ndarray, ...]:
        """Of all rows the start, the stop, the length, the first shard, and the shard behind the last."""
        columns = np.array([(*run, run.shard + run.count) for *_, run in self._rows], dtype=np.int64)
        return tuple(columns.reshape(-1, 5).T)

    @cached_property
    def _places(self) -> Any:
        return lru_cache(_PLACES_KEPT)(self._computed_places)

    def _computed_places(self, number: int) -> _Places:
        starts, stops, lengths, firsts, ends = self._columns
        rows = np.flatnonzero((firsts <= number) & (number < ends))
        begins = starts[rows] + (number - firsts[rows]) * lengths[rows]
        closes = np.minimum(begins + lengths[rows], stops[rows])
        sizes = closes - begins
        fragments = -(-sizes // self.fragment_numel)
        return _Places(rows, begins, closes, _sums(ITEM_BYTES * sizes), _sums(fragments))

    def to_json(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {
            "shards": [vars(one) for one in self.files],
            "fragment_numel": self.fragment_numel,
            "layout": [vars(one) for one in self.held],
        }

    @classmethod
    def from_json(
        cls, shards: Iterable[Mapping[str, Any]], layout: Iterable[Mapping[str, Any]], fragment_numel: int
    ) -> PlacedShards:
        """Of a manifest that was checked."""
        held = tuple(
            Held(**{**one, "states": tuple(one["states"]), "runs": tuple(Run(*run) for run in one["runs"])})
            for one in layout
        )
        return cls(tuple(Shard(**one) for one in shards), held, fragment_numel)


def _sums(numbers: np.ndarray) -> np.ndarray:
    """0, and the sums of the first one, the first two, and so on."""
    return np.concatenate([[0], np.cumsum(numbers)])
