"""What becomes of the nodes of a cluster while a Train run goes on, in words: which were lost, which are silent.

When the network to a node is cut, its connections stay open, and everybody waits. Ray says nothing before it gives the
node up. So a node whose worker is not heard of is asked for a connection.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raystage.train.control_actor import WorkerStatus

# Seconds without a word of a worker after which its node is asked for a connection, every so many seconds.
SILENT_SECONDS = 15.0
ASK_SECONDS = 5.0
_CONNECT_SECONDS = 2.0
_AT_A_TIME = 32

# What `ray.nodes` says of a node.
Node = Mapping[str, Any]


def name_of(node: Node) -> str:
    """'host3 (10.77.0.3)'."""
    name, address = node.get("NodeManagerHostname", ""), node["NodeManagerAddress"]
    return f"{name} ({address})" if name and name != address else address


class LostNodes:
    """Notices which nodes are lost, from one look at all nodes to the next."""

    def __init__(self) -> None:
        self._alive: set[str] = set()

    def since(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes that were alive at the last call, and are not now."""
        lost = [node for node in nodes if node["NodeID"] in self._alive and not node["Alive"]]
        self._alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return lost


def describe_loss(node: Node) -> str:
    """'node host3 (10.77.0.3) was lost: health check failed due to missing too many heartbeats'."""
    reason = " ".join((node.get("DeathReasonMessage") or "").split()).rstrip(".")
    return f"node {name_of(node)} was lost" + (f": {reason}" if reason else "")


class SilentNodes:
    """Notices nodes that do not answer although Ray still counts them as alive.

    answers: whether a node can be reached from here.
    """

    def __init__(
        self, answers: Callable[[Node], bool] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answers, self._clock = answers or can_reach, clock
        self._asked_at = clock()
        self._told: frozenset[str] = frozenset()

    def now(self, nodes: Sequence[Node], statuses: Collection[WorkerStatus]) -> str | None:
        """Which nodes do not answer, in words: '' for none any more; None for no news."""
        silent = {one.node for one in statuses if one.silent_seconds > SILENT_SECONDS}
        if not (silent or self._told) or self._clock() - self._asked_at < ASK_SECONDS:
            return None
        self._asked_at = self._clock()
        alive = [node for node in nodes if node["Alive"]]
        self._told &= {node["NodeID"] for node in alive}  # that others are lost is told elsewhere
        asked = [node for node in alive if node["NodeID"] in silent]
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = [node for node, answers in zip(asked, pool.map(self._answers, asked), strict=True) if not answers]
        ids = frozenset(node["NodeID"] for node in found)
        is_news, self._told = ids != self._told, ids
        return _describe_silence(found, statuses) if is_news else None


def _describe_silence(nodes: Sequence[Node], statuses: Collection[WorkerStatus]) -> str:
    """'host3 (10.77.0.3, with worker 1), which does not answer: it is down, or the network to it is'."""
    if not nodes:
        return ""
    named = []
    for node in nodes:
        ranks = sorted(one.rank for one in statuses if one.node == node["NodeID"])
        named.append(f"{name_of(node)} with {'worker' if len(ranks) == 1 else 'workers'} {', '.join(map(str, ranks))}")
    verb, what = ("does", "it is") if len(named) == 1 else ("do", "they are")
    return f"{' and '.join(named)}, which {verb} not answer: {what} down, or the network is"


def can_reach(node: Node) -> bool:
    """Whether something at the node answers. A refused connection is an answer."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
