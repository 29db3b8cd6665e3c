from __future__ import annotations

from itertools import pairwise

import pytest

from raystage.plans.learning_rate import Curve, RateSegment, Rewarming, build, rate_at, signature, stable_end

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
    ],
)
def test_rates_by_hand(kind: str, low: float, rates: dict[int, float]) -> None:
    for tokens, share in rates.items():
        assert rate_at(curve(kind, low=low), tokens) == pytest.approx(share * LR, abs=1e-15)


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear", "constant"])
@pytest.mark.parametrize(
    ("warmup", "decay"), [(100, 200), (0, 200), (100, 0), (0, 0), (0, 1000), (800, 200), (1000, 0)]
)
@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("start", [0, 77])
def test_laws_of_every_curve(kind: str, warmup: int, decay: int, low: float, start: int) -> None:
    made = curve(kind, 1000, warmup, decay, low, start)
    assert (made[0].start_tokens, made[-1].end_tokens) == (start, start + 1000)
    for first, second in pairwise(made):
        assert first.end_tokens == second.start_tokens
        assert first.end_lr == second.start_lr
        assert not (first.is_flat and second.is_flat)
    assert all(piece.start_tokens < piece.end_tokens for piece in made)
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
