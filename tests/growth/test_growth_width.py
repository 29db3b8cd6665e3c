"""What each width operator does to units, by hand: the factors of weights and gradients, index by index."""

from __future__ import annotations

import math

import pytest

from raystage.growth.axis_maps import FRESH, MEAN, ZERO, Heads, repeated, repeated_heads, spread_map
from raystage.growth.width import (
    WIDTH_OPERATORS,
    Stream,
    key_value_map,
    more_positions,
    more_vocabulary,
    rms_scale,
    uneven_shares,
)

RMS, LAYER = Stream("rms", False, False), Stream("layer", False, False)
TIED, POST_NORM = Stream("rms", False, True), Stream("layer", True, False)


def hidden(operator: str, source: int, target: int, stream: Stream = RMS) -> dict:
    return WIDTH_OPERATORS[operator].hidden(source, target, stream)


@pytest.mark.parametrize("operator", WIDTH_OPERATORS)
def test_every_operator_has_a_map_for_every_role(operator: str) -> None:
    one = WIDTH_OPERATORS[operator]
    norms = {"gain", "shift", "branch gain", "final gain", "final shift"}
    # "bare in" reads the residual stream without a norm; it has the map of "in" where the operator has no other.
    assert set(one.hidden(2, 5, RMS)) - {"bare in"} == {"out", "in", *norms}
    assert set(one.inner(one.units(2, 5))) == {"out", "in"}
    assert all(len(axis.index) == 5 for axis in one.hidden(2, 5, RMS).values())


def test_zero_padding_makes_up_for_the_smaller_mean_square() -> None:
    maps = hidden("zero_pad", 2, 8)
    assert maps["out"].index == (0, 1, *[ZERO] * 6)
    assert maps["in"].index == maps["gain"].index == (0, 1, *[FRESH] * 6)
    assert maps["gain"].value == (0.5,) * 8
    assert maps["gain"].gradient == (2.0,) * 8
    assert hidden("zero_pad", 2, 8, LAYER)["gain"].value == (1.0,) * 8


def test_zero_padding_inside_is_read_by_zeros() -> None:
    one = WIDTH_OPERATORS["zero_pad"]
    maps = one.inner(one.units(2, 3))
    assert (maps["out"].index, maps["in"].index) == ((0, 1, FRESH), (0, 1, ZERO))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shares_are_of_one_and_no_two_alike(count: int) -> None:
    shares = uneven_shares(count)
    assert sum(shares) == pytest.approx(1, rel=1e-12)
    assert len({round(share, 9) for share in shares}) == count
    assert min(shares) > 0


def test_uneven_shares_by_hand() -> None:
    assert uneven_shares(2) == [0.75, 0.25]
    assert uneven_shares(3) == pytest.approx([5 / 9, 3 / 9, 1 / 9])


def test_duplicates_share_unevenly_in_kind_and_evenly_in_effect() -> None:
    """A gain times the column that reads it is 1/n for every copy; a gain alone is not like its duplicate's."""
    maps = hidden("duplicate", 2, 6)
    assert maps["out"].index == (0, 1, 0, 1, 0, 1)
    effects = maps["gain"].values * maps["in"].values
    assert effects.tolist() == pytest.approx([1 / 3] * 6)
    assert maps["gain"].values[::2].tolist() == pytest.approx([1, 2 / 3, 1 / 2])
    assert maps["out"].gradients.tolist() == pytest.approx([1 / 3] * 6)
    assert maps["out"].keeps.tolist() == [True, True, False, False, False, False]


def test_behind_a_post_norm_gains_stay_alike() -> None:
    maps = hidden("duplicate", 2, 4, POST_NORM)
    assert maps["gain"].value == (1.0,) * 4
    assert maps["in"].value == (0.75, 0.75, 0.25, 0.25)
    assert not maps["out"].predicts


