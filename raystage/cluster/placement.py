"""Whether the workers of a stage fit on a cluster, and whether its resources are free.

Without this check Ray would wait without limit, and say nothing.
"""

from __future__ import annotations

import time

import ray

from raystage.cluster.queries import ask_cluster
from raystage.cluster.ray_private import pending_group_sizes, remove_groups_of, remove_groups_of_dead_actors
from raystage.config.training import Training
from raystage.errors import ResourcesMissing

LOOK_SECONDS = 1.0


def fits(training: Training) -> bool:
    """Whether the cluster is large enough for the workers, at least for the fewest allowed."""
    return count_places(ray.nodes(), training) >= training.workers.least


def await_fit(training: Training, patience_seconds: float) -> None:
    """Wait until the cluster is large enough for the workers. Raises ResourcesMissing, ClusterLost."""
    deadline = time.monotonic() + patience_seconds
    while not ask_cluster(lambda: fits(training)):
        if time.monotonic() > deadline:
            raise too_small(training)
        time.sleep(LOOK_SECONDS)


def count_places(nodes: list[dict], training: Training) -> int:
    """How many workers fit on the living nodes, each of them as a whole on one node."""
    places = 0
    for node in nodes:
        resources = node["Resources"] if node["Alive"] else {}
        count = resources.get("CPU", 0) // training.cpus_per_worker
        if training.gpus_per_worker:
            count = min(count, resources.get("GPU", 0) // training.gpus_per_worker)
        places += int(count)
    return places


def waits_for_resources(training: Training) -> bool:
    """Whether a placement group of this job, as a Train run of these workers makes one, waits for resources that
    others use."""
    return any(training.workers.least <= size <= training.workers.most for size in pending_group_sizes())


def describe_wait(training: Training) -> str:
    """'free resources for 2 workers with 1 CPU each: 0 of 4 CPUs are free now'."""
    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = ("CPU", "GPU") if training.gpus_per_worker else ("CPU",)
    left = " and ".join(f"{free.get(kind, 0):g} of {_count(total.get(kind, 0), kind)}" for kind in kinds)
    workers = _count(training.workers.least, "worker")
    return f"free resources for {workers} with {_per_worker(training)} each: {left} are free now"


def too_small(training: Training) -> ResourcesMissing:
    """Says what is missing."""
    nodes, total = ray.nodes(), ray.cluster_resources()
    alive = sum(node["Alive"] for node in nodes)
    return ResourcesMissing(
        f"training.workers: {_count(training.workers.least, 'worker')} with {_per_worker(training)} each do not fit on "
        f"the cluster, which has places for {count_places(nodes, training)} ({_count(total.get('CPU', 0), 'CPU')}, "
        f"{_count(total.get('GPU', 0), 'GPU')} on {_count(alive, 'node')}); start more nodes or ask for less"
    )


def release_resources_of(controller_id: str) -> None:
    """Remove the placement groups of a Train run whose controller has died.

    Ray Train does so itself once its workers have started. A controller that dies before that leaves the groups
    behind until the driver ends, and the next controller waits for the resources that they hold.
    """
    remove_groups_of(controller_id)


def release_resources_of_dead_controllers() -> None:
    """Remove the placement groups of this job whose Train controllers have died.

    A trial that was stopped or killed leaves such groups behind. Ray Train has a helper process for this, but that one
    asks Ray's API server, which a local cluster does not have.
    """
    remove_groups_of_dead_actors()


def _per_worker(training: Training) -> str:
    gpus = f" and {_count(training.gpus_per_worker, 'GPU')}" if training.gpus_per_worker else ""
    return _count(training.cpus_per_worker, "CPU") + gpus


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}" + ("" if number == 1 else "s")
