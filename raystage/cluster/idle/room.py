"""Whether a cluster has room for a second worker group beside the one that trains, while nobody else waits for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import psutil
import ray

from raystage.cluster.nodes import Node
from raystage.cluster.own import is_own
from raystage.cluster.placement import count_free_places
from raystage.cluster.ray_private import draining_nodes, free_resources, has_waiting_groups
from raystage.config.training import Training

# What an idle worker holds in memory is 0.4 GB: torch, DeepSpeed and Ray. The rest is what a machine needs besides, so
# that Ray, which ends processes when memory runs out, never has to choose between these workers and those that train.
WORKER_BYTES = 2**30


@dataclass(frozen=True)
class Surroundings:
    """What a cluster has left.

    free: by the id of each node its resources that nobody uses. leaving: the ids of nodes that are to be taken away.
    others_wait: whether a placement group of any job waits for resources. memory_bytes: what this machine has left, if
    the cluster is on it alone.
    """

    nodes: Sequence[Node]
    free: Mapping[str, Mapping[str, float]]
    leaving: Collection[str] = ()
    others_wait: bool = False
    memory_bytes: int | None = None


def look_around() -> Surroundings:
    """What the cluster has left now. Calls the cluster's head node."""
    memory = psutil.virtual_memory().available if is_own() else None
    return Surroundings(ray.nodes(), free_resources(), draining_nodes(), has_waiting_groups(), memory)


def has_room(now: Surroundings, present: Training, coming: Training) -> bool:
    """Whether the workers of a coming job fit beside those that train the present one.

    Not where either is elastic: an elastic stage that trains may grow into what is free, and one that is to come would
    begin with what is free now in place of what there is once the other workers have left.
    """
    if now.others_wait or present.workers.is_elastic or coming.workers.is_elastic:
        return False
    workers = coming.workers.most
    if now.memory_bytes is not None and now.memory_bytes < workers * WORKER_BYTES:
        return False
    staying = [node for node in now.nodes if node["NodeID"] not in now.leaving]
    return count_free_places(staying, now.free, coming) >= workers
