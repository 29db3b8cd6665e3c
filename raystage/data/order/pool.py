"""Which window of a sorted text is read when: a pool that grows from the windows that come first to all of them.

The law: windows of the pool that were never read come first, in a random order. Only where there is none is a window
read again. That happens in passes: in each of them every window of the pool is read once, in a random order, and a
window that is new during a pass has its part in it with its first reading. So a window is read again only where every
window of the pool was read, and once the pool holds all windows a pass is an epoch. The pool never shrinks: a stage
that continues a text begins at least with the share that the stage before it reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from raystage.data.order.curriculum import TextPace

# The pool of a stage grows in so many steps, or fewer: each of them goes through what is left of a pass.
GROWTHS = 64


class PacedOrder:
    """Window n of a sorted text, n = 0, 1, ...: a function of the seed, the paces and the number of windows alone.

    paces: from the first window on; the share of a later one counts only where it is larger.
    """

    def __init__(self, seed: int, num_windows: int, paces: Sequence[TextPace]) -> None:
        self._seed, self._num_windows, self._paces = seed, num_windows, tuple(paces)
        blocks = list(self._until_whole())
        self._paced = np.concatenate([block for _, block in blocks])
        self._passes = 1 + blocks[-1][0]  # that are over, or never begun, when the pool is whole
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, number: int) -> int:
        """The place among the windows in the order of their score, from 0."""
        if number < len(self._paced):
            return int(self._paced[number])
        epoch, index = divmod(number - len(self._paced), self._num_windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.argsort(self._draws(self._passes + epoch), kind="stable")
        return int(self._order[index])

    def _until_whole(self) -> Iterator[tuple[int, np.ndarray]]:
        """(pass, the windows that are read after each other), to the end of the pass in which the pool became whole."""
        number, done, size, unread = 0, 0, 0, 0
        left, draws = np.empty(0, dtype=np.int64), self._draws(0)
        for start, new_size in self._sizes():
            while number < start:
                if not len(left):
                    done += 1
                    draws = self._draws(done)
                    left = _by(draws, np.arange(size))
                taken = min(len(left), start - number)
                yield done, left[:taken]
                left, number, unread = left[taken:], number + taken, max(0, unread - taken)
            new = _merged(draws, left[:unread], np.arange(size, new_size))
            left, unread, size = np.concatenate([new, left[unread:]]), len(new), new_size
        yield done, left

    def _sizes(self) -> list[tuple[int, int]]:
        """(window of the text, the size of the pool from it on), ascending, up to a pool of all windows."""
        found: list[tuple[int, int]] = []
        for pace, following in pairwise((*self._paces, None)):
            for number in _looks(pace, following):
                size = max(1, math.ceil(pace.share(number) * self._num_windows))
                if not found or size > found[-1][1]:
                    found.append((number, size))
                if size == self._num_windows:
                    return found
        return found

    def _draws(self, number: int) -> np.ndarray:
        """Of a pass, one for each window, as those of an epoch of a text that is not sorted."""
        return np.random.Philox(key=[self._seed % 2**64, number]).random_raw(self._num_windows)


def _looks(pace: TextPace, following: TextPace | None) -> Iterator[int]:
    """The windows at which the size of the pool is looked at."""
    last = pace.first
    if pace.curriculum is not None:
        last = pace.first + math.ceil(pace.curriculum.over_tokens / pace.window_tokens)
    count = min(GROWTHS, max(1, last - pace.first))
    for step in range(count + 1):
        number = pace.first + (last - pace.first) * step // count
        if following is not None and number >= following.first:
            return
        yield number


def _by(draws: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Windows in the order of their draws."""
    return windows[np.argsort(draws[windows], kind="stable")]


def _merged(draws: np.ndarray, left: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Windows that are in the order of their draws, with new ones in their places."""
    new = _by(draws, new)
    return np.insert(left, np.searchsorted(draws[left], draws[new]), new)
