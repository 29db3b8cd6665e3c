from __future__ import annotations

from itertools import pairwise

import pytest

from raystage.config.training import LrSchedule
from raystage.errors import InputError
from raystage.plans.learning_rate import (
    Curve,
    RateSegment,
    Rewarming,
    build,
    curve_of,
    extremes,
    prefix_signature,
    rate_at,
    signature,
    stable_end,
)

LR = 1e-3


def curve(kind: str, total: int = 1000, warmup: int = 100, decay: int = 200, low: float = 0.0, start: int = 0) -> Curve:
    return build(kind, LR, start, total, warmup, decay, low)


@pytest.mark.parametrize(
    ("kind", "low", "rates"),
    [
        ("wsd", 0.0, {0: 0, 50: 0.5, 100: 1, 800: 1, 900: 0.5, 1000: 0, 2000: 0}),
        ("wsd", 0.5, {800: 1, 900: 0.75, 1000: 0.5}),
        ("cosine", 0.0, {50: 0.5, 100: 1, 325: 0.8535533905932737, 550: 0.5, 1000: 0}),
        ("cosine", 0.1, {550: 0.55, 1000: 0.1}),
        ("linear", 0.0, {50: 0.5, 100: 1, 550: 0.5, 1000: 0}),
        ("constant", 0.0, {50: 0.5, 100: 1, 1000: 1}),
        ("1-sqrt", 0.0, {50: 0.5, 100: 1, 325: 0.5, 676: 0.2, 1000: 0}),
        ("1-sqrt", 0.5, {100: 1, 325: 0.75, 1000: 0.5}),
    ],
)
def test_rates_by_hand(kind: str, low: float, rates: dict[int, float]) -> None:
    for tokens, share in rates.items():
        assert rate_at(curve(kind, low=low), tokens) == pytest.approx(share * LR, abs=1e-15)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear", "1-sqrt", "constant"])
@pytest.mark.parametrize(
    ("warmup", "decay"), [(100, 200), (0, 200), (100, 0), (0, 0), (0, 1000), (800, 200), (1000, 0)]
)
@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("start", [0, 77])
def test_laws_of_every_curve(kind: str, warmup: int, decay: int, low: float, start: int) -> None:
    made = curve(kind, 1000, warmup, decay, low, start)
    assert (made[0].start, made[-1].end) == (start, start + 1000)
    for first, second in pairwise(made):
        assert first.end == second.start
        assert first.end_lr == second.start_lr
        assert not (first.is_flat and second.is_flat)
    assert all(piece.start < piece.end for piece in made)
    end = stable_end(made)
    if end is not None:
        assert all(rate_at(made, tokens) == LR for tokens in range(start + warmup, end))
        longer = curve(kind, 2000, warmup, decay, low, start)
        assert signature(made, start, end) == signature(longer, start, end)
        assert [rate_at(made, t) for t in range(start, end)] == [rate_at(longer, t) for t in range(start, end)]


@pytest.mark.parametrize(
    ("kind", "warmup", "decay", "low", "end"),
    [
        ("wsd", 100, 200, 0.0, 800),
        ("wsd", 0, 200, 0.0, 800),
        ("wsd", 100, 0, 0.0, 1000),  # no decay: constant to its end
        ("wsd", 100, 200, 1.0, 1000),  # a decay to all of the rate
        ("wsd", 100, 900, 0.0, None),  # nothing stable between warm-up and decay
        ("wsd", 0, 1000, 0.0, None),  # decay from the first token on
        ("constant", 100, 200, 0.0, 1000),
        ("cosine", 100, 200, 0.0, None),
        ("cosine", 0, 200, 0.0, None),
        ("linear", 100, 200, 0.0, None),
        ("linear", 0, 200, 0.0, None),
        ("linear", 0, 200, 1.0, 1000),
    ],
)
def test_stable_end(kind: str, warmup: int, decay: int, low: float, end: int | None) -> None:
    assert stable_end(curve(kind, 1000, warmup, decay, low)) == end


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        ("linear", {800: 1, 850: 0.75, 900: 0.5, 1000: 0}),
        ("cosine", {800: 1, 850: 0.8535533905932737, 900: 0.5, 1000: 0}),
        ("1-sqrt", {800: 1, 802: 0.9, 850: 0.5, 928: 0.2, 1000: 0}),
    ],
)
def test_decays_of_every_shape_by_hand(shape: str, rates: dict[int, float]) -> None:
    """All begin at the same place, so a longer run shares the part before."""
    made = curve_of(LrSchedule(kind="wsd", warmup=100, decay=200, decay_shape=shape), LR, 0, 1000, "")
    assert stable_end(made) == 800
    assert signature(made, 0, 800) == signature(curve("wsd", 2000), 0, 800)
    for tokens, share in rates.items():
        assert rate_at(made, tokens) == pytest.approx(share * LR, abs=1e-15)


