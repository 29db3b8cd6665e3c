"""The shipped examples that learn something new and must not forget: with replay, and what happens without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULES = Path(__file__).parents[2] / "jobs" / "schedules"
QUIETLY = ("--json", "--wandb", "disabled", "--set", "baseline=null")
WITHOUT_REPLAY = "stages[1].data.mixture=[{name: old, weight: 0}, {name: new, weight: 1}]"


def test_digits_are_learned_in_two_halves_and_none_forgotten(raystage: Raystage) -> None:
    raystage("run", SCHEDULES / "continual.yaml", *QUIETLY)
    old, new = raystage.report("continual")["stages"]
    begun, ended = old["evaluations"][-1]["sources"], new["evaluations"][-1]["sources"]
    assert begun["old"] < 0.15 < 3 < begun["new"], "the digits of the other half are never answered"
    assert ended["old"] < begun["old"] + 0.2
    assert ended["new"] < 0.2
    assert new["evaluations"][-1]["accuracy"] > 0.95


def test_without_replay_the_first_half_is_forgotten_and_the_gate_stops_the_run(raystage: Raystage) -> None:
    failed = raystage("run", SCHEDULES / "continual.yaml", *QUIETLY, "--set", WITHOUT_REPLAY, status=1)
    assert "not accepted: forgetting_below: expected the loss on 'old' to rise by at most 0.2" in failed.stderr
    new = raystage.report("continual")["stages"][-1]["evaluations"][-1]
    assert new["sources"]["old"] > 5, "guessing would be at 2.3"
    assert new["accuracy"] > 0.97, "of the second half"


def test_sums_are_learned_after_conversations_which_are_not_forgotten(raystage: Raystage) -> None:
    """Three stages: text, conversations, sums. The last one is trained again without replay, from the same model."""
    raystage("run", SCHEDULES / "narrow.yaml", *QUIETLY)
    text, chats, sums = raystage.report("narrow")["stages"]
    begun, ended = sums["evaluations"][0], sums["evaluations"][-1]
    assert text["eval_loss"] < 1.2
    assert chats["evaluations"][-1]["accuracy"] > 0.8
    assert begun["sources"]["chats"] < 0.6 < 3 < begun["sources"]["sums"], "another kind of question, not yet answered"
    assert ended["sources"]["sums"] < 1
    assert ended["sources"]["chats"] < begun["sources"]["chats"] + 0.5

    without = [f"--set=stages.sums.data.mixture.{name}.weight={weight}" for name, weight in (("chats", 0), ("sums", 1))]
    failed = raystage("run", SCHEDULES / "narrow.yaml", *QUIETLY, *without, "--name", "forgetful", status=1)
    assert "not accepted: forgetting_below: expected the loss on 'chats' to rise by at most 0.5" in failed.stderr
    *before, last = raystage.report("forgetful")["stages"]
    assert [stage["key"] for stage in before] == [text["key"], chats["key"]], "trained once"
    forgotten = last["evaluations"][-1]["sources"]
    assert forgotten["chats"] > ended["sources"]["chats"] + 1
    assert forgotten["sums"] < 1
