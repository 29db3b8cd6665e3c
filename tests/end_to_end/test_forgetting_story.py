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