# --- piecewise ------------------------------------------------------------------------------------


def piecewise(*points: dict, total: int = 1000, warmup: int = 100, start: int = 0) -> Curve:
    schedule = LrSchedule.model_validate({"kind": "piecewise", "warmup": warmup, "points": points})
    return curve_of(schedule, LR, start, total, "training.lr_schedule")


def test_points_by_hand() -> None:
    points = [
        {"at": 0.4, "ratio": 1},
        {"at": 600, "ratio": 0.2, "shape": "cosine"},
        {"at": 0.7, "ratio": 0.1, "shape": "step"},
        {"at": 0.8, "ratio": 0.5, "shape": "1-sqrt"},
        {"at": 900, "ratio": 0},
    ]
    shares = {0: 0, 50: 0.5, 100: 1, 400: 1, 500: 0.6, 600: 0.2, 699: 0.2, 700: 0.1, 725: 0.3, 800: 0.5, 850: 0.25}
    for start in (0, 77):
        made = piecewise(*points, start=start)
        for tokens, share in {**shares, 900: 0, 1000: 0}.items():
            assert rate_at(made, start + tokens) == pytest.approx(share * LR, abs=1e-15), tokens


def test_the_rate_of_deepseek_v3() -> None:
    """2412.19437: constant to 10T, a cosine to a tenth over 4.3T, 333B at that and 167B at 7.3e-6."""
    schedule = LrSchedule.model_validate(
        {"kind": "piecewise", "warmup": "25B", "points": [
            {"at": "10T", "ratio": 1},
            {"at": "14.3T", "ratio": 0.1, "shape": "cosine"},
            {"at": "14.633T", "ratio": 7.3e-6 / 2.2e-4, "shape": "step"}]}
    )  # fmt: skip
    made = curve_of(schedule, 2.2e-4, 0, 14_800_000_000_000, "")
    rates = {0.0125: 1.1e-4, 0.025: 2.2e-4, 9.99: 2.2e-4, 12.15: 1.21e-4, 14.31: 2.2e-5, 14.64: 7.3e-6, 14.8: 7.3e-6}
    for trillions, rate in rates.items():
        assert rate_at(made, trillions * 1e12) == pytest.approx(rate, rel=1e-6)


def test_a_first_point_at_0_is_where_the_rate_begins() -> None:
    made = piecewise({"at": 0, "ratio": 0.5}, {"at": 1, "ratio": 1})
    assert [rate_at(made, tokens) / LR for tokens in (0, 50, 100, 550, 1000)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("points", "same"),
    [
        ([{"at": 1, "ratio": 1}], LrSchedule(kind="constant", warmup=100)),
        ([{"at": 0.5, "ratio": 1}, {"at": 1, "ratio": 1, "shape": "cosine"}], LrSchedule(kind="constant", warmup=100)),
        ([{"at": 0.8, "ratio": 1}, {"at": 1, "ratio": 0}], LrSchedule(kind="wsd", warmup=100, decay=200)),
        ([{"at": 1, "ratio": 0.1, "shape": "cosine"}], LrSchedule(kind="cosine", warmup=100, min_lr_ratio=0.1)),
    ],
)  # fmt: skip
def test_what_another_kind_says_has_the_same_form(points: list[dict], same: LrSchedule) -> None:
    """Equal rates, equal keys: a stage is not trained twice because it is written in another way."""
    assert piecewise(*points) == curve_of(same, LR, 0, 1000, "")


def test_curves_that_agree_up_to_a_point_share_what_is_before() -> None:
    """And nothing after it: each segment counts with both of its ends."""
    first = {"at": 400, "ratio": 1}
    one = piecewise(first, {"at": 600, "ratio": 0.2}, {"at": 800, "ratio": 0.1, "shape": "step"})
    other = piecewise(first, {"at": 600, "ratio": 0.2}, {"at": 900, "ratio": 0}, total=2000)
    bent = piecewise(first, {"at": 600, "ratio": 0.2, "shape": "1-sqrt"})
    for end, shared in ((100, True), (350, True), (400, True), (600, True), (601, False), (1000, False)):
        assert (signature(one, 0, end) == signature(other, 0, end)) is shared, end
        assert (prefix_signature(one, 0, end) == prefix_signature(other, 0, end)) is shared, end
        if shared:
            assert [rate_at(one, at + 0.5) for at in range(end)] == [rate_at(other, at + 0.5) for at in range(end)]
    assert signature(one, 0, 400) == signature(bent, 0, 400)
    assert signature(one, 0, 401) != signature(bent, 0, 401)


