"""What the shards of a checkpoint hold: their files, and the fragments in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ITEM_BYTES = 4
CHECKSUM_BYTES = 16

# What a worker writes or holds: parameter, state, start and stop.
Span = tuple[str, str, int, int]
# Gives the index of a shard by the shard's number: the checksums of its fragments, one after the other.
ReadIndex = Callable[[int], bytes]


@dataclass(frozen=True)
class Shard:
    """One worker's file. checksum: of all of it. header_bytes: how many lie before the first fragment. index_checksum:
    of the checksums behind the last fragment. A shard of version 1 has neither header_bytes nor an index."""

    file: str
    size_bytes: int
    checksum: str
    header_bytes: int = 0
    index_checksum: str = ""


@dataclass(frozen=True)
class StoredFragment:
    """A slice of a state in a shard: the bytes [offset, offset + 4 * (stop - start)) of the file."""

    parameter: str
    state: str
    start: int
    stop: int
    offset: int
    checksum: str

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * ITEM_BYTES


class Shards(ABC):
    """The shards of a checkpoint: a sequence of their files, and the fragments in them."""

    files: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Shard:
        return self.files[number]

    @cached_property
    def states(self) -> tuple[str, ...]:
        """The states in them, the weights first."""
        found = {state for states in self.states_by_parameter.values() for state in states}
        return tuple(sorted(found, key=lambda state: (state != "fp32", state)))

    @property
    @abstractmethod
    def states_by_parameter(self) -> dict[str, set[str]]: ...

    @abstractmethod
    def sized(self, number: int) -> int:
        """The size in bytes that the file of a shard has if it holds what it should."""

    @abstractmethod
    def index_bytes(self, number: int) -> int:
        """The length of the index at the end of a shard."""

    @abstractmethod
    def fragments(self, number: int, read_index: ReadIndex) -> Iterator[StoredFragment]:
        """All fragments of a shard, in the order of its file."""

    @abstractmethod
    def overlapping(
        self, parameter: str, state: str, start: int, stop: int, read_index: ReadIndex
    ) -> Iterator[tuple[int, StoredFragment]]:
        """The fragments that hold elements of [start, stop), each with the number of its shard."""


@dataclass(frozen=True)
class ListedShards(Shards):
    """Shards of version 1, whose manifest lists every fragment. by_shard: the fragments of each."""

    files: tuple[Shard, ...]
    by_shard: tuple[tuple[StoredFragment, ...], ...]

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], list[tuple[int, StoredFragment]]]:
        found: dict[tuple[str, str], list[tuple[int, StoredFragment]]] = {}
        for number, fragments in enumerate(self.by_shard):
            for one in fragments:
                found.setdefault((one.parameter, one.state), []).append((number, one))
        return found

    @cached_property
    def states_by_parameter(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for parameter, state in self._by_name:
            found.setdefault(parameter, set()).add(state)
        return found

    def sized(self, number: int) -> int:
        return self.files[number].size_bytes

    def index_bytes(self, number: int) -> int:
        return 0

    def fragments(self, number: int, read_index: ReadIndex) -> Iterator[StoredFragment]:
        return iter(self.by_shard[number])

    def overlapping(
        self, parameter: str, state: str, start: int, stop: int, read_index: ReadIndex
    ) -> Iterator[tuple[int, StoredFragment]]:
        for number, one in self._by_name.get((parameter, state), ()):
            if max(start, one.start) < min(stop, one.stop):
                yield number, one

    @classmethod
    def from_json(cls, shards: Iterable[Mapping[str, Any]]) -> ListedShards:
        """Of a manifest that was checked."""
        files, by_shard = [], []
        for shard in shards:
            files.append(Shard(**{key: value for key, value in shard.items() if key != "fragments"}))
            by_shard.append(tuple(StoredFragment(**one) for one in shard["fragments"]))
        return cls(tuple(files), tuple(by_shard))