def test_what_is_left_over_a_whole_number_of_copies() -> None:
    """Zero under an RMSNorm; the mean of the others, which it takes away, under a LayerNorm."""
    assert hidden("duplicate", 2, 5)["out"].index == (0, 1, 0, 1, ZERO)
    assert hidden("duplicate", 2, 5, LAYER)["out"].index == (0, 1, 0, 1, MEAN)
    assert hidden("duplicate", 2, 3)["gain"].values[:2].tolist() == pytest.approx([math.sqrt(2 / 3)] * 2)


def test_a_tied_head_counts_all_copies() -> None:
    maps = hidden("duplicate", 2, 4, TIED)
    assert maps["final gain"].value == (0.5,) * 4
    assert maps["gain"].values.tolist() == pytest.approx([1, 1, 0.5, 0.5])
    assert hidden("duplicate", 2, 4)["final gain"] == hidden("duplicate", 2, 4)["gain"]


@pytest.mark.parametrize(
    ("source", "target", "scale"), [(4, 8, 1 / 2), (4, 6, 1 / math.sqrt(2.5)), (4, 12, 1 / 3), (4, 16, 1 / 4)]
)
def test_the_scale_that_keeps_the_rms(source: int, target: int, scale: float) -> None:
    assert rms_scale(source, target) == pytest.approx(scale)
    assert hidden("rms", source, target)["in"].values.tolist() == pytest.approx([scale] * target)


def test_only_new_units_of_aki_come_from_the_next_layer() -> None:
    one = WIDTH_OPERATORS["aki"]
    maps = one.inner(repeated(2, 3))
    assert maps["out"].beyond == (False, False, True)
    assert maps["in"].value == (0.75, 1.0, 0.25)
    assert not maps["out"].keeps.any()


def test_masked_units_are_drawn() -> None:
    for axis in hidden("masked", 2, 4).values():
        assert axis.index == (0, 1, FRESH, FRESH)
        assert axis.values.tolist() == [1.0] * 4


def test_key_value_heads_get_their_gradients_through_their_groups() -> None:
    """Copies of a key/value head that serve all the old query heads to one degree: exact. Otherwise an estimate."""
    found = []
    for target in (Heads(8, 4), Heads(4, 4)):
        query, key_value = repeated_heads(Heads(4, 2), target)
        out = WIDTH_OPERATORS["duplicate"].inner(query)["out"]
        axis = key_value_map(out, query, key_value, "duplicate")
        found.append((axis.gradients.tolist(), axis.predicts))
    assert found[0] == (pytest.approx([0.75, 0.75, 0.25, 0.25]), True)
    assert found[1] == (pytest.approx([0.5] * 4), False)


def test_heads_spread_over_their_size() -> None:
    axis = spread_map(WIDTH_OPERATORS["duplicate"].inner(repeated(2, 3))["in"], 2)
    assert (axis.source, axis.index) == (4, (0, 1, 2, 3, 0, 1))
    assert axis.value == (0.75, 0.75, 1.0, 1.0, 0.25, 0.25)
    assert axis.keeps.tolist() == [True] * 4 + [False] * 2


def test_more_tokens_and_more_positions() -> None:
    assert more_vocabulary(2, 4).index == (0, 1, MEAN, MEAN)
    positions = more_positions(2, 5)
    assert positions.index == (0, 1, 0, 1, 0)
    assert positions.gradients.tolist() == [1, 1, 0, 0, 0]
    assert positions.keeps.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("operator", "stream", "whole", "other"),
    [
        ("zero_pad", RMS, True, True),
        ("zero_pad", LAYER, False, False),
        ("zero_pad", POST_NORM, False, False),
        ("duplicate", RMS, True, True),
        ("duplicate", LAYER, True, True),
        ("duplicate", POST_NORM, True, False),
        ("aki", RMS, False, False),
        ("rms", RMS, False, False),
        ("masked", LAYER, True, True),
    ],
)
def test_which_hidden_growths_are_exact(operator: str, stream: Stream, whole: bool, other: bool) -> None:
    exact = WIDTH_OPERATORS[operator].exact
    assert (exact(2, 4, stream), exact(2, 5, stream)) == (whole, other)
