"""Axis maps: what happens to the rows and columns of parameters when the units that they consist of grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from raystage.lazy import numpy as np

# In place of a source index: the values of a new unit are drawn as the family draws them, are the mean of all of the
# source's along this axis, or are zero. Where the axes of an element differ, zero comes first, and fresh before mean.
FRESH, MEAN, ZERO = -1, -2, -3


@dataclass(frozen=True)
class AxisMap:
    """One axis of a target parameter, index by index. An empty tuple stands for the value in brackets at every index.

    note: for people. source: the source's size. index: the source's index, or FRESH, MEAN, ZERO. value: the factor of
    the source's weight (1). gradient: the factor that makes this element's gradient from the source's (1). predicts:
    whether that is exact and not an estimate. kept: whether optimizer state is kept; where not, it starts at zero.
    beyond: whether the weight comes from the next layer (no).
    """

    note: str
    source: int
    index: range | tuple[int, ...]
    value: tuple[float, ...] = ()
    gradient: tuple[float, ...] = ()
    predicts: bool = True
    kept: tuple[bool, ...] = ()
    beyond: tuple[bool, ...] = ()

    @property
    def is_identity(self) -> bool:
        return self.index == range(self.source) and not self.value and not self.gradient

    @cached_property
    def indices(self) -> np.ndarray:
        return np.array(self.index, dtype=np.int64)

    @cached_property
    def values(self) -> np.ndarray:
        return np.array(self.value) if self.value else np.ones(len(self.index))

    @cached_property
    def gradients(self) -> np.ndarray:
        return np.array(self.gradient) if self.gradient else np.ones(len(self.index))

    @cached_property
    def keeps(self) -> np.ndarray:
        return (np.array(self.kept) if self.kept else True) & (self.indices >= 0)

    @cached_property
    def from_beyond(self) -> np.ndarray:
        return np.array(self.beyond) if self.beyond else np.zeros(len(self.index), dtype=bool)


def unchanged(size: int) -> AxisMap:
    return AxisMap("", size, range(size))


def end_to_end(maps: Sequence[AxisMap]) -> AxisMap:
    """The map of a fused axis, from the maps of its parts."""
    if len(maps) == 1:
        return maps[0]
    total = sum(part.source for part in maps)
    if all(part.is_identity for part in maps):
        return unchanged(total)
    index: list[int] = []
    start = 0
    for part in maps:
        index += [i + start if i >= 0 else i for i in part.index]
        start += part.source
    return AxisMap(
        note=next(part.note for part in maps if part.note),
        source=total,
        index=tuple(index),
        value=_joined(part.values for part in maps),
        gradient=_joined(part.gradients for part in maps),
        predicts=all(part.predicts for part in maps),
        kept=_joined(part.keeps for part in maps),
        beyond=_joined(part.from_beyond for part in maps),
    )


def head_by_head(maps: Sequence[AxisMap], size: int) -> AxisMap:
    """The map of an axis on which parts alternate head by head, from the maps of its parts; size: of a head."""
    one = end_to_end(maps)
    if one.is_identity:
        return one
    parts = len(maps)
    place = np.arange(one.source).reshape(parts, -1, size).swapaxes(0, 1).reshape(-1)  # end to end -> by head
    source = np.empty_like(place)
    source[place] = np.arange(one.source)
    order = np.arange(len(one.index)).reshape(parts, -1, size).swapaxes(0, 1).reshape(-1)
    index = np.where(one.indices >= 0, source[np.maximum(one.indices, 0)], one.indices)[order]
    return replace(
        one,
        index=tuple(index.tolist()),
        value=tuple(one.values[order].tolist()),
        gradient=tuple(one.gradients[order].tolist()),
        kept=tuple(one.keeps[order].tolist()),
        beyond=tuple(one.from_beyond[order].tolist()),
    )


def _joined(arrays: object) -> tuple:
    return tuple(np.concatenate(list(arrays)).tolist())


def spread_map(one: AxisMap, size: int) -> AxisMap:
    """A map of heads as a map of their single queries, keys or values: each head has `size` of them."""
    index = tuple(i * size + part if i >= 0 else i for i in one.index for part in range(size))

    def each(values: tuple) -> tuple:
        return tuple(value for value in values for _ in range(size))

    return AxisMap(
        one.note, one.source * size, index, each(one.value), each(one.gradient), one.predicts,
        each(one.kept), each(one.beyond),
    )  # fmt: skip


def without_copies(one: AxisMap) -> AxisMap:
    """The map with fresh units for the second copy of a unit and all further ones."""
    firsts = Widening(one.source, tuple(one.index)).first
    index = tuple(i if first or i < 0 else FRESH for i, first in zip(one.index, firsts, strict=True))
    return replace(one, index=index) if index != tuple(one.index) else one


def statistics_map(out: AxisMap) -> AxisMap:
    """What a norm has measured of each unit, given the map of what makes the units: copies have the same statistics,
    other new units those of a new model."""
    return AxisMap(out.note, out.source, tuple(i if i >= 0 else FRESH for i in out.index))


@dataclass(frozen=True)
class Widening:
    """Units that become more: for each the source unit that it copies (-1: none)."""

    source: int
    origin: tuple[int, ...]

    @property
    def target(self) -> int:
        return len(self.origin)

    @cached_property
    def number(self) -> tuple[int, ...]:
        """The number of each unit among the copies of its source, from 0."""
        seen: Counter[int] = Counter()
        numbers = []
        for unit in self.origin:
            numbers.append(seen[unit])
            seen[unit] += 1
        return tuple(numbers)

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """The number of copies of each unit's source."""
        counts = Counter(self.origin)
        return tuple(counts[unit] for unit in self.origin)

    @property
    def first(self) -> tuple[bool, ...]:
        """Whether each is the first copy of its source."""
        return tuple(unit >= 0 and number == 0 for unit, number in zip(self.origin, self.number, strict=True))


def repeated(source: int, target: int) -> Widening:
    """Unit j is a copy of `j mod source`: the source's units, then the same again from the first on."""
    return Widening(source, tuple(j % source for j in range(target)))


def padded(source: int, target: int) -> Widening:
    """The source's units, then new ones."""
    return Widening(source, tuple(j if j < source else -1 for j in range(target)))


@dataclass(frozen=True)
class Heads:
    """Query heads and key/value heads, in groups: query head i belongs to key/value head `i // group`."""

    query: int
    key_value: int

    @property
    def group(self) -> int:
        return self.query // self.key_value


def repeated_heads(source: Heads, target: Heads) -> tuple[Widening, Widening] | None:
    """Query and key/value heads as copies, each query head with the key/value head it had. None where that does not
    reach every query head.

    Key/value head t copies `t mod k`. The query heads of the c-th copy of a group continue where those of the (c-1)-th
    ended, so that several narrow groups together hold what one wide group held.
    """
    key_value = repeated(source.key_value, target.key_value)
    query = [
        origin * source.group + (number * target.group + place) % source.group
        for origin, number in zip(key_value.origin, key_value.number, strict=True)
        for place in range(target.group)
    ]
    if len(set(query)) < source.query:
        return None
    return Widening(source.query, tuple(query)), key_value


def padded_heads(source: Heads, target: Heads) -> tuple[Widening, Widening] | None:
    """Every group with its own query heads and then new ones, then new groups. None where groups become narrower."""
    if target.group < source.group:
        return None
    key_value = padded(source.key_value, target.key_value)
    query = [
        origin * source.group + place if origin >= 0 and place < source.group else -1
        for origin in key_value.origin
        for place in range(target.group)
    ]
    return Widening(source.query, tuple(query)), key_value
