"""Whether a cluster has room for a stage's workers. Without asking first, Ray would wait for ever and say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raystage.config.stage import Training
from raystage.errors import ResourcesMissing


def give_back_room(controller_id: str) -> None:
    """Remove the placement groups that the controller of a Train run, which is dead now, has made.

    Ray Train does so itself, but only once their workers have started: a controller that dies before leaves them behind
    until the driver ends, and the next one waits for the room they take. Ray's public tables do not tell who made one.
    """
    _remove(group for group in _placement_groups() if group.creator_actor_id.hex() == controller_id)


def give_back_room_of_the_dead() -> None:
    """Remove the placement groups of this job that were made by controllers which are dead.

    Those of a trial that was stopped or killed, with its process, while workers of its own lived. Ray Train has a
    helper to do so, but that one asks the API server, which a local cluster does not have.
    """
    job, no_actor = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    ours = (group for group in _placement_groups() if group.creator_job_id.hex() == job)
    # What no actor has made, such as Tune's own, is said to be made by a dead one.
    _remove(group for group in ours if group.creator_actor_dead and group.creator_actor_id != no_actor)


def _remove(groups: Iterable[Any]) -> None:
    for group in groups:
        if group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def is_room_taken(training: Training) -> bool:
    """Whether a placement group of this job's, as the workers' Train run makes it, waits for what others have."""
    job = ray.get_runtime_context().get_job_id()
    return any(
        group.state == PlacementGroupTableData.PENDING
        and group.creator_job_id.hex() == job
        and training.workers.least <= len(group.bundles) <= training.workers.most
        for group in _placement_groups()
    )


def _placement_groups() -> Iterator[Any]:
    return map(
        PlacementGroupTableData.FromString, cluster_state._connect_and_get_accessor().get_placement_group_table()
    )


def describe_wait(training: Training) -> str:
    """'room for 2 workers with 1 CPU each: 0 of 4 CPUs are free now'."""
    have, free = ray.cluster_resources(), ray.available_resources()
    kinds = ("CPU", "GPU") if training.gpus_per_worker else ("CPU",)
    left = " and ".join(f"{free.get(kind, 0):g} of {_count(have.get(kind, 0), kind)}" for kind in kinds)
    return f"room for {_count(training.workers.least, 'worker')} with {_wants(training)} each: {left} are free now"


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
