"""Step counts of elements: how many optimizer steps each has seen, where a growth put new elements among old ones.

torch counts the steps of a tensor, but Adam's bias correction needs those of an element. The two differ by a head
start: the steps that the tensor had seen when the element was added. The head starts of a parameter are stored by axis,
one for each index; an element has the largest of its indices. That is exact, because growth adds whole rows and
columns, and later growths have larger head starts than earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from raystage.growth.axis_maps import AxisMap, unchanged
from raystage.growth.rules import GrowthMap, Rule

# By axis and index; 0 for what is as old as its tensor.
HeadStarts = tuple[tuple[int, ...], ...]
# The same as runs: for each axis pairs of (length, head start); none for an axis of zeros.
Runs = tuple[tuple[tuple[int, int], ...], ...]

# Once its own count changes an update by less than this share, the tensor's count is good enough.
_SETTLED = 1e-3


def is_settled(own: int, head_start: float, betas: Iterable[float]) -> bool:
    """Whether in an element's step number `own` its tensor's count gives the same update, up to 1e-3: for each beta, (1
    - b**(own + head_start)) / (1 - b**own) is 1."""
    return all(beta**own * (1 - beta**head_start) < _SETTLED * (1 - beta**own) for beta in betas)


def unsettled(starts: HeadStarts, step: int, betas: Sequence[float]) -> HeadStarts:
    """The head starts that still matter after a tensor's `step` steps; the others are 0."""
    kept = {start for axis in starts for start in axis if start and not is_settled(step - start + 1, start, betas)}
    return tuple(tuple(start if start in kept else 0 for start in axis) for axis in starts)


def grown_head_starts(
    rules: GrowthMap, source: Mapping[str, HeadStarts], steps: Mapping[str, int]
) -> dict[str, HeadStarts]:
    """The head starts of a target's parameters, without parameters that have none.

    source, steps: for the source's parameters their head starts and the optimizer steps that they have seen.
    """
    found = {}
    for rule in rules:
        before = [source.get(name, ()) for name in rule.sources]
        if rule.moments == "copy" and (any(before) or not all(axis.keeps.all() for axis in rule.axes)):
            starts = _grown(rule, _end_to_end(before, rule.source_shape), steps[rule.source])
            if any(map(any, starts)):
                found[rule.target] = starts
    return found


def _grown(rule: Rule, before: HeadStarts, step: int) -> HeadStarts:
    axes = rule.axes or tuple(map(unchanged, rule.source_shape))
    return tuple(_along(axis, old, step) for axis, old in zip(axes, before, strict=True))


def _along(axis: AxisMap, old: tuple[int, ...], step: int) -> tuple[int, ...]:
    return tuple(old[index] if kept else step for index, kept in zip(axis.index, axis.keeps.tolist(), strict=True))


def _end_to_end(parts: Sequence[HeadStarts], shape: tuple[int, ...]) -> HeadStarts:
    """The head starts of parameters that lie end to end along one axis and have `shape` together.

    Missing leading axes are added with one index.
    """
    known = next(filter(None, parts), None)
    if known is None:
        return tuple((0,) * size for size in shape)
    sizes = (1,) * (len(shape) - len(known)) + tuple(map(len, known))
    parts = [((0,),) * (len(shape) - len(known)) + part if part else tuple((0,) * size for size in sizes)
             for part in parts]  # fmt: skip
    return tuple(
        parts[0][axis] if len(parts) == 1
        else tuple(start for part in parts for start in part[axis]) if sizes[axis] != size
        else tuple(map(max, *(part[axis] for part in parts)))
        for axis, size in enumerate(shape)
    )  # fmt: skip


# --- in a manifest ------------------------------------------------------------------------------


def as_runs(starts: HeadStarts) -> Runs:
    """As runs of (length, head start); () where there are none."""
    if not any(map(any, starts)):
        return ()
    return tuple(tuple((len(list(run)), start) for start, run in groupby(axis)) if any(axis) else () for axis in starts)


def from_runs(runs: Runs, shape: tuple[int, ...]) -> HeadStarts:
    return tuple(
        tuple(start for length, start in axis for _ in range(length)) if axis else (0,) * size
        for axis, size in zip(runs, shape, strict=True)
    )
