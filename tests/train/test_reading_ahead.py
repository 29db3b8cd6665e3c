"""Reading ahead: the same micro batches in the same order, errors where they belong, and an end at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from raystage.errors import InputError
from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.learner import HeldOut
from raystage.train.reading.ahead import DEPTH, ReadAhead
from raystage.train.reading.micro_batches import Share, StepBatches

LENGTH, STEPS = 4, 6
READER = HeldOut({"tokens": np.arange(STEPS * 5 * (LENGTH + 1)).reshape(-1, LENGTH + 1)})
# 5 sequences a step, in micro batches of 2: the second of two workers has 3, the first 2.
SHARES = [Share(2, rank, 2) for rank in range(2)]


def steps_of(share: Share, log: list[int] | None = None) -> Iterator[StepBatches]:
    for step in range(STEPS):
        if log is not None:
            log.append(step)
        yield share.step(CausalLm(), READER, 5 * step, 5, LENGTH)


def contents(step: StepBatches) -> tuple[int, int, list[tuple[list, float]]]:
    return step.amount, step.targets, [(batch["tokens"].tolist(), weight) for batch, weight in step.micro_batches]


@pytest.mark.parametrize("share", SHARES)
def test_steps_are_those_that_are_read_at_once(share: Share) -> None:
    at_once = [contents(step) for step in steps_of(share)]
    with ReadAhead(steps_of(share)) as ahead:
        assert [contents(ahead.next_step()) for _ in range(STEPS)] == at_once
    assert {len(micro_batches) for _, _, micro_batches in at_once} == {2}


def test_workers_share_a_batch_without_reading_each_others_samples() -> None:
    first, second = ([contents(step)[2] for step in steps_of(share)] for share in SHARES)
    for step in range(STEPS):
        rows = [row for one in (first, second) for tokens, weight in one[step] if weight for row in tokens]
        assert rows == READER.tokens[5 * step : 5 * step + 5].tolist()
    assert [weight for _, weight in first[0]] == [1.0, 0.0]


def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    """Two micro batches lie ready, and one more is in the thread's hand. A step counts as one, too."""
    log: list[int] = []
    with ReadAhead(steps_of(SHARES[0], log)) as ahead:
        contents(ahead.next_step())
    assert 0 < len(log) <= 1 + DEPTH


def test_an_error_comes_at_the_step_that_could_not_be_read() -> None:
    def damaged() -> Iterator[StepBatches]:
        yield from list(steps_of(SHARES[0]))[:2]
        raise InputError("found damaged text", key="data")

    with ReadAhead(damaged()) as ahead:
        for _ in range(2):
            contents(ahead.next_step())
        for _ in range(2):
            with pytest.raises(InputError, match="found damaged text"):
                ahead.next_step()


def test_an_error_within_a_step_comes_at_its_micro_batch() -> None:
    def torn() -> Iterator:
        yield from steps_of(SHARES[0]).__next__().micro_batches
        raise OSError("the disk is gone")

    with ReadAhead([StepBatches(20, 20, 3, torn())]) as ahead:
        step = ahead.next_step()
        with pytest.raises(OSError, match="the disk is gone"):
            list(step.micro_batches)


@pytest.mark.parametrize("taken", [0, 1, STEPS])
def test_closing_ends_the_thread_wherever_it_is(taken: int) -> None:
    before = set(threading.enumerate())
    with ReadAhead(steps_of(SHARES[1])) as ahead:
        (own,) = [one for one in set(threading.enumerate()) - before if one.name == "raystage-reading"]
        for _ in range(taken):
            contents(ahead.next_step())
    assert not own.is_alive()  # other threads of the process come and go


def test_asking_for_more_steps_than_there_are_ends_at_once() -> None:
    with ReadAhead([]) as ahead, pytest.raises(EOFError, match="more steps than there are"):
        ahead.next_step()
