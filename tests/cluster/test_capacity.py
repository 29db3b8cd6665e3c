"""What a cluster has for a stage: places by labels and GPU types, the memory that is sure to be needed, idle GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.cluster.capacity import capacity_for, check_memory
from raystage.cluster.placement import count_places
from raystage.config.training import Training
from raystage.errors import ResourcesMissing
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan

SPOT = "ray.io/market-type"


def node(labels: dict[str, str] | None = None, alive: bool = True, **resources: float) -> dict:
    renamed = {name.replace("__", ":"): amount for name, amount in resources.items()}
    return {"Alive": alive, "Resources": renamed, "Labels": labels or {}}


@pytest.mark.parametrize(
    ("selector", "places"),
    [("spot", 1), ("!spot", 2), ("in(spot,on-demand)", 2), ("in(spot, reserved)", 1), ("!in(spot,on-demand)", 1)],
)
def test_workers_fit_on_nodes_with_their_labels(selector: str, places: int) -> None:
    """As in Ray, a node without the label is one that is not spot."""
    nodes = [node({SPOT: "spot"}, CPU=1), node({SPOT: "on-demand"}, CPU=1), node(CPU=1)]
    assert count_places(nodes, Training(node_labels={SPOT: selector})) == places


def test_workers_fit_on_nodes_with_their_type_of_gpu() -> None:
    nodes = [node(CPU=8, GPU=2, accelerator_type__A100=1), node(CPU=8, GPU=4, accelerator_type__H200=1)]
    assert count_places(nodes, Training(gpus_per_worker=1)) == 6
    assert count_places(nodes, Training(gpus_per_worker=1, accelerator="H200")) == 4
    assert count_places(nodes, Training(gpus_per_worker=1, accelerator="B200")) == 0


def stage_of(folder: Path, model: dict[str, int] | None = None, **training: object) -> StagePlan:
    return make_plan(make_schedule(folder, training=training, model=model or {})).staged.stages[-1]


def certain(stage: StagePlan) -> int:
    return stage.memory.total_bytes - stage.memory.activations_bytes


def test_the_workers_of_a_node_share_its_memory(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, workers=2)
    enough = {"memory": certain(stage), "object_store_memory": certain(stage)}
    check_memory(stage, [node(CPU=2, **enough)])
    check_memory(stage, [node(CPU=2)])  # unknown
    with pytest.raises(ResourcesMissing, match=r"stage full: each of its 2 workers needs .* as much for 1 of them"):
        check_memory(stage, [node(CPU=2, **enough | {"memory": certain(stage) - 1})])


def test_a_gpu_of_a_known_type_must_have_the_memory(tmp_path: Path) -> None:
    wide = {"hidden_size": 8192, "num_heads": 64, "ffn_size": 32768}
    stage = stage_of(tmp_path, model=wide, gpus_per_worker=1)
    assert 24e9 < certain(stage) < 192e9
    check_memory(stage, [node(CPU=1, GPU=1, accelerator_type__B200=1)])
    check_memory(stage, [node(CPU=1, GPU=1, accelerator_type__OF2030=1)])
    with pytest.raises(ResourcesMissing, match="memory"):
        check_memory(stage, [node(CPU=1, GPU=1, accelerator_type__L4=1)])


def test_an_offloaded_optimizer_is_in_the_host_memory(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, gpus_per_worker=1, offload_optimizer="cpu")
    optimizer = stage.memory.optimizer_bytes
    check_memory(stage, [node(CPU=1, GPU=1, memory=optimizer)])
    with pytest.raises(ResourcesMissing):
        check_memory(stage, [node(CPU=1, GPU=1, memory=optimizer - 1)])


def test_gpus_that_no_worker_of_a_stage_uses_are_idle(tmp_path: Path) -> None:
    nodes = [node(CPU=8, GPU=4), node(CPU=8, GPU=4), node(CPU=8, GPU=4, alive=False)]
    found = capacity_for(stage_of(tmp_path, workers=3, gpus_per_worker=1), nodes)
    assert (found.places, found.gpus, found.idle_gpus) == (8, 8, 5)
    too_wide = capacity_for(stage_of(tmp_path, workers=10, gpus_per_worker=1), nodes)
    assert (too_wide.places, too_wide.idle_gpus) == (8, 0)
