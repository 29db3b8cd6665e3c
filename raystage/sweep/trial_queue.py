"""Which trial of a sweep to start next: one that has something to do, rather than one that would only wait.

A trial that waits for another one's stage holds no CPU or GPU, but its place among those that run at a time, and a
process. So while one is there that need not wait, that one is started, and where all would have to, none.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence


class TrialQueue:
    """The trials of a sweep in `order`, by number, each begun once.

    chains: by number the keys of its stages. donors: by the key of a stage that of the shorter one it can go on from.
    finished: stages that nobody has to wait for. All stages of a trial that runs are its own until they are finished
    or it has ended: whoever needs one of them next, or can go on from one, comes later.
    """

    def __init__(
        self,
        order: Sequence[int],
        chains: Mapping[int, Sequence[str]],
        donors: Mapping[str, str],
        finished: Collection[str] = (),
    ) -> None:
        self._order, self._chains, self._donors = tuple(order), chains, donors
        self._places = {number: place for place, number in enumerate(self._order)}
        self._ready = list(range(len(self._order)))
        self._blocked: dict[str, list[int]] = defaultdict(list)
        self._claims: Counter[str] = Counter()
        self._finished = set(finished)
        self.begun: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return len(self.begun) == len(self._order)

    def take(self) -> int | None:
        """The first trial in order that need not wait; from here on it runs. None where all that are left would."""
        while self._ready:
            number = self._order[heapq.heappop(self._ready)]
            if number in self.begun:
                continue
            obstacle = self._obstacle(number)
            if obstacle is None:
                self.begin(number)
                return number
            self._blocked[obstacle].append(number)
        return None

    def begin(self, number: int) -> None:
        """The trial runs, whether it is its turn or not."""
        self.begun.add(number)
        self._claims.update(self._left(number))

    def finish(self, key: str) -> None:
        """A stage is finished."""
        self._finished.add(key)
        self._claims.pop(key, None)
        self._free(key)

    def end(self, number: int) -> None:
        """A trial that ran has ended, at its end or before; its stages are anybody's."""
        for key in self._left(number):
            self._claims[key] -= 1
            if self._claims[key] <= 0:
                del self._claims[key]
                self._free(key)

    def _left(self, number: int) -> Iterator[str]:
        return (key for key in self._chains[number] if key not in self._finished)

    def _obstacle(self, number: int) -> str | None:
        """What a trial would have to wait for, at once."""
        first = next(self._left(number), None)
        while first is not None and first not in self._claims:
            first = None if first in self._finished else self._donors.get(first)
        return first

    def _free(self, key: str) -> None:
        for number in self._blocked.pop(key, ()):
            heapq.heappush(self._ready, self._places[number])
