"""A process on every node of a cluster that answers the doctor's questions.

All nodes are asked at once, and each question has a limit. A node that does not answer is asked nothing more; the
others go on.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.cluster.nodes import Node, name_of
from raystage.cluster.same_code import make_comparer
from raystage.tools.node_agent import NodeAgent
from raystage.tools.node_findings import ClockOffset

NODE_SECONDS = 60.0
_END_SECONDS = 5.0
_CLOCK_ROUNDS = 3
DIFFERENCE = "difference"


class NodeGroup:
    """A context manager: at its end the processes are gone.

    names: of all nodes, by id, as people know them. answering: the ids of those that can still be asked. silent: why
    others did not answer, by id.
    """

    def __init__(self, nodes: Sequence[Node], limit_seconds: float = NODE_SECONDS) -> None:
        self.names = name_nodes(nodes)
        self.answering, self.silent = list(self.names), {}
        self._limit_seconds = limit_seconds
        self._actors: dict[str, Any] = {}

    def __enter__(self) -> NodeGroup:
        start = ray.remote(num_cpus=0, max_restarts=0)(_make_agent())
        for node in self.names:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._actors[node] = start.options(scheduling_strategy=there).remote()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        gone = [actor.ask.remote("now") for actor in self._actors.values()]  # fails as soon as the process has ended
        if gone:
            ray.wait(gone, num_returns=len(gone), timeout=_END_SECONDS)

    def ask(self, question: str, arguments: Mapping[str, tuple]) -> dict[str, Any]:
        """Ask the nodes of `arguments` a question each, a method of NodeAgent; returns the answers by id."""
        asked = {node: self._actors[node].ask.remote(question, *given) for node, given in arguments.items()}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=self._limit_seconds)
        answers = {}
        for node, answer in asked.items():
            try:
                answers[node] = ray.get(answer, timeout=0)
            except RayError as error:  # a GetTimeoutError, too
                self._leave(node, self._why(error))
        return answers

    def ask_all(self, question: str, *arguments: Any) -> dict[str, Any]:
        return self.ask(question, dict.fromkeys(self.answering, arguments))

    def leave_out(self, node: str) -> None:
        """Ask this node nothing more."""
        self.answering.remove(node)

    def clock_offsets(self) -> dict[str, ClockOffset]:
        """How far the nodes' clocks are ahead of this process's. Of several round trips the shortest counts."""
        best: dict[str, ClockOffset] = {}
        for _ in range(_CLOCK_ROUNDS):
            for node, offset in self._ask_time().items():
                if node not in best or offset.within_seconds < best[node].within_seconds:
                    best[node] = offset
        return best

    def _ask_time(self) -> dict[str, ClockOffset]:
        asked = {self._actors[node].ask.remote("now"): (node, time.time()) for node in self.answering}
        found, deadline = {}, time.monotonic() + self._limit_seconds
        while asked and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=left)
            arrived = time.time()
            for answer in ready:
                node, sent = asked.pop(answer)
                try:
                    found[node] = ClockOffset(ray.get(answer) - (sent + arrived) / 2, (arrived - sent) / 2)
                except RayError as error:
                    self._leave(node, self._why(error))
        for node, _ in asked.values():
            self._leave(node, self._too_late())
        return found

    def _leave(self, node: str, why: str) -> None:
        self.silent[node] = why
        self.leave_out(node)

    def _why(self, error: RayError) -> str:
        if isinstance(error, GetTimeoutError):
            return self._too_late()
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__

    def _too_late(self) -> str:
        return f"no answer within {self._limit_seconds:g} s"


def name_nodes(nodes: Sequence[Node]) -> dict[str, str]:
    """Names by id, all different: on one machine several nodes may have one address."""
    named = {node["NodeID"]: name_of(node) for node in nodes}
    is_unique = len(set(named.values())) == len(named)
    return named if is_unique else {node: f"{name} {node[:6]}" for node, name in named.items()}


def _make_agent() -> type:
    """A class that answers questions. Nested, so that it comes to run whatever raystage a node has."""
    compare = make_comparer()

    class Agent:
        def __init__(self) -> None:
            self._agent: NodeAgent | None = None

        def ask(self, question: str, *arguments: Any) -> Any:
            if question == DIFFERENCE:
                return compare()
            if self._agent is None:
                self._agent = importlib.import_module("raystage.tools.node_agent").NodeAgent()
            return getattr(self._agent, question)(*arguments)

    return Agent
