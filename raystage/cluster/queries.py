"""Questions to a cluster, with a time limit.

If the cluster's head node is gone, Ray does not return from a call before it ends this process, after 60 s.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.errors import ClusterLost

Answer = TypeVar("Answer")

# Less than the 60 s after which Ray would end this process without a message of raystage.
CLUSTER_SECONDS = 40.0
_POLL_SECONDS = 1.0


def get_answer(reference: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """The result of an actor's method. meanwhile: called about once a second while this waits.

    The wait is long because Ray may be restarting the actor on another node. Raises ClusterLost.
    """
    deadline = time.monotonic() + CLUSTER_SECONDS
    while True:
        meanwhile()
        try:
            return ray.get(reference, timeout=_POLL_SECONDS)
        except GetTimeoutError:
            if time.monotonic() > deadline:
                raise _cluster_lost() from None


def ask_cluster(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises. It calls the cluster's head node, so it runs in a thread of its own.

    Raises ClusterLost.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, Exception | None]] = queue.SimpleQueue()

    def asking() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # raised below, in the thread that waits
            answers.put((None, error))

    threading.Thread(target=asking, name="raystage-ask", daemon=True).start()
    try:
        found, error = answers.get(timeout=CLUSTER_SECONDS)
    except queue.Empty:
        raise _cluster_lost() from None
    if error is not None:
        raise error
    return found


class Inquiry:
    """A function that some nodes carry out at once, each with an argument of its own; nobody waits for them.

    answers: by the node's id what was returned so far. A node may never answer.
    """

    def __init__(self, function: Callable[[Any], Any], arguments: Mapping[str, Any]) -> None:
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        self.answers: dict[str, Any] = {}
        self._pending = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(argument): node
            for node, argument in arguments.items()
        }
        self._deadline = time.monotonic() + CLUSTER_SECONDS

    def is_over(self) -> bool:
        """Whether all have answered, or have had the time to."""
        ready, _ = (
            ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0) if self._pending else ((), ())
        )
        for reference in ready:
            node = self._pending.pop(reference)
            with contextlib.suppress(RayError):  # of a node that starts no processes, or was lost
                self.answers[node] = ray.get(reference)
        return not self._pending or time.monotonic() > self._deadline


def own_node() -> str:
    """The resource, 1 of it, that the node of this process has and no node at another address. Raises ClusterLost."""
    here = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ask_cluster(ray.nodes) if node["NodeID"] == here)
    return next(name for name in resources if name.startswith("node:") and "__" not in name)


def _cluster_lost() -> ClusterLost:
    return ClusterLost(
        f"the Ray cluster has not answered for {CLUSTER_SECONDS:g} s: it was stopped, or the network to it is down; "
        f"the same command on a running cluster continues from the last checkpoint"
    )
