"""The order of a mixture's windows: in exact proportion, the same however it is asked for."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest

from raystage.data.interleaving import Interleaving


def drawn_weights(rng: random.Random) -> list[Fraction]:
    """Shares with up to four decimals that add up to 1, as a schedule has them."""
    count = rng.randint(1, 7)
    cuts = sorted(rng.sample(range(1, 10_000), count - 1))
    return [Fraction(high - low, 10_000) for low, high in zip([0, *cuts], [*cuts, 10_000], strict=True)]


def by_times(weights: list[Fraction], count: int) -> list[tuple[int, int]]:
    """The law as it is written: all windows by their times, ties by the order of the sources."""
    times = [
        ((Fraction(index) + Fraction(1, 2)) / weight, source, index)
        for source, weight in enumerate(weights)
        for index in range(count)
    ]
    return [(source, index) for _, source, index in sorted(times)[:count]]


def test_a_mixture_is_read_in_the_order_of_the_times() -> None:
    rng = random.Random(0)
    for _ in range(40):
        weights = drawn_weights(rng)
        order = Interleaving(weights)
        assert [order.at(number) for number in range(60)] == by_times(weights, 60)


def test_any_window_can_be_asked_for_in_any_order() -> None:
    rng = random.Random(1)
    for _ in range(25):
        weights = drawn_weights(rng)
        forward = Interleaving(weights)
        known = [forward.at(number) for number in range(1500)]
        order = Interleaving(weights)
        for number in rng.choices(range(1500), k=300):
            if rng.random() < 0.3:
                order.counts(rng.randrange(1500))
            assert order.at(number) == known[number]


def test_counts_are_those_of_reading_one_by_one() -> None:
    rng = random.Random(2)
    for _ in range(25):
        weights = drawn_weights(rng)
        order, seen = Interleaving(weights), Counter()
        for number in range(700):
            if rng.random() < 0.2:
                assert Interleaving(weights).counts(number) == tuple(seen[s] for s in range(len(weights)))
            source, index = order.at(number)
            assert index == seen[source]  # a source's windows are read in a row, none twice, none left out
            seen[source] += 1


def test_every_source_has_its_share_at_any_time() -> None:
    rng = random.Random(3)
    for _ in range(40):
        weights = drawn_weights(rng)
        for number in rng.choices(range(10**6), k=20):
            counts = Interleaving(weights).counts(number)
            assert sum(counts) == number
            for weight, count in zip(weights, counts, strict=True):
                assert abs(count - weight * number) <= Fraction(max(2, len(weights)), 2)


def test_a_whole_period_has_exactly_the_weights() -> None:
    weights = [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]
    assert Interleaving(weights).counts(10) == (5, 3, 2)
    assert Interleaving(weights).counts(10**30) == (5 * 10**29, 3 * 10**29, 2 * 10**29)


def test_equal_times_lie_in_the_order_of_the_sources() -> None:
    order = Interleaving([Fraction(1, 3)] * 3)
    assert [order.at(number)[0] for number in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("number", [0, 7, 10**15])
def test_far_places_are_reached_at_once(number: int) -> None:
    weights = [Fraction(848, 1000), Fraction(27, 1000), Fraction(125, 1000)]
    order = Interleaving(weights)
    source, index = order.at(number)
    assert Interleaving(weights).counts(number)[source] == index
