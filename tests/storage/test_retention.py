"""Which checkpoints of a stage stay."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from raystage.results.record import Evaluation
from raystage.storage.store import best, retained


def names(*tokens: int) -> list[str]:
    return [f"{one:015}-attempt" for one in tokens]


def curve(losses: dict[int, float]) -> list[Evaluation]:
    return [Evaluation(tokens, 0, 0, 0.0, loss) for tokens, loss in losses.items()]


CASES = {
    "the last two": (2, 0, {}, {300, 400}),
    "the last alone": (1, 0, {100: 1.0}, {400}),
    "more than there are": (9, 9, {100: 1.0}, {100, 200, 300, 400}),
    "the best too": (1, 1, {100: 3.0, 200: 1.0, 300: 2.0, 400: 2.5}, {200, 400}),
    "the last is the best": (1, 1, {100: 3.0, 400: 1.0}, {400}),
    "the best two": (1, 2, {100: 1.0, 200: 3.0, 300: 2.0, 400: 4.0}, {100, 300, 400}),
    "of equal ones the later": (1, 1, {100: 1.0, 200: 1.0, 300: 2.0}, {200, 400}),
    "the last evaluation up to it counts": (1, 1, {90: 1.0, 150: 2.0, 310: 3.0}, {100, 400}),
    "no evaluation yet": (1, 1, {}, {400}),
    "an evaluation that failed": (1, 1, {100: math.nan, 200: math.inf, 300: 8.0, 400: 9.0}, {300, 400}),
}


@pytest.mark.parametrize(("keep_last", "keep_best", "losses", "expected"), CASES.values(), ids=CASES)
def test_what_stays(keep_last: int, keep_best: int, losses: dict[int, float], expected: set[int]) -> None:
    for order in itertools.permutations(names(100, 200, 300, 400)):
        assert retained(order, keep_last, keep_best, curve(losses)) == set(names(*expected))


def test_dropping_as_training_goes_ends_where_dropping_once_does() -> None:
    """What was best among all is still there at the end, though each time only what was left was looked at."""
    for seed in range(50):
        losses = {tokens: random.Random(seed + tokens).random() for tokens in range(100, 2100, 100)}
        left: list[str] = []
        for tokens in losses:
            so_far = curve({place: loss for place, loss in losses.items() if place <= tokens})
            left = sorted(retained([*left, *names(tokens)], 2, 3, so_far))
        assert set(left) == retained(names(*losses), 2, 3, curve(losses))
        assert best(left, 3, curve(losses)) == best(names(*losses), 3, curve(losses))
