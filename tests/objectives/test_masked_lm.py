"""`masked_lm`: what is hidden follows from the seed and the position alone, in BERT's proportions."""

from __future__ import annotations

import numpy as np
import pytest

from raystage.data.tokens import TokenWindows
from raystage.objectives.learner import HeldOut
from raystage.objectives.masked_lm import MaskedLm

LENGTH, MASK, IDS = 40, 257, 257
LEARNER = MaskedLm(0.15, MASK, IDS)


def reader(seed: int = 3) -> TokenWindows:
    stream = np.random.default_rng(0).integers(0, 256, 100_001).astype(np.uint16)
    return TokenWindows(stream, LENGTH, seed)


def test_any_reading_in_parts_hides_the_same() -> None:
    whole = LEARNER.batch(reader(), 0, 30, LENGTH)
    for first, count in ((0, 7), (7, 1), (8, 22)):
        part = LEARNER.batch(reader(), first, count, LENGTH)
        for name, values in part.items():
            np.testing.assert_array_equal(values, whole[name][first : first + count])


def test_other_seeds_and_positions_hide_others() -> None:
    places = LEARNER.batch(reader(), 0, 30, LENGTH)["places"]
    assert len(np.unique(places, axis=0)) > 25
    assert (places != LEARNER.batch(reader(4), 0, 30, LENGTH)["places"]).any()


def test_targets_are_the_tokens_that_were_there() -> None:
    seen, read = LEARNER.batch(reader(), 0, 50, LENGTH), reader().sequences(0, 50)[:, :LENGTH]
    np.testing.assert_array_equal(np.take_along_axis(read, seen["places"], 1), seen["answers"])
    untouched = np.ones_like(read, dtype=bool)
    np.put_along_axis(untouched, seen["places"], False, axis=1)
    np.testing.assert_array_equal(read[untouched], seen["tokens"][untouched])
    assert all(len(set(row)) == len(row) for row in seen["places"])


def test_the_proportions_are_those_of_bert() -> None:
    count = 2_400
    found = LEARNER.batch(reader(), 0, count, LENGTH)
    assert found["places"].shape == (count, 6)  # 15 % of 40
    assert LEARNER.num_targets(reader(), 0, count, LENGTH) == found["answers"].size
    hidden = np.take_along_axis(found["tokens"], found["places"], 1)
    masked, kept = (hidden == MASK).mean(), (hidden == found["answers"]).mean()
    # Of 14,400 draws; three standard deviations. A random token is the right one in 1 of 257 draws.
    assert masked == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1, abs=0.008)
    assert hidden[hidden != MASK].max() < IDS


def test_held_out_text_is_hidden_alike_in_every_run() -> None:
    held_out = HeldOut({"tokens": reader().spread(5)})
    first, second = (LEARNER.batch(held_out, 0, 5, LENGTH) for _ in range(2))
    np.testing.assert_array_equal(first["places"], second["places"])


def test_a_short_sequence_has_one_target() -> None:
    short = TokenWindows(np.arange(50, dtype=np.uint16), 2, 0)
    assert LEARNER.batch(short, 0, 3, 2)["places"].shape == (3, 1)
