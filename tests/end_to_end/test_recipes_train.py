"""The small twins of published recipes are trained, as a user would, and learn."""

from __future__ import annotations

import pytest

import recipes
from conftest import Raystage

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

BY_FREQUENCY = 3.18  # nats per byte of Python's library, guessing every byte by its frequency


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_small_recipe_trains_all_its_stages(raystage: Raystage, name: str) -> None:
    raystage("run", recipes.FOLDER / f"{name}-small.yaml", "--json", "--wandb", "disabled")
    report = raystage.report(f"{name}-small")
    stages = report["stages"]
    assert {stage["state"] for stage in stages} == {"FINISHED"}
    assert stages[-1]["eval_loss"] < 0.8 * BY_FREQUENCY
    assert not report["attempts"], "no gate rejected a stage"
    first, last = (stage["eval_loss"] for stage in (stages[0], stages[-1]))
    assert last < first
