"""The order in which the windows of several sources are read: by the largest deficit, in exact integers.

Source s with the share w_s of the windows reads its j-th window (j = 0, 1, ...) at the time (j + 1/2) / w_s. Windows
lie in the order of these times, equal times in the order of the sources. This is the method of Webster and Sainte-Lague
for seats in a parliament, one seat after the other: after n windows every source has read its share of n to within
(number of sources) / 2 windows, and of two sources to within one window.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

# So many windows further on are reached one by one. Beyond that the place is computed anew.
_NEAR = 64


class Interleaving:
    """Window n of a mixture: its source, and which of the source's windows it is. Both follow from n and the weights.

    weights: above 0; only their ratios count. Reading forward is cheap, and any n can be asked for at any time.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        common = math.lcm(*(weight.denominator for weight in weights))
        whole = [int(weight * common) for weight in weights]
        self._weights, self._sum = whole, sum(whole)
        # Times in units in which all of them are whole: window j of source s has the time (2 j + 1) * half a stride.
        least = math.lcm(*whole)
        self._half_strides = [least // weight for weight in whole]
        self._seek(0)

    def at(self, number: int) -> tuple[int, int]:
        """(source, which of its windows) of window `number` of the mixture, both from 0."""
        if number == self._next - 1 and self._last is not None:
            return self._last
        if not self._next <= number <= self._next + _NEAR:
            self._seek(number)
        while self._next <= number:
            self._step()
        return self._last

    def counts(self, number: int) -> tuple[int, ...]:
        """How many of the first `number` windows each source has.

        At the time t = number - sources / 2 source s has read floor(t * share + 1/2) windows. Rounded like this they
        are no more than `number` in all, and no more than the number of sources fewer: the rest is counted.
        """
        self._seek(number)
        return tuple(self._counts)

    def _seek(self, number: int) -> None:
        """Make window `number` the next one."""
        twice = max(0, 2 * number - len(self._weights))
        self._counts = [(twice * weight + self._sum) // (2 * self._sum) for weight in self._weights]
        self._next = sum(self._counts)
        self._heap = [(self._time(source), source) for source in range(len(self._weights))]
        heapq.heapify(self._heap)
        self._last: tuple[int, int] | None = None
        while self._next < number:
            self._step()

    def _step(self) -> None:
        source = self._heap[0][1]
        self._last = source, self._counts[source]
        self._counts[source] += 1
        self._next += 1
        heapq.heapreplace(self._heap, (self._time(source), source))

    def _time(self, source: int) -> int:
        return (2 * self._counts[source] + 1) * self._half_strides[source]
