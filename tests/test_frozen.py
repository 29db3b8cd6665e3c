"""Changed copies of frozen dataclasses: the same as those of `dataclasses.replace`."""

from __future__ import annotations

import dataclasses

import pytest

from raystage.frozen import once, renewed, replaced


@dataclasses.dataclass(frozen=True)
class Pair:
    first: int
    second: int = 2

    @once
    def sum(self) -> int:
        """Both together."""
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


def test_a_renewed_copy_keeps_what_was_worked_out() -> None:
    pair = Pair(1)
    assert vars(renewed(pair, first=5)) == {"first": 5, "second": 2}
    assert pair.sum == 3
    assert vars(renewed(pair, first=5)) == {"first": 5, "second": 2, "sum": 3}
    assert pair == Pair(1)


def test_a_value_is_worked_out_once() -> None:
    pair = Pair(1)
    assert "sum" not in vars(pair)
    assert (pair.sum, vars(pair)["sum"]) == (3, 3)
    vars(pair)["sum"] = 4
    assert pair.sum == 4
    assert Pair.sum.__doc__ == "Both together."


def test_a_field_that_is_not_there_is_refused() -> None:
    for change in (replaced, renewed):
        with pytest.raises(TypeError, match="Pair has no field third"):
            change(Pair(1), third=3)
