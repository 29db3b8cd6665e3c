"""What a baseline reaches between two of its budgets: not one figure, but bounds.

Over log FLOPs the loss of a model trained from scratch falls more and more slowly: so do a power law with any offset
and a sum of power laws. Such a curve is convex, so it lies below the straight line between two budgets. Read off that
line, the baseline's compute at a loss and its loss at a compute are too high, and the staged run looks better than it
is. The lines through the budgets before and through those after, extended, lie below the curve for the same reason.
With d the difference of the two losses, and t from 0 at the smaller budget to 1 at the larger one, in log FLOPs:

    at most    first - d * t
    at least   max(first - d * t * before, last + d * (1 - t) * after)

before: how much steeper the segment before is (1 or more). after: how steep the segment after is (1 or less). Both are
shares of the slope between the two budgets. Without a budget before, or after, all that is known is that the loss does
not rise: infinity, or 0.

Budgets that bend the other way are not on such a curve, because of noise or because training has only begun. They are
taken to bend by as much in the right direction, so that what is unknown counts against the staged run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Budgets that are further apart say too little about what lies between them: there is no figure.
MOST_APART = 4.0


@dataclass(frozen=True)
class Stretch:
    """Between two neighbouring budgets, the first one with the higher loss. before, after: see the module."""

    first: float
    last: float
    before: float = math.inf
    after: float = 0.0

    def earliest(self, loss: float) -> float:
        """The earliest place, from 0 to 1, where the baseline may reach a loss between the two."""
        share = (self.first - loss) / (self.first - self.last)
        by_after = 1 - (1 - share) / self.after if self.after else -math.inf
        return min(max(0.0, share / self.before, by_after), share)

    def latest(self, loss: float) -> float:
        """The latest place."""
        return (self.first - loss) / (self.first - self.last)

    def lowest(self, place: float) -> float:
        """The lowest loss that the baseline may have at a place from 0 to 1: the inverse of `earliest`."""
        fall = self.first - self.last
        by_before = self.first - fall * place * self.before if place else self.first
        return min(max(by_before, self.last + fall * (1 - place) * self.after), self.highest(place))

    def highest(self, place: float) -> float:
        """The highest loss."""
        return self.first + place * (self.last - self.first)


def stretch(points: Sequence[tuple[float, float]], index: int) -> Stretch:
    """From point `index - 1` to point `index` of (FLOPs, loss).

    Points are ascending in FLOPs; their losses never rise, and fall between these two.
    """

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
    """Whether the loss falls more and more slowly over log FLOPs; points as for `stretch`."""
    slopes = [(loss - less) / math.log(more / flops) for (flops, loss), (more, less) in pairwise(points)]
    return all(steep >= flat - 1e-9 * abs(steep) for steep, flat in pairwise(slopes))


def too_far_apart(flops: float, more: float) -> str | None:
    """Why nothing is read off between two budgets; None where they are close enough."""
    apart = more / flops
    if apart <= MOST_APART * (1 + 1e-9):
        return None
    return f"a factor of {apart:.3g} apart, where more than {MOST_APART:g} says too little of what lies between them"
