"""Changed copies of frozen dataclasses: the same as those of `dataclasses.replace`."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import pytest

from raystage.frozen import replaced


@dataclasses.dataclass(frozen=True)
class Pair:
    first: int
    second: int = 2

    @cached_property
    def sum(self) -> int:
        return self.first + self.second


def test_a_copy_is_that_of_dataclasses() -> None:
    pair = Pair(1)
    assert pair.sum == 3
    copy = replaced(pair, first=5)
    assert (copy, hash(copy)) == (dataclasses.replace(pair, first=5), hash(Pair(5)))
    assert copy.sum == 7, "what was cached is worked out anew"
    assert (pair, replaced(pair)) == (Pair(1), Pair(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.first = 6


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="Pair has no field third"):
        replaced(Pair(1), third=3)
