"""What a baseline does between two of its budgets: not one figure, but the two ends between which it must lie.

Over log FLOPs the loss of a model trained from scratch falls ever slower: a power law with any offset does, and so does
a sum of power laws. Such a curve is convex. So the straight line between two budgets lies above it: read off there, the
baseline's compute at a loss, and its loss at a compute, are too high, and the staged run looks better than it is. The
lines through the budgets before, and through those after, go on below it, for the same reason. With d the difference of
the two losses, and t from 0 at the cheaper budget to 1 at the dearer one, in log FLOPs:

    at most    first - d * t
    at least   max(first - d * t * before, last + d * (1 - t) * after)

before: how much steeper the stretch before is (1 or more); after: how steep the one after is (1 or less), both as a
share of the slope between the two budgets. Where there is no budget before, or after, all that is left is that the loss
does not rise: infinity, or 0.

Budgets that bend the other way are no such curve, be it for noise or since training has hardly begun. They are taken to
bend as much the right way, so that what is not known counts against the staged run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Budgets further apart say too little of what lies between them: there is no figure.
MOST_APART = 4.0


@dataclass(frozen=True)
class Stretch:
    """Between two neighbouring budgets, the first with the higher loss. before, after: see the module."""

    first: float
    last: float
    before: float = math.inf
    after: float = 0.0

    def earliest(self, loss: float) -> float:
        """Where at the earliest a loss between the two is reached, from 0 to 1."""
        share = (self.first - loss) / (self.first - self.last)
        by_after = 1 - (1 - share) / self.after if self.after else -math.inf
        return min(max(0.0, share / self.before, by_after), share)

    def latest(self, loss: float) -> float:
        """... and at the latest."""
        return (self.first - loss) / (self.first - self.last)

    def lowest(self, place: float) -> float:
        """The lowest loss that it may have at a place from 0 to 1: the inverse of `earliest`."""
        fall = self.first - self.last
        by_before = self.first - fall * place * self.before if place else self.first
        return min(max(by_before, self.last + fall * (1 - place) * self.after), self.highest(place))

    def highest(self, place: float) -> float:
        """... and the highest."""
        return self.first + place * (self.last - self.first)


def stretch(points: Sequence[tuple[float, float]], index: int) -> Stretch:
    """From point `index - 1` to point `index` of (FLOPs, loss), ascending in FLOPs, whose losses never rise and fall
    there."""

    def slope(second: int) -> float:
        (flops, loss), (more, less) = points[second - 1], points[second]
        return (loss - less) / math.log(more / flops)

    own = slope(index)
    before = slope(index - 1) / own if index > 1 else 0.0
    after = slope(index + 1) / own if index + 1 < len(points) else 0.0
    return Stretch(
        points[index - 1][1],
        points[index][1],
        max(before, 1 / before) if before else math.inf,
        min(after, 1 / after) if after else 0.0,
    )


def is_convex(points: Sequence[tuple[float, float]]) -> bool:
    """Whether the loss falls ever slower over log FLOPs; points as `stretch` takes them."""
    slopes = [(loss - less) / math.log(more / flops) for (flops, loss), (more, less) in pairwise(points)]
    return all(steep >= flat - 1e-9 * abs(steep) for steep, flat in pairwise(slopes))


def too_far_apart(flops: float, more: float) -> str | None:
    """Why nothing is said of what lies between two budgets, if so."""
    apart = more / flops
    if apart <= MOST_APART * (1 + 1e-9):
        return None
    return f"a factor of {apart:.3g} apart, where more than {MOST_APART:g} says too little of what lies between them"
