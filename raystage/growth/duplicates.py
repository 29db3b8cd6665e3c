"""Copies that a growth made, and how different they have become.

Units that were copied with an equal share of their fan-in get equal gradients and stay equal for ever: the grown model
is wider only in name. Copies of a layer stand in different places and become different by themselves. A sample is
compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raystage.growth.certificate import some_of
from raystage.growth.rules import GrowthMap, Rule

# After this many steps of training, copies that are going to differ do differ.
DUPLICATE_STEPS = 20
# For every parameter at most this many pairs of copies are compared, at this many places along each other axis.
_PAIRS, _PLACES = 8, 32

# A parameter and flat positions in it.
Sample = tuple[str, np.ndarray]


@dataclass(frozen=True)
class DuplicatePair:
    """Two samples of weights, equally large, that were copied from the same sample of the source."""

    one: Sample
    other: Sample


def find_duplicates(rules: GrowthMap, embeddings: Collection[str] = ()) -> tuple[DuplicatePair, ...]:
    """The copies that a growth map makes: for each parameter those of its units, axis by axis, and of the whole
    parameter.

    embeddings: lookup tables. They are left out, since rows that were never looked up cannot have changed.
    """
    chosen = [rule for rule in rules if rule.weights in ("copy", "mapped") and rule.target not in embeddings]
    return (*(copies for rule in chosen for copies in _of_units(rule)), *_of_parameters(chosen))


def duplicate_distance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """The smallest relative distance between copies, given as their values: the norm of the difference divided by the
    larger norm of the two. 0 where some are still equal; None where there are none."""
    distances = []
    for one, other in pairs:
        scale = max(np.linalg.norm(one), np.linalg.norm(other))
        if scale > 0:
            distances.append(float(np.linalg.norm(one.astype(np.float64) - other) / scale))
    return min(distances, default=None)


def _of_units(rule: Rule) -> Iterator[DuplicatePair]:
    """For each axis on which a source index occurs more than once."""
    for number, axis in enumerate(rule.axes):
        pairs = _copies(axis.indices)
        if len(pairs):
            pairs = pairs[some_of(len(pairs), _PAIRS)]
            places = [some_of(size, _places(rule)) for size in rule.shape]
            sides = [_flat(rule.shape, [*places[:number], pairs[:, side], *places[number + 1 :]]) for side in (0, 1)]
            yield DuplicatePair((rule.target, sides[0]), (rule.target, sides[1]))


def _copies(indices: np.ndarray) -> np.ndarray:
    """Each copy with the next copy of the same source index; shape (pairs, 2)."""
    last: dict[int, int] = {}
    pairs = []
    for place, index in enumerate(indices.tolist()):
        if index >= 0:
            if index in last:
                pairs.append((last[index], place))
            last[index] = place
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _of_parameters(rules: Sequence[Rule]) -> Iterator[DuplicatePair]:
    """Parameters of several layers (or experts) with the same source."""
    last: dict[tuple, Rule] = {}
    for rule in rules:
        if not rule.sources:
            continue
        key = (rule.sources, rule.shape)
        if key in last:
            flat = _flat(rule.shape, [some_of(size, _places(rule)) for size in rule.shape])
            yield DuplicatePair((last[key].target, flat), (rule.target, flat))
        last[key] = rule


def _places(rule: Rule) -> int:
    """Fewer along each axis if there are more axes."""
    return _PLACES if len(rule.shape) <= 2 else math.isqrt(_PLACES)


def _flat(shape: tuple[int, ...], places: list[np.ndarray]) -> np.ndarray:
    return np.ravel_multi_index(np.ix_(*places), shape).reshape(-1)
