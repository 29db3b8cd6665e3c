"""Which checkpoints of a stage stay while it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raystage.results.record import Evaluation


def retained(names: Sequence[str], keep_last: int, keep_best: int, evaluations: Sequence[Evaluation]) -> set[str]:
    """Of whole checkpoints, by their folders' names, those to keep: the last ones and the best ones."""
    return {*sorted(names)[-keep_last:], *best(names, keep_best, evaluations)}


def best(names: Sequence[str], count: int, evaluations: Sequence[Evaluation]) -> list[str]:
    """The `count` checkpoints of lowest evaluation loss, the lowest first; of equal ones the later.

    A checkpoint's loss is that of the last evaluation up to it, before any there is none.
    """
    losses = {name: loss_at(tokens_of(name), evaluations) for name in names}
    known = [name for name in sorted(names, reverse=True) if math.isfinite(losses[name])]
    return sorted(known, key=lambda name: losses[name])[:count]


def loss_at(tokens: int, evaluations: Sequence[Evaluation]) -> float:
    """The loss of the last evaluation up to `tokens`; infinite before the first."""
    so_far = [one for one in evaluations if one.tokens <= tokens]
    return max(so_far, key=lambda one: one.tokens).loss if so_far else math.inf


def tokens_of(name: str) -> int:
    """The position in the run that a checkpoint's folder is named after: 000000000400000-1f3a9c22."""
    return int(name.partition("-")[0])


def attempt_of(name: str) -> str:
    """The attempt that wrote a checkpoint: 1f3a9c22."""
    return name.partition("-")[2]
