"""The shipped examples with frozen layers are trained, as a user would, and come to what their page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SCHEDULES = Path(__file__).parents[2] / "jobs" / "schedules"
QUIETLY = ("--json", "--wandb", "disabled")


def test_a_short_second_stage_is_better_where_its_layers_thaw(raystage: Raystage) -> None:
    """At equal FLOPs and from one and the same first stage: frozen layers cost less, so there are more steps."""
    raystage("run", SCHEDULES / "transfer.yaml", *QUIETLY)
    raystage("run", SCHEDULES / "transfer.yaml", *QUIETLY, "--name", "plain", "--set", "stages[1].thaw=null")
    denoise, thawed = raystage.report("transfer")["stages"]
    same, plain = raystage.report("plain")["stages"]
    assert denoise["key"] == same["key"]
    assert thawed["flops"] == pytest.approx(plain["flops"], rel=0.02)
    assert thawed["steps"] > 1.2 * plain["steps"]
    begun, ended = thawed["evaluations"][0], thawed["evaluations"][-1]
    assert begun["accuracy"] < 0.3 < 0.75 < ended["accuracy"], "the head is new, and a tenth is right by chance"
    assert ended["loss"] < plain["evaluations"][-1]["loss"]


def test_layer_by_layer_saves_compute_against_all_layers_from_scratch(raystage: Raystage) -> None:
    raystage("run", SCHEDULES / "greedy.yaml", *QUIETLY)
    report = raystage.report("greedy")
    losses = [stage["eval_loss"] for stage in report["stages"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.8
    assert report["savings"]["compute_saved"] > 0.15
