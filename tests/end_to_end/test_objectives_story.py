"""The shipped examples of objectives are trained, as a user would, and learn what docs/objectives.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULES = Path(__file__).parents[2] / "jobs" / "schedules"
# Of the tokens of answers, if each is the most frequent one at its place in an answer.
BY_FREQUENCY = 0.39


def test_answers_are_learned(raystage: Raystage) -> None:
    raystage("run", SCHEDULES / "instruct.yaml", "--json", "--wandb", "disabled")
    text, chats = raystage.report("instruct")["stages"]
    begun, ended = chats["evaluations"][0], chats["evaluations"][-1]
    assert begun["accuracy"] < BY_FREQUENCY < 0.8 < ended["accuracy"]
    assert text["eval_loss"] < 1.2


def test_digits_are_told_apart_after_denoising(raystage: Raystage) -> None:
    """The noise itself has a mean square of 0.09."""
    raystage("run", SCHEDULES / "digits.yaml", "--json", "--wandb", "disabled")
    small, full, classify = raystage.report("digits")["stages"]
    assert full["eval_loss"] < small["eval_loss"] < 0.03
    end = classify["evaluations"][-1]
    assert min(end["accuracy"], end["metrics"]["macro_f1"]) > 0.85
    assert classify["evaluations"][0]["accuracy"] < 0.3
