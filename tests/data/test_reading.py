"""From stage to stage every source is read on where it stopped: nothing twice, nothing left out."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction

from raystage.data.reading import Leg, Reading, Shares, reading_after

WINDOW = 16
HALF = Fraction(1, 2)


def drawn_shares(rng: random.Random) -> Shares:
    contents = rng.sample("abcde", rng.randint(1, 4))
    cuts = sorted(rng.sample(range(1, 100), len(contents) - 1))
    return tuple(
        (content, Fraction(high - low, 100))
        for content, low, high in zip(contents, [0, *cuts], [*cuts, 100], strict=True)
    )


def drawn_legs(rng: random.Random, step: int = 1) -> list[Leg]:
    """Mixtures that end anywhere, some of them within the window in which they began, some as the one before."""
    legs: list[Leg] = []
    position = 0
    for _ in range(rng.randint(1, 8)):
        position += step * rng.choice([1, 3, rng.randint(1, 40), rng.randint(40, 700)])
        again = legs and rng.random() < 0.3
        legs.append(Leg(position, legs[-1].shares if again else drawn_shares(rng), True))
    return legs


def read(legs: list[Leg]) -> list[tuple[str, int, int]]:
    """(content, window, place in the window) of every token of a run, each stage asked for its own."""
    found, start = [], 0
    for index, leg in enumerate(legs):
        reading = reading_after(legs[:index], WINDOW, leg.shares, leg.is_mixture)
        for position in range(start, leg.end):
            found.append((*reading.at(position // WINDOW), position % WINDOW))
        start = leg.end
    return found


def test_no_token_is_read_twice_and_none_is_left_out() -> None:
    rng = random.Random(0)
    for _ in range(120):
        legs = drawn_legs(rng)
        tokens = read(legs)
        by_source: dict[str, list[int]] = defaultdict(list)
        for content, window, inside in tokens:
            by_source[content].append(window * WINDOW + inside)
        # The last window may be open; all others of a source are read from its first token on, in order.
        for places in by_source.values():
            assert places == list(range(len(places)))


def test_a_window_that_is_begun_is_read_to_its_end() -> None:
    first, second = ("a", Fraction(1)), ("b", Fraction(1))
    legs = [Leg(20, (first,), True), Leg(24, (second,), True)]
    reading = reading_after(legs, WINDOW, (second,), True)
    assert reading_after(legs[:1], WINDOW, (second,), True).at(1) == ("a", 1)
    assert reading.at(1) == ("a", 1)
    assert reading.at(2) == ("b", 0)


def test_where_stages_are_cut_changes_nothing_of_what_one_mixture_reads() -> None:
    rng = random.Random(1)
    for _ in range(40):
        shares, cuts = drawn_shares(rng), sorted(rng.sample(range(1, 999), 4))
        whole = [Leg(1000, shares, True)]
        assert read([Leg(cut, shares, True) for cut in (*cuts, 1000)]) == read(whole)


def test_a_source_goes_on_after_a_stage_without_it() -> None:
    a, b = ("a", Fraction(1)), ("b", Fraction(1))
    mixed = (("a", HALF), ("b", HALF))
    legs = [Leg(4 * WINDOW, mixed, True), Leg(8 * WINDOW, (b,), False)]
    assert reading_after(legs, WINDOW, (a,), False).cursors == (2,)
    assert reading_after(legs[:1], WINDOW, (b,), False).cursors == (2,)


def test_before_the_first_mixture_windows_are_those_of_the_run() -> None:
    a, b = (("a", Fraction(1)),), (("b", Fraction(1)),)
    legs = [Leg(3 * WINDOW, a, False), Leg(5 * WINDOW + 4, b, False)]
    second = reading_after(legs[:1], WINDOW, b, False)
    assert [second.at(number) for number in (3, 4)] == [("b", 3), ("b", 4)]
    mixed = reading_after(legs, WINDOW, (("a", HALF), ("b", HALF)), True)
    assert mixed.at(5) == ("b", 5)  # begun there
    assert [mixed.at(number) for number in (6, 7, 8, 9)] == [("a", 3), ("b", 6), ("a", 4), ("b", 7)]


def test_the_tokens_of_every_source_are_those_that_are_read() -> None:
    rng = random.Random(2)
    for _ in range(80):
        legs = drawn_legs(rng)
        tokens, start = read(legs), 0
        for index, leg in enumerate(legs):
            counted: dict[str, int] = defaultdict(int)
            for content, _, _ in tokens[start : leg.end]:
                counted[content] += 1
            reading: Reading = reading_after(legs[:index], WINDOW, leg.shares, leg.is_mixture)
            assert reading.amounts(start, leg.end) == counted
            start = leg.end
