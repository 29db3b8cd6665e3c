"""Any slice of any grown parameter, computed from its rule.

Growth is a view and not a copy: a worker asks for exactly the slices of its own partition, and reads exactly the
source's bytes that they need.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
import torch

from raystage.growth.axis_maps import FRESH, MEAN, ZERO
from raystage.growth.rules import GrowthMap, Rule

Slice = tuple[str, str, int, int]
# (parameter, state, start, stop) -> the flat slice [start, stop), of floats
Read = Callable[[str, str, int, int], np.ndarray]
OwnWeights = Callable[[], Mapping[str, torch.Tensor]]

STATES = ("fp32", "exp_avg", "exp_avg_sq")
# Where a gradient scales by s, first-order state scales by s and second-order state by s squared.
_ORDER = {"gradient": 1, "exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}

# New weights are drawn in blocks of this many, each from a generator of its own, so that a slice costs only what it
# contains.
_STRETCH = 2**16
# Elements that are mapped at a time.
_PIECE = 2**20
# Columns that follow each other are copied together where their runs are longer than this on average.
_SHORT_RUN = 16


class Grown:
    """A grown model, of which any slice can be computed.

    read: reads the source. seed: of new weights. own: gives the whole initial weights of a model that draws them by its
    own code, by name (`models.build.drawn_weights`); where a rule says "drawn", new weights are those.
    """

    def __init__(self, rules: GrowthMap, read: Read, seed: int, own: OwnWeights | None = None) -> None:
        self.rules = {rule.target: rule for rule in rules}
        self._read, self._seed, self._own = read, seed, cache(own) if own else dict
        self._means: dict[tuple, np.ndarray] = {}

    def slice(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of `state` of a target parameter: (stop - start,), floats of the source's type.
        Growing a whole parameter and growing it by slices give the same bits."""
        rule = self.rules[parameter]
        if state == "fp32":
            return self._weights(rule, start, stop)
        if rule.moments != "copy":
            return np.zeros(stop - start, dtype=np.float32)
        if not rule.axes:
            return self._from(rule, rule.sources, state, start, stop)
        return _in_pieces(lambda first, last: self._moments(rule, state, first, last), start, stop)

    def copy_of(self, parameter: str, state: str) -> str | None:
        """The source parameter of which `state` of a target parameter is an exact copy; None where there is none."""
        rule = self.rules[parameter]
        is_copy = rule.weights == "copy" if state == "fp32" else rule.moments == "copy" and not rule.axes
        return rule.sources[0] if is_copy and len(rule.sources) == 1 else None

    def reads(self, parameter: str, state: str, start: int, stop: int) -> Iterator[Slice]:
        """The slices of the source that `slice` reads for this one, to be read ahead; a mean's are left out."""
        rule = self.rules[parameter]
        is_read = (rule.weights if state == "fp32" else rule.moments) in ("copy", "mapped") and start < stop
        spans = [(start, stop)] if is_read else []
        if is_read and rule.axes:
            runs, width = _runs(row_origins(rule, _rows_of(rule, start, stop)[0])), rule.source_shape[-1]
            spans = [(origin * width, (origin + count) * width) for _, count, origin in runs if origin >= 0]
        sources = (rule.sources, rule.beyond) if rule.beyond and state == "fp32" else (rule.sources,)
        return (part for span in spans for names in sources for part in _parts(rule, names, state, *span))

    def predicted_gradient(self, parameter: str, start: int, stop: int) -> np.ndarray:
        """The gradient that follows from the source's (its state "gradient"), exact or estimated, as the rule says. NaN
        where nothing follows."""
        rule = self.rules[parameter]
        if rule.gradient == "none":
            return np.full(stop - start, np.nan, dtype=np.float32)
        if not rule.axes:
            return self._from(rule, rule.sources, "gradient", start, stop)
        values = self._mapped(rule, "gradient", start, stop)
        predicted = _over_axes(rule, "indices", start, stop, np.minimum) >= 0
        return np.where(predicted, values, values.dtype.type(np.nan))

    def _weights(self, rule: Rule, start: int, stop: int) -> np.ndarray:
        match rule.weights:
            case "copy":
                return self._from(rule, rule.sources, "fp32", start, stop)
            case "mapped":
                return _in_pieces(lambda first, last: self._mapped_weights(rule, first, last), start, stop)
            case "zeros":
                return np.full(stop - start, -rule.offset if rule.offset else 0.0, dtype=np.float32)
            case _:
                return self._drawn(rule, start, stop)

    def _drawn(self, rule: Rule, start: int, stop: int) -> np.ndarray:
        if rule.init == "drawn":
            return self._own()[rule.target].reshape(-1)[start:stop].float().numpy()
        return drawn(rule, start, stop, self._seed)

    def _mapped_weights(self, rule: Rule, start: int, stop: int) -> np.ndarray:
        values = self._mapped(rule, "fp32", start, stop)
        if all(axis.indices.min() >= 0 for axis in rule.axes):
            return values
        fresh = _over_axes(rule, "indices", start, stop, _fresh_over_mean) == FRESH
        if fresh.any():
            values = np.where(fresh, self._drawn(rule, start, stop).astype(values.dtype), values)
        return np.where(_over_axes(rule, "indices", start, stop, np.minimum) == ZERO, values.dtype.type(0), values)

    def _moments(self, rule: Rule, state: str, start: int, stop: int) -> np.ndarray:
        rows, cut = _rows_of(rule, start, stop)
        values = self._mapped_rows(rule, state, rows)
        *lead, last = rule.axes
        for axis, place in zip(lead, _places(rule, rows), strict=True):
            for first, end in _stretches(~axis.keeps[place]):
                values[first:end] = 0
        for first, end in _stretches(~last.keeps):
            values[:, first:end] = 0
        return values.reshape(-1)[cut]

    def _mapped(self, rule: Rule, state: str, start: int, stop: int) -> np.ndarray:
        rows, cut = _rows_of(rule, start, stop)
        return self._mapped_rows(rule, state, rows).reshape(-1)[cut]

    def _mapped_rows(self, rule: Rule, state: str, rows: range) -> np.ndarray:
        """The source's elements in their places, times the factors of all axes; means where an axis asks for one:
        (rows, columns).

        A new array, which the caller may change. Elements that are drawn, zero or not kept have any value: the caller
        sets them.
        """
        columns = rule.axes[-1].indices
        block = self._rows(rule, rule.sources, state, rows)
        factors = _factors(rule, state, rows).astype(block.dtype)
        offset = block.dtype.type(rule.offset if state == "fp32" else 0.0)
        if not (offset or rule.beyond or (columns == MEAN).any()):
            return _taken(block, np.maximum(columns, 0), factors)
        values = _columns(block, columns)
        if rule.beyond and state == "fp32":
            beyond = _over_axes(rule, "from_beyond", rows.start * len(columns), rows.stop * len(columns), np.logical_or)
            following = _columns(self._rows(rule, rule.beyond, state, rows), columns)
            values = np.where(beyond.reshape(values.shape), following, values)
        return (values + offset) * factors - offset if offset else values * factors

    def _rows(self, rule: Rule, sources: tuple[str, ...], state: str, rows: range) -> np.ndarray:
        """For each of the target's `rows` (all axes but the last) the source's row: (rows, source's last)."""
        origins = row_origins(rule, rows)
        width = rule.source_shape[-1]
        block: np.ndarray | None = None
        for at, count, origin in _runs(origins):
            if origin >= 0:
                part = self._from(rule, sources, state, origin * width, (origin + count) * width)
            elif origin == MEAN:
                part = self._mean_rows(rule, sources, state, rows[at])
            else:
                continue
            if count == len(rows):
                return part.reshape(-1, width)
            if block is None:
                block = np.zeros((len(rows), width), dtype=part.dtype)
            block[at : at + count] = part.reshape(-1, width)
        return np.zeros((len(rows), width), dtype=np.float32) if block is None else block

    def _mean_rows(self, rule: Rule, sources: tuple[str, ...], state: str, row: int) -> np.ndarray:
        """The mean of the source's rows along the axes that ask for it, for one target row."""
        *lead, _ = rule.axes
        place = np.unravel_index(row, rule.shape[:-1])
        wanted = tuple(int(axis.indices[i]) for axis, i in zip(lead, place, strict=True))
        key = (sources, state, wanted)
        if key not in self._means:
            spans = [range(axis.source) if i == MEAN else range(i, i + 1) for axis, i in zip(lead, wanted, strict=True)]
            sizes = [axis.source for axis in lead]
            picked = np.ravel_multi_index(np.ix_(*spans), sizes).reshape(-1)
            self._means[key] = self._mean_of(rule, sources, state, picked)
        return self._means[key]

    def _mean_of(self, rule: Rule, sources: tuple[str, ...], state: str, rows: np.ndarray) -> np.ndarray:
        width = rule.source_shape[-1]
        step = max(1, _STRETCH // width)
        total, dtype = np.zeros(width), np.dtype(np.float32)
        for _, count, origin in _runs(rows):
            for first in range(origin, origin + count, step):
                last = min(first + step, origin + count)
                part = self._from(rule, sources, state, first * width, last * width)
                total, dtype = total + part.reshape(-1, width).sum(axis=0, dtype=np.float64), part.dtype
        return (total / len(rows)).astype(dtype)

    def _from(self, rule: Rule, sources: tuple[str, ...], state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop) of the sources laid end to end."""
        parts = [self._read(*one) for one in _parts(rule, sources, state, start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _parts(rule: Rule, sources: tuple[str, ...], state: str, start: int, stop: int) -> Iterator[Slice]:
    """The flat slice [start, stop) of the sources laid end to end, as slices of each; never none of them."""
    if len(sources) == 1:
        yield sources[0], state, start, stop
        return
    size = math.prod(rule.source_shape) // len(sources)
    for at, name in zip(range(0, size * len(sources), size), sources, strict=True):
        if start < at + size and stop > at:
            yield name, state, max(start - at, 0), min(stop - at, size)


def row_origins(rule: Rule, rows: range) -> np.ndarray:
    """The source row of each target row (all axes but the last); a negative code where an axis has no source."""
    origins, least = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    for axis, place in zip(rule.axes[:-1], _places(rule, rows), strict=True):
        index = axis.indices[place]
        origins = origins * axis.source + np.maximum(index, 0)
        least = np.minimum(least, index)
    return np.where(least < 0, least, origins)


def is_new(rule: Rule, start: int, stop: int) -> np.ndarray:
    """Of the flat slice [start, stop) of a target parameter, which elements start without optimizer state: bool."""
    if rule.moments == "zeros":
        return np.ones(stop - start, dtype=bool)
    if not rule.axes:
        return np.zeros(stop - start, dtype=bool)
    return ~_over_axes(rule, "keeps", start, stop, np.logical_and)


def grown_steps(rules: GrowthMap, source_steps: dict[str, int]) -> dict[str, int]:
    """For each target parameter the optimizer steps that its moments have seen: 0 where they start new."""
    return {rule.target: source_steps[rule.source] if rule.moments == "copy" else 0 for rule in rules}


def drawn(rule: Rule, start: int, stop: int, seed: int) -> np.ndarray:
    """The slice [start, stop) of the parameter as its family initialises it: fixed by (seed, name)."""
    if rule.init != "normal":
        return np.full(stop - start, 1.0 if rule.init == "ones" else 0.0, dtype=np.float32)
    result = np.empty(stop - start, np.float32)
    for number in range(start // _STRETCH, -(-stop // _STRETCH)):
        at = number * _STRETCH
        low, high = max(start, at), min(stop, at + _STRETCH)
        result[low - start : high - start] = _stretch(rule, number, seed)[low - at : high - at]
    return result


def _stretch(rule: Rule, number: int, seed: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{rule.target}/{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(_STRETCH).normal_(0.0, rule.std, generator=generator).numpy()


def _in_pieces(compute: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
    """`compute` over [start, stop), part by part: it needs more memory than its result."""
    if stop - start <= _PIECE:
        return compute(start, stop)
    result: np.ndarray | None = None
    for first in range(start, stop, _PIECE):
        piece = compute(first, min(first + _PIECE, stop))
        if result is None:
            result = np.empty(stop - start, piece.dtype)
        result[first - start : first - start + len(piece)] = piece
    return result


def _rows_of(rule: Rule, start: int, stop: int) -> tuple[range, slice]:
    """The rows (all axes but the last) that a flat slice touches, and its place in them."""
    width = len(rule.axes[-1].index)
    rows = range(start // width, -(-stop // width))
    return rows, slice(start - rows.start * width, stop - rows.start * width)


def _places(rule: Rule, rows: range) -> tuple[np.ndarray | slice, ...]:
    """The indices of rows along every axis but the last."""
    if len(rule.axes) == 2:
        return (slice(rows.start, rows.stop),)  # a view, no copy
    return np.unravel_index(np.arange(rows.start, rows.stop), rule.shape[:-1]) if len(rule.axes) > 1 else ()


def _over_axes(rule: Rule, what: str, start: int, stop: int, combine: Callable) -> np.ndarray:
    """An attribute of the axes, combined, for every element of a flat slice."""
    rows, cut = _rows_of(rule, start, stop)
    *lead, last = rule.axes
    result = np.broadcast_to(getattr(last, what), (len(rows), len(last.index)))
    for axis, place in zip(lead, _places(rule, rows), strict=True):
        result = combine(result, getattr(axis, what)[place][:, None])
    return result.reshape(-1)[cut]


def _factors(rule: Rule, state: str, rows: range) -> np.ndarray:
    """The factors of the elements of rows: (rows, columns), or a value that broadcasts to it.

    An axis with factors of one is left out, and an axis with the same factors in all rows is only a number. Usually
    this saves a product of the size of the elements.
    """
    what, order = ("values", 1) if state == "fp32" else ("gradients", _ORDER[state])
    *lead, last = rule.axes
    factors = getattr(last, what)[None, :] ** order
    for axis, place in zip(lead, _places(rule, rows), strict=True):
        if (getattr(axis, what) != 1).any():
            of_rows = getattr(axis, what)[place] ** order
            is_number = len(of_rows) and (of_rows == of_rows[0]).all()
            factors = factors * (of_rows[0] if is_number else of_rows[:, None])
    return factors


def _columns(block: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A block's columns in the order of `columns`; where these ask for the mean, the mean of all."""
    if len(columns) == block.shape[1] and (columns == np.arange(len(columns))).all():
        return block
    taken = _taken(block, np.maximum(columns, 0), np.ones((), block.dtype))
    mean = columns == MEAN
    if mean.any():
        taken[:, mean] = block.mean(axis=1, dtype=np.float64).astype(block.dtype)[:, None]
    return taken


def _taken(block: np.ndarray, columns: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """block[:, columns] * factors: run by run where runs are long, which is much faster."""
    runs = list(_runs(columns))
    if len(runs) * _SHORT_RUN > len(columns):
        taken = np.take(block, columns, axis=1)  # faster than indexing
        return np.multiply(taken, factors, out=taken)
    taken = np.empty((len(block), len(columns)), block.dtype)
    factors = np.broadcast_to(factors, taken.shape)
    for at, count, origin in runs:
        here = slice(at, at + count)
        np.multiply(block[:, origin : origin + count], factors[:, here], out=taken[:, here])
    return taken


def _stretches(where: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of every stretch on which a vector of bools is true."""
    return np.flatnonzero(np.diff(where, prepend=False, append=False)).reshape(-1, 2).tolist()


def _fresh_over_mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """FRESH where one of them is FRESH; else the lesser."""
    return np.where((one == FRESH) | (other == FRESH), FRESH, np.minimum(one, other))


def _runs(origins: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(place, count, origin) of runs of rows that follow each other in the source; every other row alone."""
    if not len(origins):  # an empty slice at the end of a row
        return
    breaks = np.flatnonzero((origins[1:] != origins[:-1] + 1) | (origins[1:] <= 0)) + 1
    starts = [0, *breaks.tolist()]
    for at, end in zip(starts, [*starts[1:], len(origins)], strict=True):
        yield at, end - at, int(origins[at])
