"""The shipped example of an ensemble is trained, as a user would, and comes to what docs/training.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULE = Path(__file__).parents[2] / "jobs" / "schedules" / "ensemble.yaml"


def test_an_ensemble_is_better_than_its_members_and_its_student_too(raystage: Raystage) -> None:
    raystage("run", SCHEDULE, "--json", "--wandb", "disabled", "--set", "baseline=null")
    report = raystage.report("ensemble")
    found, (trunk, several, student) = report["ensembles"]["several"], report["stages"]
    members = [row["eval_loss"] for row in found["members"]]
    assert len(members) == 4
    assert found["prediction"]["eval_loss"] < min(members) - 0.01
    assert found["weights"]["eval_loss"] < max(members)  # from one trunk, and not far from it
    assert student["eval_loss"] < several["eval_loss"] < trunk["eval_loss"]
    # What the student has learned from counts as what it cost.
    row = report["members"][0]
    assert row["teaches"] == ["student"]
    staged = sum(stage["flops"] for stage in report["stages"])
    assert report["ledger"]["flops_claimed"] == staged + row["further_flops"]
