"""What a cluster has for a stage: places for its workers, the memory that they are sure to need, and idle GPUs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from raystage.cluster.joined import joined
from raystage.cluster.placement import places_on
from raystage.cluster.queries import ask_cluster
from raystage.errors import ResourcesMissing
from raystage.plans.gpu_types import GPU_GIGABYTES
from raystage.plans.stage import StagePlan
from raystage.units import format_bytes

_TYPE = "accelerator_type:"


@dataclass(frozen=True)
class Capacity:
    """For the workers of one stage. places: by CPUs, GPUs, labels and GPU types. with_memory: those of them with the
    memory that a worker needs for certain. worker_bytes: that memory, without activations. gpus, idle_gpus: of the
    living nodes, and those that no worker of the stage uses."""

    stage: str
    least_workers: int
    most_workers: int
    places: int
    with_memory: int
    worker_bytes: int
    gpus: int
    idle_gpus: int


def capacity_for(stage: StagePlan, nodes: Sequence[dict]) -> Capacity:
    """nodes: as `ray.nodes` describes them."""
    training = stage.training
    alive = [node for node in nodes if node["Alive"]]
    places = sum(places_on(node, training) for node in alive)
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in alive))
    used = min(places, training.workers.most) * training.gpus_per_worker
    return Capacity(
        stage=stage.name,
        least_workers=training.workers.least,
        most_workers=training.workers.most,
        places=places,
        with_memory=sum(_places_with_memory(node, stage) for node in alive),
        worker_bytes=_certain_bytes(stage),
        gpus=gpus,
        idle_gpus=gpus - used,
    )


def capacities_at(address: str, stages: Sequence[StagePlan]) -> list[Capacity]:
    """For each stage on the cluster at `address`. Raises InputError, ClusterLost."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with joined(address):
        nodes = ask_cluster(ray.nodes)
    return [capacity_for(stage, nodes) for stage in stages]


def check_memory(stage: StagePlan, nodes: Sequence[dict]) -> None:
    """Refuse a stage whose workers cannot have the memory for what is sure to be there. Raises ResourcesMissing."""
    found = capacity_for(stage, nodes)
    if found.with_memory >= found.least_workers:
        return
    parts = {"weights": stage.memory.weights_bytes, "gradients": stage.memory.gradients_bytes}
    parts |= {"optimizer": stage.memory.optimizer_bytes, "teachers": stage.memory.teacher_bytes}
    in_words = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    raise ResourcesMissing(
        f"stage {stage.name}: each of its {stage.training.workers} workers needs {format_bytes(found.worker_bytes)} of "
        f"memory before any activation ({in_words}), and the nodes have as much for {found.with_memory} of them; use "
        f"a higher zero_stage with more workers, offload_optimizer, bf16 or larger nodes"
    )


def _certain_bytes(stage: StagePlan) -> int:
    memory = stage.memory
    return memory.total_bytes - memory.activations_bytes


def _places_with_memory(node: dict, stage: StagePlan) -> int:
    """The places of a node whose workers all have their memory. What is not known limits nothing."""
    training, certain = stage.training, _certain_bytes(stage)
    resources, places = node["Resources"], places_on(node, stage.training)
    offloaded = stage.memory.optimizer_bytes if training.offload_optimizer == "cpu" else 0
    on_host = offloaded if training.gpus_per_worker else certain
    if "memory" in resources and on_host:
        # Ray divides a machine's free memory between these two.
        host_bytes = resources["memory"] + resources.get("object_store_memory", 0)
        places = min(places, int(host_bytes // on_host))
    if training.gpus_per_worker and certain - offloaded > _gpu_bytes(resources):
        return 0
    return places


def _gpu_bytes(resources: dict[str, float]) -> float:
    """Of the largest GPU of a node; infinite where its type is not known."""
    types = [name.removeprefix(_TYPE) for name in resources if name.startswith(_TYPE)]
    return max((GPU_GIGABYTES.get(one, float("inf")) * 1e9 for one in types), default=float("inf"))
