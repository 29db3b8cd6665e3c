"""A curriculum: which share of a text is read when, in which order, and that none of it is lost or read too often."""

from __future__ import annotations

import heapq
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from raystage.data.order.curriculum import CurriculumPlan, TextPace, TextRead, legs_of, paces_of, text_of
from raystage.data.order.documents import DocumentSpans, SortedDocuments, SortedStream, Starts, order_of
from raystage.data.order.pool import GROWTHS, PacedOrder
from raystage.data.reading import reading_after
from raystage.data.tokens import TokenWindows, epoch_order

WINDOWS = 40
LINEAR = CurriculumPlan("length", False, 0.25, "linear", 600)
SQRT, STEP = replace(LINEAR, pacing="sqrt"), replace(LINEAR, pacing="step", levels=4)
EVERY = {"linear": LINEAR, "sqrt": SQRT, "step": STEP, "slow": replace(LINEAR, start=0.1, over_tokens=4000),
         "at once": replace(LINEAR, over_tokens=1), "whole": replace(LINEAR, start=1.0)}  # fmt: skip


def pace(curriculum: CurriculumPlan | None, first: int = 0, window: int = 10) -> TextPace:
    return TextPace(first, curriculum, Fraction(window))


def looked_at(current: TextPace, number: int) -> int:
    """The window at which the size of the pool was looked at last."""
    if current.curriculum is None:
        return current.first
    last = int(np.ceil(current.curriculum.over_tokens / current.window_tokens))
    places = [last * step // GROWTHS for step in range(GROWTHS + 1)] if last > GROWTHS else range(last + 1)
    return current.first + max(place for place in places if place <= number - current.first)


def by_the_law(paces: list[TextPace], seed: int, count: int, windows: int = WINDOWS) -> list[int]:
    """Window after window, by the words of the law alone: of those in the pool that were never read the one with the
    smallest draw, then of those that this pass has not read; where it has read them all, the next pass begins."""
    found, size, number_of_pass, waiting = [], 0, 0, []
    draws = np.random.Philox(key=[seed, 0]).random_raw(windows).tolist()
    for number in range(count):
        current = [one for one in paces if one.first <= number][-1]
        wanted = max(size, min(windows, int(np.ceil(current.share(looked_at(current, number)) * windows))), 1)
        for window in range(size, wanted):
            heapq.heappush(waiting, (0, draws[window], window))
        size = wanted
        if not waiting:
            number_of_pass += 1
            draws = np.random.Philox(key=[seed, number_of_pass]).random_raw(windows).tolist()
            waiting = [(1, draws[window], window) for window in range(size)]
            heapq.heapify(waiting)
        found.append(heapq.heappop(waiting)[2])
    return found


@pytest.mark.parametrize("name", EVERY)
def test_windows_come_as_the_law_says(name: str) -> None:
    for seed in range(5):
        paced = PacedOrder(seed, WINDOWS, [pace(EVERY[name])])
        assert [paced.at(number) for number in range(600)] == by_the_law([pace(EVERY[name])], seed, 600)


def test_the_law_goes_on_from_stage_to_stage() -> None:
    """A second stage begins anew with a smaller share: the pool keeps the one that was reached. A third reads all."""
    paces = [pace(LINEAR), pace(SQRT, 30), pace(replace(LINEAR, start=0.9), 47), pace(None, 60)]
    paced = PacedOrder(3, WINDOWS, paces)
    assert [paced.at(number) for number in range(300)] == by_the_law(paces, 3, 300)


@pytest.mark.parametrize("name", EVERY)
def test_no_window_is_read_again_before_the_pool_demands_it(name: str) -> None:
    """A window is read again where every window of the pool was read. None is read more than once more often than one
    that entered the pool before it."""
    paced, counts = PacedOrder(1, WINDOWS, [pace(EVERY[name])]), np.zeros(WINDOWS, dtype=np.int64)
    for number in range(600):
        share = EVERY[name].share(10 * looked_at(pace(EVERY[name]), number))
        window, size = paced.at(number), int(np.ceil(share * WINDOWS))
        if counts[window]:
            assert counts[: max(1, size)].min() > 0
        counts[window] += 1
        assert (np.minimum.accumulate(counts) >= counts - 1).all()
    assert counts.min() > 0


@pytest.mark.parametrize("name", EVERY)
def test_windows_are_of_the_share_that_comes_first(name: str) -> None:
    paced, curriculum = PacedOrder(2, WINDOWS, [pace(EVERY[name])]), EVERY[name]
    for number in range(400):
        assert paced.at(number) < max(1, np.ceil(curriculum.share(number * 10) * WINDOWS))


def test_a_whole_pool_is_shuffled_text() -> None:
    paced = PacedOrder(7, WINDOWS, [pace(None)])
    expected = np.concatenate([epoch_order(7, epoch, WINDOWS) for epoch in range(3)])
    assert [paced.at(number) for number in range(3 * WINDOWS)] == expected.tolist()


def test_any_window_may_be_asked_for_at_any_time() -> None:
    order = [PacedOrder(5, WINDOWS, [pace(LINEAR)]).at(number) for number in range(200)]
    paced = PacedOrder(5, WINDOWS, [pace(LINEAR)])
    for number in np.random.default_rng(0).permutation(200).tolist():
        assert paced.at(number) == order[number]


def test_shares_are_those_of_the_paper() -> None:
    half = 300
    assert LINEAR.share(0) == SQRT.share(0) == STEP.share(0) == 0.25
    assert LINEAR.share(half) == pytest.approx(0.5 * (1 - 0.25) + 0.25)
    assert SQRT.share(half) == pytest.approx((0.5 * (1 - 0.25**2) + 0.25**2) ** 0.5)
    assert [STEP.share(tokens) for tokens in (149, 150, 599)] == pytest.approx([0.25, 0.4375, 0.8125])
    assert {one.share(tokens) for one in (LINEAR, SQRT, STEP) for tokens in (600, 601, 10**9)} == {1.0}


# --- documents in another order -----------------------------------------------------------------

LENGTHS = np.array([5, 1, 9, 2, 2, 30, 1, 7, 3, 12])


def documents_of(stream: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(stream, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("is_hard_first", [False, True])
def test_the_documents_are_packed_in_the_order_of_their_scores(is_hard_first: bool) -> None:
    stream, spans = np.arange(72, dtype=np.uint16), DocumentSpans(LENGTHS)
    order = order_of(LENGTHS, is_hard_first)
    placed = SortedDocuments(spans, order)
    whole = SortedStream(stream, placed)
    expected = sorted(
        documents_of(stream, LENGTHS), key=len, reverse=is_hard_first
    )  # sorted() keeps equal ones in order
    assert documents_of(whole[0:72], LENGTHS[order]) == expected
    assert len(whole) == 72
    starts = Starts(placed.spans)
    for start in range(72):
        for stop in range(start, 74):
            np.testing.assert_array_equal(whole[start:stop], whole[0:72][start:stop])
            if stop == start + 1:
                assert starts[start:stop][0] == (whole[start:stop][0] in np.cumsum([0, *LENGTHS]))


def test_windows_of_a_sorted_text_hold_every_token_once_in_a_pass() -> None:
    stream, spans = np.arange(73, dtype=np.uint16), DocumentSpans(np.append(LENGTHS, 1))
    placed = SortedDocuments(spans, order_of(spans.lengths, False))
    order = PacedOrder(0, 6, [pace(replace(LINEAR, over_tokens=60), window=12)])
    windows = TokenWindows(SortedStream(stream, placed), 12, 0, order)
    read = windows.sequences(0, 40)[:, 0].tolist()
    first = [int(SortedStream(stream, placed)[place : place + 1][0]) for place in range(0, 72, 12)]
    assert [first.index(token) for token in read] == [order.at(number) for number in range(40)]
    parts = windows.sequences(0, 80, 6)
    np.testing.assert_array_equal(parts[0::2, :6], windows.sequences(0, 40)[:, :6])
    np.testing.assert_array_equal(parts[1::2], windows.sequences(0, 40)[:, 6:])


# --- from stage to stage ------------------------------------------------------------------------

ONE = (("aa", Fraction(1)),)


def read(end: int, curriculum: CurriculumPlan | None = None, shares: tuple = ONE, mixed: bool = False) -> TextRead:
    return TextRead(shares, mixed, curriculum, end)


def names(texts: list[TextRead], window: int, count: int) -> list[tuple[str, int]]:
    """By window of the run what is read of which text."""
    legs, found = legs_of(texts), []
    for index, leg in enumerate(legs):
        start = legs[index - 1].end if index else 0
        reading = reading_after(legs[:index], window, leg.shares, leg.is_mixture)
        stop = leg.end if leg.end >= 0 else count * window
        found += [reading.at(number) for number in range(-(-start // window), -(-stop // window))]
    return found


def test_a_text_that_was_sorted_stays_so_and_its_cursor_goes_on() -> None:
    texts = [read(100), read(200, LINEAR), read(300), read(-1, SQRT)]
    found = names(texts, 10, 50)
    assert found[:10] == [("aa", number) for number in range(10)]
    (name,) = {name for name, _ in found[10:]}
    assert name != "aa" == text_of(name)
    assert [number for _, number in found[10:]] == list(range(40))
    (paces,) = paces_of(texts, 10).values()
    assert [(one.first, one.curriculum) for one in paces] == [(0, LINEAR), (10, None), (20, SQRT)]


def test_a_stage_that_ends_within_a_window_leaves_it_to_be_read_to_its_end() -> None:
    texts = [read(105, LINEAR), read(-1)]
    legs = legs_of(texts)
    reading = reading_after(legs[:1], 10, legs[1].shares, legs[1].is_mixture)
    assert [reading.at(number)[1] for number in (10, 11, 12)] == [10, 11, 12]
    (paces,) = paces_of(texts, 10).values()
    assert [one.first for one in paces] == [0, 11]


def test_another_order_is_another_text() -> None:
    hard = replace(LINEAR, is_hard_first=True)
    found = names([read(100, LINEAR), read(200, hard), read(-1, LINEAR)], 10, 30)
    assert len({name for name, _ in found}) == 2
    assert [number for _, number in found] == [*range(10), *range(10), *range(10, 20)]


def test_in_a_mixture_every_source_has_its_share_of_the_pace() -> None:
    shares = (("aa", Fraction(3, 4)), ("bb", Fraction(1, 4)))
    paces = paces_of([read(-1, LINEAR, shares, mixed=True)], 10)
    assert {text_of(name): one.window_tokens for name, (one,) in paces.items()} == {"aa": Fraction(40, 3), "bb": 40}
