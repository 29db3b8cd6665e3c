"""A whole sweep with its real plan, queue, drivers and store, in which training alone is a sleep."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from benchmark_files import module_of
from raystage.files.filesystem import open_folder
from raystage.storage.store import Store

FILE = Path(__file__).parents[2] / "benchmarks/sweep_slots.py"


@pytest.fixture(scope="module")
def sweep_slots() -> ModuleType:
    return module_of(FILE)


@pytest.mark.parametrize("space", ["rates", "lengths"])
def test_100_trials_on_16_slots_train_every_stage_once(sweep_slots: ModuleType, space: str, tmp_path: Path) -> None:
    plan = sweep_slots.make_plan(tmp_path, sweep_slots.SPACES[space], 100)
    store = Store(open_folder(tmp_path / "store"))
    found = sweep_slots.simulate(plan, store, slots=16, mean_seconds=0.1)
    assert found.trained.keys() == plan.tree.nodes.keys()
    assert set(found.trained.values()) == {1}
    for key, node in plan.tree.nodes.items():
        record = store.record(key)
        assert (record.prefix.key if record.prefix else None) == node.prefix_key
