"""Which trial is next: the first that need not wait, each once, and none while all would have to."""

from __future__ import annotations

from raystage.sweeps.tree import TrialQueue

# Trials 0 and 1 share stage a, 2 and 3 stage b, which can go on from a.
CHAINS = {0: ("a", "a0"), 1: ("a", "a1"), 2: ("b", "b2"), 3: ("b", "b3")}
PREFIXES = {"b": "a"}


def queue(finished: tuple[str, ...] = ()) -> TrialQueue:
    return TrialQueue((0, 1, 2, 3), CHAINS, PREFIXES, finished)


def test_who_shares_a_stage_that_is_trained_now_is_not_started() -> None:
    trials = queue()
    assert trials.take() == 0
    assert trials.take() is None


def test_with_the_stage_finished_all_go_on_that_it_stood_in_the_way_of() -> None:
    trials = queue()
    trials.take()
    trials.finish("a")
    assert [trials.take() for _ in range(3)] == [1, 2, None]  # 3 would wait for b
    trials.finish("b")
    assert trials.take() == 3
    assert trials.is_empty


def test_a_stage_that_its_trial_left_unfinished_is_the_next_ones() -> None:
    trials = queue()
    trials.take()
    trials.end(0)
    assert [trials.take(), trials.take()] == [1, None]


def test_the_claims_of_two_trials_on_a_stage_end_with_the_second() -> None:
    trials = queue()
    trials.begin(0)
    trials.begin(1)
    trials.end(0)
    assert trials.take() is None
    trials.end(1)
    assert trials.take() == 2


def test_what_was_there_before_is_waited_for_by_nobody() -> None:
    assert [queue(("a", "b")).take()] == [0]
    trials = queue(("a", "b"))
    assert [trials.take() for _ in range(4)] == [0, 1, 2, 3]


def test_each_is_begun_once() -> None:
    trials = queue(("a", "b"))
    trials.begin(1)
    assert [trials.take() for _ in range(4)] == [0, 2, 3, None]
    assert trials.is_empty


def test_while_none_runs_there_is_always_one_to_take() -> None:
    trials = queue()
    for expected in range(4):
        assert trials.take() == expected
        assert expected in trials.begun
        trials.end(expected)
    assert trials.take() is None


def test_who_can_go_on_from_what_is_finished_waits_for_no_shorter_one() -> None:
    trials = TrialQueue((0, 1), {0: ("a",), 1: ("c",)}, {"c": "b", "b": "a"}, {"b"})
    assert [trials.take(), trials.take()] == [0, 1]
