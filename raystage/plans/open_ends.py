"""What may end a stage before its cap: the part of `until` that is known only while it trains.

`planning.length` finds the cap; `results.stopping` decides during training.
"""

from __future__ import annotations

from collections.abc import Sequence

from raystage.config.conditions import Accept, Until

CLOCK = "seconds"
ON_TRAINING = ("eval_loss", "plateau", "slope", CLOCK)


def is_open(until: Until) -> bool:
    """Whether the stage may end before its cap, on what is known only while it trains."""
    return _has(until, ON_TRAINING)


def waits_for_evaluations(until: Until | None, accept: Accept | None) -> bool:
    """Whether several evaluations in a row decide when the stage ends, or whether it is accepted."""
    return (until is not None and is_open(until)) or (accept is not None and accept.overfitting is not None)


def reads_clock(until: Until) -> bool:
    """Whether the end depends on training time, which differs from run to run."""
    return _has(until, (CLOCK,))


def _has(until: Until, keys: Sequence[str]) -> bool:
    inside = (*(until.any or ()), *(until.all or ()))
    return any(getattr(until, key) is not None for key in keys) or any(_has(part, keys) for part in inside)
