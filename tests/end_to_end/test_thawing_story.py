"""The shipped example of thawing is trained, as a user would, and comes to what its page says."""

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
