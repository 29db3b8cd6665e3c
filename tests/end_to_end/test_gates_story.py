"""A stage went wrong: the run goes back, tries with other values, and says all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Raystage
from wandb_reader import read_runs

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill]

# No rate of 1e-5 reaches these losses in 180 steps, a hundred times as much does.
GATES = [
    "--set", "training.optimizer.lr=1e-5", "--set", "stages[0].until.steps=30", "--set", "stages[1].until.steps=30",
    "--set", "stages[0].accept={eval_loss_below: 6.0}",
    "--set", "stages[1].accept={eval_loss_below: 5.0}",
    "--set", 'stages[1].on_reject={rewind: {to: small, times: 2, set: {training.optimizer.lr: "*500"}}}',
]  # fmt: skip


def test_a_run_goes_back_to_an_earlier_stage_with_another_rate(raystage: Raystage, tiny: Path) -> None:
    first = json.loads(raystage("run", tiny, *GATES, "--json").stdout)
    (attempt,) = first["attempts"]
    assert (attempt["stage"], attempt["action"], attempt["target"], attempt["number"]) == ("full", "rewind", "small", 1)
    assert attempt["reasons"][0].startswith("eval_loss_below: expected less than 5, found 5.")
    assert [row["name"] for row in first["given_up"]] == ["small", "full"]
    assert first["stages"][-1]["eval_loss"] < 5.0
    spent = sum(row["flops"] for row in first["stages"] + first["given_up"])
    assert first["savings"]["flops_staged"] == spent

    log = (raystage.folder / ".raystage/runs/tiny/run.log").read_text()
    assert "rewind to small 1 of 2 with training.optimizer.lr *500" in log
    run = read_runs(raystage.folder)["tiny-staged"]
    assert [row["stage/attempt"] for row in run.history if "stage/attempt" in row] == [1]

    again = json.loads(raystage("run", tiny, *GATES, "--json", "--wandb", "disabled").stdout)
    assert [row["state"] for row in again["stages"]] == ["REUSED", "REUSED"]
    assert again["attempts"] == first["attempts"]
    assert again["savings"]["flops_staged"] == spent
