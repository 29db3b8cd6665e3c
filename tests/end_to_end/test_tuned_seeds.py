"""A rate tuned on both sides, then a second seed with the best of each: one command, one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Raystage
from wandb_reader import read_runs

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill]

# In 24 steps a rate of 1e-5 learns next to nothing, so that it is known which one is best.
TUNED = [
    "--set", "training.optimizer.lr=1e-5", "--set", "stages[0].until.steps=12", "--set", "stages[1].until.steps=12",
    "--set", "seeds=2", "--set", "baseline={budgets: [98304], tune: {training.optimizer.lr: [5e-3]}}",
]  # fmt: skip
RUNS = [
    "staged", "baseline-98304", "baseline-98304-lr-0.005", "staged-lr-0.005", "baseline-98304-seed-1", "staged-seed-1",
]  # fmt: skip


def test_a_tuned_rate_on_two_seeds(raystage: Raystage, tiny: Path) -> None:
    report = json.loads(raystage("run", tiny, *TUNED, "--json").stdout)
    for side in ("staged", "baseline"):
        poor, best = report["tuning"][side]["rows"]
        assert (poor["is_best"], best["is_best"]) == (False, True)
        assert best["values"] == {"training.optimizer.lr": 5e-3}
        assert best["eval_losses"][0]["eval_loss"] < poor["eval_losses"][0]["eval_loss"] - 0.5
    first, second = report["seeds"]
    end = report["stages"][-1]["evaluations"][-1]
    assert report["savings"]["is_judged_on_half"]
    assert first["staged_eval_loss"] == end["judging_loss"] != end["loss"]
    assert second["staged_eval_loss"] != first["staged_eval_loss"]
    assert abs(second["staged_eval_loss"] - first["staged_eval_loss"]) < 0.5  # it trained the best rate, too
    assert report["savings"]["seeds"]["seeds"] == [0, 1]
    assert report["savings"]["verdict"] == report["savings"]["seeds"]["verdict"]
    entries = {entry["what"]: entry for entry in report["ledger"]["entries"]}
    one_each = report["savings"]["flops_staged"] + report["baseline"]["runs"][0]["flops"]
    assert entries["tuning"]["flops"] == entries["further seeds"]["flops"] == one_each

    runs = read_runs(raystage.folder)
    assert sorted(runs) == sorted(f"tiny-{name}" for name in RUNS)
    assert runs["tiny-staged-seed-1"].history[-1]["tokens"] == 98304

    again = json.loads(raystage("run", tiny, *TUNED, "--json", "--wandb", "disabled").stdout)
    states = {
        stage["state"] for stage in json.loads((raystage.folder / ".raystage/runs/tiny/run.json").read_text())["stages"]
    }
    assert states == {"REUSED"}
    assert [again[part] for part in ("tuning", "seeds", "savings")] == [
        report[part] for part in ("tuning", "seeds", "savings")
    ]