@pytest.mark.parametrize(
    ("points", "end"),
    [
        ([{"at": 400, "ratio": 1}, {"at": 1, "ratio": 0.1, "shape": "1-sqrt"}], 400),
        ([{"at": 400, "ratio": 1}, {"at": 600, "ratio": 0.1}], None),  # constant twice
        ([{"at": 400, "ratio": 0.5, "shape": "step"}], None),
        ([{"at": 400, "ratio": 0.5}], None),
    ],
)
def test_stable_is_only_what_one_constant_part_says(points: list[dict], end: int | None) -> None:
    assert stable_end(piecewise(*points)) == end


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([], "found kind: piecewise without points; expected for example points: "),
        ([{"at": 1001, "ratio": 1}], "found points[0] at 1001 in a run of 1000; expected at most as many"),
        ([{"at": 0.1, "ratio": 1}],
         "found points[0] at 100, and the end of the warm-up at 100; expected it later"),
        ([{"at": 0.5, "ratio": 1}, {"at": 500, "ratio": 0}],
         "found points[1] at 500, and the point before at 500; expected it later"),
        ([{"at": 0, "ratio": 0.1}, {"at": 50, "ratio": 0}], "found points[1] at 50, and the end of the warm-up"),
    ],
)  # fmt: skip
def test_points_that_do_not_fit_are_refused(points: list[dict], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        piecewise(*points)
    assert str(caught.value).startswith(f"training.lr_schedule: {problem}")


def test_the_extremes_of_a_stretch() -> None:
    made = piecewise({"at": 400, "ratio": 1}, {"at": 600, "ratio": 0.2}, {"at": 800, "ratio": 0.5, "shape": "step"})
    shares = {
        (0, 50): (0, 0.5, 0.5),
        (50, 500): (0.5, 1, 0.6),
        (600, 800): (0.2, 0.2, 0.2),
        (800, 1000): (0.5, 0.5, 0.5),
    }
    for stretch, expected in shares.items():
        assert [rate / LR for rate in extremes(made, *stretch)] == pytest.approx(expected, abs=1e-12), stretch


# --- signatures -----------------------------------------------------------------------------------


def test_flat_neighbours_are_one_piece() -> None:
    assert curve("wsd", low=1.0) == curve("constant") == (RateSegment(0, 100, 0.0, LR), RateSegment(100, 1000, LR, LR))


def test_a_signature_is_all_that_decides_the_rates_of_a_stretch() -> None:
    made = curve("wsd")
    assert signature(made, 0, 1000) == [
        ["line", 0, 100, 0.0, LR],
        ["constant", 100, 800, LR],
        ["line", 800, 1000, LR, 0.0],
    ]
    assert signature(made, 200, 300) == [["constant", 200, 300, LR]]
    assert signature(made, 100, 800) == [["constant", 100, 800, LR]]
    assert signature(made, 50, 150) == [["line", 0, 100, 0.0, LR], ["constant", 100, 150, LR]]
    assert signature(made, 850, 900) == [["line", 800, 1000, LR, 0.0]]
    assert signature(curve("cosine"), 500, 600) == [["cosine", 100, 1000, LR, 0.0]]


@pytest.mark.parametrize(
    ("factor", "rates"),
    [
        (1.3, {-5: 0, 0: 0, 50: 0.65, 100: 1.3, 150: 1.15, 200: 1, 1000: 1}),
        (0.5, {50: 0.25, 100: 0.5, 150: 0.75, 200: 1, 1000: 1}),
        (1.0, {50: 0.5, 100: 1, 150: 1, 200: 1}),
    ],
)
def test_rewarming_by_hand(factor: float, rates: dict[int, float]) -> None:
    rewarming = Rewarming(factor, 100)
    for tokens, multiplier in rates.items():
        assert rewarming.at(tokens) == pytest.approx(multiplier, abs=1e-15)
    assert [rewarming.is_over(tokens) for tokens in (0, 199.5, 200, 1000)] == [False, False, True, True]
    assert rewarming.at(200) == rewarming.at(10**9) == 1.0  # to the bit: from here on the rates are the old ones'
