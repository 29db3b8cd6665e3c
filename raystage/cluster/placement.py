"""Whether the workers of a stage fit on a cluster, and whether its resources are free.

Without this check Ray would wait without limit, and say nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raystage.cluster.queries import ask_cluster
from raystage.cluster.ray_private import (
    RESERVED_SECONDS,
    free_resources,
    group_sizes,
    logs_folder,
    remove_groups_of,
    remove_groups_of_dead_actors,
)
from raystage.cluster.shutdown import SHUTDOWN
from raystage.config.node_labels import has_labels
from raystage.config.training import Training
from raystage.errors import ResourcesMissing, WorkersLost
from raystage.units import format_seconds

LOOK_SECONDS = 1.0
# Keys of a runtime environment. What they name every node sets up before it starts a process of the job.
_INSTALLING = {"pip", "uv", "conda"}
_BRINGING = {"working_dir", "py_modules"}
# Ray's autoscaler starts a node for any amount of this resource, which every node with such a GPU has.
_SOME = 0.001


def fits(training: Training) -> bool:
    """Whether the cluster is large enough for the workers, at least for the fewest allowed."""
    return count_places(ray.nodes(), training) >= training.workers.least


def await_fit(training: Training, patience_seconds: float, tell: Callable[[str], None]) -> None:
    """Wait until the cluster is large enough for the workers, and meanwhile ask its autoscaler for nodes.

    tell: is called once with what this waits for. Raises ResourcesMissing, ClusterLost.
    """
    if ask_cluster(lambda: fits(training)):
        return
    if patience_seconds:
        tell(f"more nodes, for up to {format_seconds(patience_seconds)} (--patience): {_missing(training)}")
    deadline = time.monotonic() + patience_seconds
    with _asking_for_nodes(training):
        while not ask_cluster(lambda: fits(training)):
            SHUTDOWN.check()
            if time.monotonic() > deadline:
                raise too_small(training, patience_seconds)
            time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _asking_for_nodes(training: Training) -> Iterator[None]:
    """Within this context the cluster's autoscaler, if it has one, sees that the workers need nodes.

    A placement group that waits is such a demand. `ray.autoscaler.sdk.request_resources` is another, but every call of
    it, also of another job, replaces the one before, and a demand stays when its job has died.
    """
    bundles = [resources_per_worker(training)] * training.workers.least
    labels = [dict(training.node_labels)] * len(bundles) if training.node_labels else None
    strategy = training.placement.upper()
    group = ask_cluster(lambda: placement_group(bundles, strategy=strategy, bundle_label_selector=labels))
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # it ends with this process at the latest
            ask_cluster(lambda: remove_placement_group(group))


def resources_per_worker(training: Training) -> dict[str, float]:
    """What a worker takes of a node, under Ray's names."""
    resources: dict[str, float] = {"CPU": training.cpus_per_worker}
    if training.gpus_per_worker:
        resources["GPU"] = training.gpus_per_worker
    if training.accelerator:
        resources[_accelerator_resource(training.accelerator)] = _SOME
    return resources


def count_places(nodes: list[dict], training: Training) -> int:
    """How many workers fit on the living nodes, each of them as a whole on one node."""
    return sum(places_on(node, training) for node in nodes)


def count_free_places(nodes: Iterable[dict], free: Mapping[str, Mapping[str, float]], training: Training) -> int:
    """How many workers fit now, each as a whole on one node. free: by the id of a node what nobody uses of it."""
    return count_places([node | {"Resources": free.get(node["NodeID"], {})} for node in nodes], training)


