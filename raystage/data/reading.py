"""Which window of which source a run reads where, from stage to stage: a pure function of the plan.

A run's text is read in windows of equal length, numbered from the run's start. A stage decides about the windows that
begin within it. A window that is begun is read to its end in the next stage, whatever that reads. Every source has a
cursor, the number of its windows that were begun so far; the next stage with the same source, told by its content,
continues there. So what is read does not depend on workers, batches or context lengths, no window is read twice before
the source is used up, and none is left out.

Stages that read the same sources with the same weights in a row are one segment: where a run is cut into stages changes
nothing of what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from raystage.data.interleaving import Interleaving

# A source's content, and its share of the windows.
Shares = tuple[tuple[str, Fraction], ...]


@dataclass(frozen=True)
class Leg:
    """What the order of text depends on of an earlier stage. end: the position of the run where it ends."""

    end: int
    shares: Shares
    is_mixture: bool


@dataclass(frozen=True)
class Reading:
    """The windows from the one on in which a stage begins.

    window: their length in tokens, and 1 for samples. first: the number of the first window that the segment decides
    about. shares: the segment's sources; cursors: how far each of them was read at `first`. begun: of the window before
    `first` its source and which of its windows it is, where a stage begins within it. others: cursors of sources that
    are not read now.
    is_mixed: whether this stage or an earlier one has a mixture. Until then every source is read at the window numbers
    of the run, as in a run without mixtures.
    """

    window: int
    first: int
    shares: Shares
    cursors: tuple[int, ...]
    begun: tuple[str, int] | None = None
    others: tuple[tuple[str, int], ...] = ()
    is_mixed: bool = True

    @cached_property
    def _interleaving(self) -> Interleaving:
        return Interleaving([share for _, share in self.shares])

    def at(self, number: int) -> tuple[str, int]:
        """(content, which of its windows) of window `number` of the run."""
        if number < self.first:
            if self.begun is None or number != self.first - 1:
                raise IndexError(f"window {number} was read before this stage, which begins with {self.first}")
            return self.begun
        source, index = self._interleaving.at(number - self.first)
        return self.shares[source][0], self.cursors[source] + index

    def cursors_at(self, number: int) -> dict[str, int]:
        """How many windows of each source were begun before window `number` of the run."""
        counts = self._interleaving.counts(number - self.first)
        known = zip(self.shares, self.cursors, counts, strict=True)
        return dict(self.others) | {content: cursor + count for (content, _), cursor, count in known}

    def amounts(self, start: int, end: int) -> dict[str, int]:
        """What is read of each source between two positions of the run, in the unit of positions. None of the two lies
        before the window that the stage begins in."""
        first, last = -(-start // self.window), -(-end // self.window)
        before, after = self.cursors_at(max(first, self.first)), self.cursors_at(max(last, self.first))
        found = {content: (after[content] - before.get(content, 0)) * self.window for content in after}
        for position, sign in ((start, 1), (end, -1)):
            left = -position % self.window
            if left:
                content, _ = self.at(position // self.window)
                found[content] = found.get(content, 0) + sign * left
        return {content: amount for content, amount in found.items() if amount}

    def followed(self, end: int, shares: Shares, is_mixture: bool) -> Reading:
        """The reading of the next stage, if this one ends at the position `end` of the run."""
        is_mixed = self.is_mixed or is_mixture
        border = -(-end // self.window)
        if shares == self.shares:
            begun = self.begun if border <= self.first else None
            return Reading(self.window, self.first, shares, self.cursors, begun, self.others, is_mixed)
        known = self.cursors_at(border)
        if not is_mixed:
            first, cursors, begun = 0, (0,), None
        else:
            first, cursors = border, tuple(known.get(content, 0) for content, _ in shares)
            begun = self.at(border - 1) if end % self.window else None
        mine = {content for content, _ in shares}
        others = tuple((content, cursor) for content, cursor in known.items() if content not in mine)
        return Reading(self.window, first, shares, cursors, begun, others, is_mixed)


def reading_after(legs: Sequence[Leg], window: int, shares: Shares, is_mixture: bool) -> Reading:
    """The reading of a stage after the stages `legs`, which begin with the run."""
    *before, own = *legs, Leg(-1, shares, is_mixture)  # where it ends does not matter
    first = before[0] if before else own
    found = Reading(window, 0, first.shares, (0,) * len(first.shares), is_mixed=first.is_mixture)
    for leg, following in pairwise((*before, own)):
        found = found.followed(leg.end, following.shares, following.is_mixture)
    return found
