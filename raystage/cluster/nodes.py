"""What becomes of the nodes of a cluster while a Train run goes on, in words: which were lost, which are silent, and
which do not reach each other.

When the network to a node is cut, its connections stay open, and everybody waits. Ray says nothing before it gives the
node up, and nothing at all where the head reaches both ends of what is cut. So a node whose worker is not heard of is
asked for a connection, and nodes that answer are asked whether they reach each other.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raystage.cluster.queries import Inquiry
from raystage.train.control_actor import WorkerStatus

# Seconds without a word of a worker after which its node is asked for a connection, every so many seconds.
SILENT_SECONDS = 15.0
ASK_SECONDS = 5.0
# Seconds without a word of any worker after which their nodes are asked whether they reach each other, every so often.
QUIET_SECONDS = 30.0
ASK_EACH_OTHER_SECONDS = 30.0
_CONNECT_SECONDS = 2.0
_AT_A_TIME = 32
# How many other nodes each one tries, and how many pairs a message names.
_MOST_OTHERS = 8
_MOST_NAMED = 3

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


class ApartNodes:
    """Notices nodes that answer here but do not reach each other, while no worker is heard of.

    ask: has every node, by its id, try others. told: what `now` has told last. apart_since: by the clock, since when
    some are known to be apart.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Sequence[Node]]], Inquiry] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._clock = ask or _ask_each_other, clock
        self._heard_at = self._asked_at = clock()
        self._inquiry: Inquiry | None = None
        self._used: list[str] = []
        self.told = ""
        self.apart_since: float | None = None

    def now(self, nodes: Sequence[Node], statuses: Collection[WorkerStatus]) -> str | None:
        """Which nodes do not reach each other, in words: '' for none any more; None for no news."""
        self._hear(statuses)
        if self._clock() - self._heard_at <= QUIET_SECONDS:
            self._inquiry = None
            return self._tell("")
        if self._inquiry is not None and self._inquiry.is_over():
            said, self._inquiry = _describe_apart(nodes, self._inquiry.answers), None
            return self._tell(said)
        if self._inquiry is None and self._clock() - self._asked_at > ASK_EACH_OTHER_SECONDS:
            self._asked_at = self._clock()
            asked = [node for node in nodes if node["Alive"] and self._may_have_workers(node)]
            self._inquiry = self._ask(_who_asks_whom(asked)) if len(asked) > 1 else None
        return None

    def _may_have_workers(self, node: Node) -> bool:
        return node["NodeID"] in self._used if self._used else bool(node["Resources"].get("CPU"))

    def _hear(self, statuses: Collection[WorkerStatus]) -> None:
        """Workers that are being started say nothing yet: then the nodes of those before count."""
        if statuses:
            self._used = list(dict.fromkeys(one.node for one in sorted(statuses, key=lambda one: one.rank)))
            self._heard_at = self._clock() - min(one.silent_seconds for one in statuses)

    def _tell(self, said: str) -> str | None:
        is_news, self.told = said != self.told, said
        self.apart_since = (self.apart_since or self._clock()) if said else None
        return said if is_news else None


def _who_asks_whom(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """By the id of each node the next ones, in a ring."""
    count = len(nodes)
    others = range(1, min(count, _MOST_OTHERS + 1))
    return {one["NodeID"]: [nodes[(i + step) % count] for step in others] for i, one in enumerate(nodes)}


def _ask_each_other(asked: Mapping[str, Sequence[Node]]) -> Inquiry:
    return Inquiry(unreached_from_here, asked)


def unreached_from_here(nodes: Sequence[Node]) -> list[str]:
    """The ids of the nodes that do not answer the process that calls this."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return [one["NodeID"] for one, answers in zip(nodes, pool.map(can_reach, nodes), strict=True) if not answers]


def _describe_apart(nodes: Sequence[Node], answers: Mapping[str, Sequence[str]]) -> str:
    """'host2 (10.77.0.2) and host3 (10.77.0.3) to reach each other: these nodes answer here, but ...'."""
    names = {node["NodeID"]: name_of(node) for node in nodes if node["Alive"]}
    pairs = {(one, other) for one, others in answers.items() for other in others if one in names and other in names}
    named = sorted({" and ".join(sorted((names[one], names[other]))) for one, other in pairs})
    if not named:
        return ""
    more = f", and {len(named) - _MOST_NAMED} more pairs" if len(named) > _MOST_NAMED else ""
    return (
        f"{', '.join(named[:_MOST_NAMED])}{more} to reach each other: these nodes answer here, but the network between "
        f"them is down"
    )


def can_reach(node: Node) -> bool:
    """Whether something at the node answers. A refused connection is an answer."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