def places_on(node: dict, training: Training) -> int:
    """How many workers fit on a node, as `ray.nodes` describes it, while nothing else uses it."""
    if not node["Alive"] or not has_labels(node.get("Labels", {}), training.node_labels):
        return 0
    needs = resources_per_worker(training)
    return int(min(node["Resources"].get(name, 0) // amount for name, amount in needs.items()))


def _accelerator_resource(accelerator: str) -> str:
    """Ray's resource of nodes with GPUs of a type."""
    return f"accelerator_type:{accelerator}"


@dataclass(frozen=True)
class Wait:
    """Why workers have not started. what: what they wait for, in words; '' if that is not known. may_last: whether
    others use what they need; what else keeps them should pass. is_placed: whether they have their places, and are
    starting."""

    what: str
    may_last: bool
    is_placed: bool = False


def find_wait(training: Training) -> Wait:
    """What the workers of a Train run of this job wait for, none of which was heard of.

    Ray says nothing of it. The controller of a fixed number of workers makes a placement group, which waits. That of an
    elastic stage makes none before the AutoscalingCoordinator has reserved room for it.
    """
    of_such_runs = [waits for size, waits in group_sizes() if training.workers.least <= size <= training.workers.most]
    total, free = ray.cluster_resources(), ray.available_resources()
    is_free = count_free_places(ray.nodes(), free_resources(), training) >= training.workers.least
    is_unreserved = training.workers.is_elastic and not of_such_runs
    if not (any(of_such_runs) or is_unreserved):
        # The group of an elastic stage may be that of another trial of the same sweep.
        if training.workers.is_elastic and not is_free:
            return Wait("", may_last=True)
        return Wait(describe_start(ray.get_runtime_context().runtime_env), may_last=False, is_placed=True)
    kinds = ("CPU", "GPU") if training.gpus_per_worker else ("CPU",)
    left = " and ".join(f"{free.get(kind, 0):g} of {_count(total.get(kind, 0), kind)}" for kind in kinds)
    return Wait(describe_wait(training, left, is_free, is_unreserved), may_last=not is_free)


def describe_wait(training: Training, left: str, is_free: bool, is_unreserved: bool) -> str:
    """'free resources for 2 workers with 1 CPU each: 0 of 4 CPUs are free now'.

    left: '0 of 4 CPUs'. Where enough is free, Ray keeps it for another elastic run, or is slow, or a node starts no
    processes; Ray Train then tries again without limit.
    """
    each = f"{_count(training.workers.least, 'worker')} with {_per_worker(training)} each"
    if not is_free:
        return f"free resources for {each}: {left} are free now"
    if is_unreserved:
        return (
            f"Ray to reserve room for {each}: {left} are free now. What it had reserved for a run that was killed, it "
            f"gives to others after {RESERVED_SECONDS} s"
        )
    return (
        f"Ray to start {each}: {left} are free now. If this lasts, a node starts no processes, for example because "
        f"its disk is full: see {logs_folder()}/train"
    )


def describe_start(runtime_env: Mapping[str, Any]) -> str:
    """What is between a place for a worker and its process. runtime_env: of the job."""
    if runtime_env.keys() & _INSTALLING:
        doing, why = "install the job's packages, once each", "its /tmp is full, or it reaches no package index"
    elif runtime_env.keys() & _BRINGING:
        doing, why = "load the job's files and start the workers' processes", "its /tmp is full"
    else:
        doing, why = "start the workers' processes", "its disk is full"
    return f"the nodes to {doing}. If this lasts, a node cannot, for example because {why}: see {logs_folder()} there"


def not_started(training: Training, seconds: float) -> WorkersLost:
    """For workers that have their places, or could have them, and do not come."""
    each = f"{_count(training.workers.least, 'worker')} with {_per_worker(training)} each"
    return WorkersLost(
        f"Ray has started no workers for {format_seconds(seconds)} although there is room for {each}: a node starts no "
        f"processes, for example because its disk is full, or the nodes do not reach each other; see "
        f"{logs_folder()}/train. The same command continues from the last checkpoint"
    )


def too_small(training: Training, patience_seconds: float = 0.0) -> ResourcesMissing:
    """Says what is missing. patience_seconds: how long more nodes were waited for."""
    waited = f" after {format_seconds(patience_seconds)}" if patience_seconds else ""
    longer = ", or wait longer for an autoscaler (--patience)" if patience_seconds else ""
    return ResourcesMissing(f"training.workers: {_missing(training)}{waited}; start more nodes or ask for less{longer}")


def _missing(training: Training) -> str:
    """'2 workers with 1 CPU each do not fit on the cluster, which has places for 0 (1 CPU, 0 GPUs on 1 node)'."""
    nodes, total = ask_cluster(ray.nodes), ask_cluster(ray.cluster_resources)
    alive = sum(node["Alive"] for node in nodes)
    has = f"{_count(total.get('CPU', 0), 'CPU')}, {_count(total.get('GPU', 0), 'GPU')} on {_count(alive, 'node')}"
    if training.accelerator:
        types = sorted(name.partition(":")[2] for name in total if name.startswith(_accelerator_resource("")))
        has += f"; GPU types: {', '.join(types) or 'none'}"
    if training.node_labels:
        fit = sum(node["Alive"] and has_labels(node.get("Labels", {}), training.node_labels) for node in nodes)
        has += f"; the labels fit {_count(fit, 'node')}"
    return (
        f"{_count(training.workers.least, 'worker')} with {_per_worker(training)} each do not fit on the cluster, "
        f"which has places for {count_places(nodes, training)} ({has})"
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
    kind = f"{training.accelerator} GPU" if training.accelerator else "GPU"
    gpus = f" and {_count(training.gpus_per_worker, kind)}" if training.gpus_per_worker else ""
    return _count(training.cpus_per_worker, "CPU") + gpus


def _count(number: float, thing: str) -> str:
    return f"{number:g} {thing}" + ("" if number == 1 else "s")
