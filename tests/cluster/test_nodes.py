"""Which nodes of a cluster were lost, which do not answer, and how that reads."""

from __future__ import annotations

import socket

from raystage.cluster.nodes import LostNodes, SilentNodes, can_reach, describe_loss, name_of
from raystage.train.control_actor import WorkerStatus


def node(number: int, alive: bool = True, **more: object) -> dict:
    return {
        "NodeID": f"n{number}",
        "Alive": alive,
        "NodeManagerAddress": f"10.0.0.{number}",
        "NodeManagerHostname": f"host{number}",
        **more,
    }


def worker(rank: int, on: int, silent_seconds: float) -> WorkerStatus:
    return WorkerStatus(rank, None, f"n{on}", "training", silent_seconds, 100.0)


def test_a_node_is_named_by_its_host_and_address_and_once_if_both_are_the_same() -> None:
    assert name_of(node(3)) == "host3 (10.0.0.3)"
    assert name_of(node(3, NodeManagerHostname="10.0.0.3")) == "10.0.0.3"


def test_a_node_is_lost_once_and_only_if_it_was_there() -> None:
    lost = LostNodes()
    assert lost.since([node(1), node(2), node(3, alive=False)]) == []
    gone = node(2, alive=False, DeathReasonMessage="health check failed\nfor 5 s.")
    assert lost.since([node(1), gone]) == [gone]
    assert lost.since([node(1), gone]) == []
    assert describe_loss(gone) == "node host2 (10.0.0.2) was lost: health check failed for 5 s"
    assert describe_loss(node(2)) == "node host2 (10.0.0.2) was lost"


def test_a_silent_node_is_named_with_its_workers_once_and_so_is_the_end_of_its_silence() -> None:
    now, reachable = [0.0], {"n1"}
    silent = SilentNodes(lambda asked: asked["NodeID"] in reachable, lambda: now[0])
    nodes = [node(1), node(2), node(3)]
    quiet = [worker(0, 1, 20.0), worker(1, 2, 20.0), worker(2, 2, 20.0), worker(3, 3, 1.0)]
    assert silent.now(nodes, quiet) is None, "too early to ask"
    now[0] += 10
    assert silent.now(nodes, quiet) == (
        "host2 (10.0.0.2) with workers 1, 2, which does not answer: it is down, or the network is"
    )
    now[0] += 10
    assert silent.now(nodes, quiet) is None, "nothing is new"
    now[0] += 10
    assert silent.now(nodes, [worker(rank, 1, 1.0) for rank in range(3)]) == ""
    now[0] += 10
    assert silent.now(nodes, [worker(0, 1, 1.0)]) is None


def test_a_node_that_ray_has_given_up_is_not_asked() -> None:
    silent = SilentNodes(lambda asked: False, iter([0.0, 10.0, 10.0]).__next__)
    assert silent.now([node(1), node(2, alive=False)], [worker(0, 2, 20.0)]) is None


def test_of_a_silent_node_that_is_lost_it_is_not_said_that_it_answers_again() -> None:
    silent = SilentNodes(lambda asked: False, iter([0.0, 10.0, 10.0, 20.0, 20.0, 30.0, 30.0]).__next__)
    assert silent.now([node(1), node(2)], [worker(0, 2, 20.0)]).startswith("host2")
    assert silent.now([node(1), node(2, alive=False)], [worker(0, 2, 30.0)]) is None
    assert silent.now([node(1), node(2, alive=False)], []) is None


def test_a_host_that_refuses_a_connection_is_there() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        there = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listening.getsockname()[1]}
        assert can_reach(there)
    assert can_reach(there)
    assert not can_reach({"NodeManagerAddress": "host.invalid", "NodeManagerPort": 1})
