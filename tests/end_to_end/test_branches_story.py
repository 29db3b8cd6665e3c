"""The shipped examples with branches are trained, as a user would: several ends of one trunk, and a way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

JOBS = Path(__file__).parents[2] / "jobs"


def test_decays_on_several_mixtures_share_their_trunk(raystage: Raystage) -> None:
    """The more arithmetic a decay reads, the better it is at that, and the worse at code."""
    raystage("sweep", JOBS / "sweeps/anneal_mixtures.yaml", "--json", "--wandb", "disabled")
    report = json.loads(raystage("report", "microanneals", "--json").stdout)
    assert report["search"]["sharing_factor"] > 3
    trials = sorted(report["trials"], key=lambda trial: trial["number"])
    code, sums = ([trial["objectives"][f"eval_loss/{name}"] for trial in trials] for name in ("code", "sums"))
    assert code == sorted(code)
    assert sums == sorted(sums, reverse=True)
    assert code[-1] - code[0] > 0.03
    assert sums[0] - sums[-1] > 0.2


def test_a_run_goes_back_on_a_stage_that_forgot(raystage: Raystage) -> None:
    raystage("run", JOBS / "schedules/rewind.yaml", "--json", "--wandb", "disabled")
    report = raystage.report("rewind")
    (attempt,) = report["attempts"]
    assert (attempt["stage"], attempt["action"], attempt["target"]) == ("full", "rewind", "narrow")
    forgot, rejected = report["given_up"]
    code = [row["evaluations"][-1]["sources"]["code"] for row in (report["stages"][0], forgot, report["stages"][1])]
    assert code[1] > code[0] + 1
    assert code[2] < code[0]
    assert report["stages"][-1]["eval_loss"] < 1.8 < rejected["eval_loss"]


def test_a_run_delivers_a_finished_model_of_every_size(raystage: Raystage) -> None:
    raystage("run", JOBS / "schedules/family.yaml", "--json", "--wandb", "disabled")
    family = raystage.report("family")["delivered"]
    assert 1 - family["flops"] / family["apart_flops"] > 0.45
    losses = [model["eval_loss"] for model in family["models"]]
    assert losses == sorted(losses, reverse=True)
    for model in family["models"]:
        assert model["eval_loss"] < model["eval_loss_before"] - 0.05
        folder = raystage.folder / ".raystage/runs/family/delivered" / model["stage"]
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        assert loaded.config.num_hidden_layers == model["num_layers"]
