"""Step counts of elements: how many optimizer steps each has seen, where a growth put new ones among the old.

torch counts the steps of a tensor, and Adam's bias correction asks for those of an element. They differ by a head
start: the steps that the tensor had seen when the element came. A parameter's head starts are kept by axis, one for
each index; an element has the largest of its indices'. That is exact, for growth makes whole rows and columns new, in
whatever order, and a later growth's are larger than an earlier one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from raystage.growth.axis_maps import AxisMap, unchanged
from raystage.growth.rules import GrowthMap, Rule

# By axis and index; 0 of what is as old as its tensor.
HeadStarts = tuple[tuple[int, ...], ...]
# The same in short: for each axis stretches of (length, head start); none for an axis of zeros.
Runs = tuple[tuple[tuple[int, int], ...], ...]

# From where on a count of its own makes less difference than this to an update, relative to it, the tensor's will do.
_SETTLED = 1e-3


def is_settled(own: int, head_start: float, betas: Iterable[float]) -> bool:
    """Whether in an element's step number `own` its tensor's count gives the same update, to 1e-3: of each beta,
    (1 - b**(own + head_start)) / (1 - b**own) is 1."""
    return all(beta**own * (1 - beta**head_start) < _SETTLED * (1 - beta**own) for beta in betas)


def unsettled(starts: HeadStarts, step: int, betas: Sequence[float]) -> HeadStarts:
    """The head starts that still make a difference after a tensor's `step` steps, the others 0."""
    kept = {start for axis in starts for start in axis if start and not is_settled(step - start + 1, start, betas)}
    return tuple(tuple(start if start in kept else 0 for start in axis) for axis in starts)


def grown_head_starts(
    rules: GrowthMap, source: Mapping[str, HeadStarts], steps: Mapping[str, int]
) -> dict[str, HeadStarts]:
    """The head starts of a target's parameters; of those without any there is no entry.

    source, steps: of the source's parameters the head starts, and the optimizer steps that they have seen.
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
    """The head starts of parameters that are laid end to end along one axis; together they have `shape`, and what
    they lack of its axes comes first, with one index."""
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
    """In short; () where there are none."""
    if not any(map(any, starts)):
        return ()
    return tuple(tuple((len(list(run)), start) for start, run in groupby(axis)) if any(axis) else () for axis in starts)


def from_runs(runs: Runs, shape: tuple[int, ...]) -> HeadStarts:
    return tuple(
        tuple(start for length, start in axis for _ in range(length)) if axis else (0,) * size
        for axis, size in zip(runs, shape, strict=True)
    )
