"""Questions to a cluster, with a time limit.

If the cluster's head node is gone, Ray does not return from a call before it ends this process, after 60 s.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.errors import ClusterLost

Answer = TypeVar("Answer")

# Less than the 60 s after which Ray would end this process without a message of raystage.
CLUSTER_SECONDS = 40.0
# How long an actor may need while the head node answers. Ray first has to notice that the actor's node is lost, and
# then starts it on another one; a busy machine takes minutes for both.
ACTOR_SECONDS = 300.0
_POLL_SECONDS = 1.0


def get_answer(reference: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """The result of an actor's method. meanwhile: called about once a second while this waits.

    The wait is long because Ray may be restarting the actor on another node. Raises ClusterLost, and that early if the
    head node does not answer either.
    """
    asked_at, head = time.monotonic(), None
    while True:
        meanwhile()
        try:
            return ray.get(reference, timeout=_POLL_SECONDS)
        except GetTimeoutError:
            head = head or _Head()
            head.check()
            if time.monotonic() - asked_at > ACTOR_SECONDS:
                raise _actor_lost() from None


def ask_cluster(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises. It calls the cluster's head node, so it runs in a thread of its own.

    Raises ClusterLost.
    """
    asked = _asked(ask)
    if not _is_answered(asked, CLUSTER_SECONDS):
        raise _cluster_lost()
    return asked.result()


def _asked(ask: Callable[[], Answer]) -> Future[Answer]:
    """The thread may never end, so it must not keep this process from ending."""
    asked: Future[Answer] = Future()

    def asking() -> None:
        try:
            asked.set_result(ask())
        except Exception as error:  # raised in the thread that waits
            asked.set_exception(error)

    threading.Thread(target=asking, name="raystage-ask", daemon=True).start()
    return asked


def _is_answered(asked: Future, seconds: float) -> bool:
    """Not by the time-out of `result`: what was asked may raise the same error."""
    return bool(wait([asked], seconds).done)


class _Head:
    """Asks the head node again and again whether it is there. Nobody waits for the answers."""

    def __init__(self) -> None:
        self._asked_at, self._asked = time.monotonic(), _asked(ray.nodes)

    def check(self) -> None:
        """Raises ClusterLost if the head node has not answered for a while, and what Ray raises instead of answers."""
        if _is_answered(self._asked, 0):
            self._asked.result()
            self._asked_at, self._asked = time.monotonic(), _asked(ray.nodes)
        elif time.monotonic() - self._asked_at > CLUSTER_SECONDS:
            raise _cluster_lost()


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


def here() -> dict[str, str]:
    """The label of the node of this process, which no other node has. As an actor's `label_selector` they have
    Ray start it here. A soft NodeAffinitySchedulingStrategy does not: on a cluster whose head has no CPUs, most such
    actors came to lie on other nodes (Ray 2.60)."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


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


def _actor_lost() -> ClusterLost:
    return ClusterLost(
        f"an actor of this run has not answered for {ACTOR_SECONDS:g} s, although the cluster's head node does: `ray "
        f"list actors` shows where it is; the same command continues from the last checkpoint"
    )
