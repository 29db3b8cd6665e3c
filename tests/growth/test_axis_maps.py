"""Units that become more, and the axis maps made of them: by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from raystage.growth.axis_maps import (
    FRESH,
    MEAN,
    ZERO,
    AxisMap,
    Heads,
    Widening,
    end_to_end,
    padded,
    padded_heads,
    repeated,
    repeated_heads,
    unchanged,
)


def test_repeated_units_begin_again() -> None:
    units = repeated(3, 7)
    assert units.origin == (0, 1, 2, 0, 1, 2, 0)
    assert units.number == (0, 0, 0, 1, 1, 1, 2)
    assert units.copies == (3, 2, 2, 3, 2, 2, 3)
    assert units.first == (True, True, True, False, False, False, False)


def test_padded_units_are_followed_by_new_ones() -> None:
    units = padded(2, 4)
    assert (units.source, units.target, units.origin) == (2, 4, (0, 1, -1, -1))
    assert units.first == (True, True, False, False)


@pytest.mark.parametrize(
    ("source", "target", "query", "key_value"),
    [
        (Heads(4, 2), Heads(8, 4), (0, 1, 2, 3, 0, 1, 2, 3), (0, 1, 0, 1)),
        (Heads(4, 2), Heads(8, 2), (0, 1, 0, 1, 2, 3, 2, 3), (0, 1)),
        (Heads(4, 2), Heads(4, 4), (0, 2, 1, 3), (0, 1, 0, 1)),
        (Heads(4, 2), Heads(6, 3), (0, 1, 2, 3, 0, 1), (0, 1, 0)),
        (Heads(4, 2), Heads(6, 2), (0, 1, 0, 2, 3, 2), (0, 1)),
        (Heads(2, 2), Heads(3, 3), (0, 1, 0), (0, 1, 0)),
        (Heads(6, 2), Heads(8, 4), (0, 1, 3, 4, 2, 0, 5, 3), (0, 1, 0, 1)),
    ],
)
def test_repeated_heads(source: Heads, target: Heads, query: tuple[int, ...], key_value: tuple[int, ...]) -> None:
    assert repeated_heads(source, target) == (Widening(source.query, query), Widening(source.key_value, key_value))


def test_padded_heads() -> None:
    found = padded_heads(Heads(4, 2), Heads(9, 3))
    assert found == (Widening(4, (0, 1, -1, 2, 3, -1, -1, -1, -1)), Widening(2, (0, 1, -1)))


@pytest.mark.parametrize("heads", [repeated_heads, padded_heads])
def test_query_heads_stay_with_their_key_value_head(heads: object) -> None:
    """For all heads up to 12: where there is a way, each copy reads a copy of what it read, and none is lost."""
    found = 0
    sizes = [Heads(q, k) for q in range(1, 13) for k in range(1, q + 1) if q % k == 0]
    for source, target in itertools.product(sizes, sizes):
        if target.query >= source.query and target.key_value >= source.key_value:
            grown = heads(source, target)
            found += grown is not None
            for place, origin in enumerate(grown[0].origin if grown else ()):
                assert origin < 0 or grown[1].origin[place // target.group] == origin // source.group
            assert grown is None or {*grown[0].origin} - {-1} == set(range(source.query))
    assert found > 100


def test_no_place_for_a_query_head() -> None:
    assert repeated_heads(Heads(6, 2), Heads(6, 3)) is None
    assert padded_heads(Heads(4, 2), Heads(4, 4)) is None


def test_an_axis_that_does_not_change() -> None:
    axis = unchanged(3)
    assert axis.is_identity
    assert axis.keeps.tolist() == [True] * 3
    assert axis.values.tolist() == axis.gradients.tolist() == [1.0] * 3
    assert not AxisMap("", 3, range(3), value=(1.0, 2.0, 1.0)).is_identity


def test_what_has_no_source_keeps_nothing() -> None:
    axis = AxisMap("", 2, (0, FRESH, 1, MEAN, ZERO), kept=(True, True, False, True, True))
    assert axis.keeps.tolist() == [True, False, False, False, False]


def test_parts_end_to_end() -> None:
    wide = AxisMap("wide", 2, (0, 1, FRESH), (2.0, 3.0, 4.0), (5.0, 6.0, 7.0), False, (True, False, False))
    fused = end_to_end([unchanged(3), wide])
    assert fused.source == 5
    assert fused.index == (0, 1, 2, 3, 4, FRESH)
    assert fused.value == (1.0, 1.0, 1.0, 2.0, 3.0, 4.0)
    assert fused.gradient == (1.0, 1.0, 1.0, 5.0, 6.0, 7.0)
    assert fused.kept == (True, True, True, True, False, False)
    assert (fused.note, fused.predicts) == ("wide", False)
    np.testing.assert_array_equal(fused.from_beyond, [False] * 6)


def test_parts_that_do_not_change_stay_one_plain_axis() -> None:
    assert end_to_end([unchanged(3), unchanged(2)]) == unchanged(5)
    assert end_to_end([unchanged(3)]) == unchanged(3)
