"""The shipped example of a teacher and its student is trained, as a user would, and comes to what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULE = Path(__file__).parents[2] / "jobs" / "schedules" / "teacher_student.yaml"


def test_a_student_of_half_the_layers_learns_from_its_teacher(raystage: Raystage) -> None:
    """Compared with the student's model from scratch, for as many FLOPs as the student's two stages."""
    raystage("run", SCHEDULE, "--json", "--wandb", "disabled", "--set", "baseline.budgets=[1M, 1500K]")
    report = raystage.report("teacher_student")
    teacher, short, long = report["stages"]
    scratch = report["baseline"]["runs"][-1]
    assert scratch["flops"] == pytest.approx(short["flops"] + long["flops"], rel=0.02)
    assert teacher["eval_loss"] < long["eval_loss"] < scratch["eval_loss"] - 0.02
    assert long["eval_loss"] < short["growth"]["certificate"]["eval_loss_after"], "what is left of the teacher"
