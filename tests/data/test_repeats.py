"""How much held-out text stands in the training text: counted, against a search by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raystage.data import repeats
from raystage.data.repeats import PIECE, Repeats, find_repeats


def tokens(seed: int, count: int, high: int = 50_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(high, size=count).astype(np.uint16)


@pytest.mark.parametrize("stretch", [PIECE, 100, 1000, 2**22])
def test_pieces_that_stand_anywhere_in_the_training_text_are_counted(
    stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they begin there, across the borders of what is looked at in one go, too."""
    monkeypatch.setattr(repeats, "_STRETCH", stretch)
    train, held_out = tokens(0, 3000), tokens(1, 10 * PIECE + 7)
    for piece, place in ((0, 0), (3, 517), (4, 950), (9, 3000 - PIECE)):
        train[place : place + PIECE] = held_out[piece * PIECE : (piece + 1) * PIECE]
    assert find_repeats(train, held_out) == Repeats(10, 4, 1.0)
    train[3000 - 1] ^= 1  # all but one token
    assert find_repeats(train, held_out).repeated == 3


def test_few_kinds_of_tokens_are_no_repeats() -> None:
    assert find_repeats(tokens(0, 5000, 4), tokens(1, 640, 4)).repeated == 0
    same = np.zeros(1000, dtype=np.uint16)
    assert find_repeats(same, same[:128]) == Repeats(2, 2, 1.0)


def test_of_a_long_text_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_STRETCH", 100)
    monkeypatch.setattr(repeats, "MOST_PIECES", 5)
    train = tokens(0, 4000)
    found = find_repeats(train, train, most_tokens=1000)
    assert (found.pieces, found.looked_at) == (5, 0.25)
    assert 0 < found.share < 1


@pytest.mark.parametrize(("train", "held_out"), [(PIECE - 1, 200), (200, PIECE - 1), (1, 1)])
def test_short_texts_have_none(train: int, held_out: int) -> None:
    assert find_repeats(tokens(0, train), tokens(0, held_out)).share == 0
