"""Whether a cluster has room for a stage's workers. Without asking first, Ray would wait for ever and say nothing."""

from __future__ import annotations

import time

import ray
from ray._private.state import state as cluster_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raystage.errors import ResourcesMissing
from raystage.schedule import Training


def await_room(training: Training, patience_seconds: float) -> None:
    """Wait until there is room for the workers, as few as may be. Raises ResourcesMissing."""
    deadline = time.monotonic() + patience_seconds
    while not has_room(training):
        if time.monotonic() > deadline:
            raise too_small(training)
        time.sleep(1.0)


def give_back_room(controller_id: str) -> None:
    """Remove the placement groups that the controller of a Train run, which is dead now, has made.

    Ray Train does so itself, but only once their workers have started: a controller that dies before leaves them behind
    until the driver ends, and the next one waits for the room they take. Ray's public tables do not tell who made one.
    """
    for table in cluster_state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(table)
        if found.creator_actor_id.hex() == controller_id and found.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))


def has_room(training: Training) -> bool:
    return count_places(ray.nodes(), training) >= training.workers.least


def too_small(training: Training) -> ResourcesMissing:
    """What is missing, in words."""
    nodes, have = ray.nodes(), ray.cluster_resources()
    alive = sum(node["Alive"] for node in nodes)
    return ResourcesMissing(
        f"training.workers: {_count(training.workers.least, 'worker')} with {_wants(training)} each do not fit on the "
        f"cluster, which has room for {count_places(nodes, training)} ({_count(have.get('CPU', 0), 'CPU')}, "
        f"{_count(have.get('GPU', 0), 'GPU')} on {_count(alive, 'node')}); start more nodes or ask for less"
    )


def count_places(nodes: list[dict], training: Training) -> int:
    """How many workers fit on the living nodes, each worker whole on one of them."""
    places = 0
    for node in nodes:
        have = node["Resources"] if node["Alive"] else {}
        room = have.get("CPU", 0) // training.cpus_per_worker
        if training.gpus_per_worker:
            room = min(room, have.get("GPU", 0) // training.gpus_per_worker)
        places += int(room)
    return places


def _wants(training: Training) -> str:
    gpus = f" and {_count(training.gpus_per_worker, 'GPU')}" if training.gpus_per_worker else ""
    return _count(training.cpus_per_worker, "CPU") + gpus


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}" + ("" if number == 1 else "s")
