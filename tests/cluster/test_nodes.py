"""Which nodes of a cluster were lost, which do not answer, and how that reads."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from raystage.cluster.nodes import (
    ApartNodes,
    LostNodes,
    Node,
    SilentNodes,
    can_reach,
    describe_loss,
    name_of,
    unreached_from_here,
)
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
    nowhere = {"NodeID": "nowhere", "NodeManagerAddress": "host.invalid", "NodeManagerPort": 1}
    assert not can_reach(nowhere)
    assert unreached_from_here([there | {"NodeID": "there"}, nowhere]) == ["nowhere"]


class Asked:
    """What nodes find that are asked whether they reach each other. cut: pairs of ids that do not."""

    def __init__(self, *cut: set[str]) -> None:
        self.cut, self.questions, self.has_answered = list(cut), [], True

    def __call__(self, questions: Mapping[str, Sequence[Node]]) -> Asked:
        self.questions.append({one: [other["NodeID"] for other in others] for one, others in questions.items()})
        return self

    def is_over(self) -> bool:
        return self.has_answered

    @property
    def answers(self) -> dict[str, list[str]]:
        asked = self.questions[-1].items()
        return {one: [other for other in others if {one, other} in self.cut] for one, others in asked}


def test_nodes_that_answer_but_do_not_reach_each_other_are_named_once_and_so_is_the_end_of_it() -> None:
    now, asked = [0.0], Asked({"n2", "n3"})
    apart = ApartNodes(asked, lambda: now[0])
    nodes = [node(1), node(2), node(3), node(4)]

    def look(silent_seconds: float) -> str | None:
        workers = [worker(0, 2, silent_seconds), worker(1, 3, silent_seconds + 5), worker(2, 4, silent_seconds)]
        return apart.now(nodes, workers)

    now[0] = 40.0
    assert look(20.0) is None
    assert asked.questions == [], "20 s without a word are no reason to ask"
    assert look(35.0) is None
    assert asked.questions == [{"n2": ["n3", "n4"], "n3": ["n4", "n2"], "n4": ["n2", "n3"]}]
    asked.has_answered = False
    assert (look(36.0), apart.apart_since) == (None, None)
    asked.has_answered = True
    now[0] = 45.0
    assert look(40.0) == (
        "host2 (10.0.0.2) and host3 (10.0.0.3) to reach each other: these nodes answer here, but the network between "
        "them is down"
    )
    now[0] = 80.0
    assert [apart.now(nodes, []), apart.now(nodes, [])] == [None, None], "the new workers wait for the same: no news"
    assert (len(asked.questions), apart.apart_since) == (2, 45.0)
    asked.cut, now[0] = [], 120.0
    assert [look(100.0), look(100.0)] == [None, ""]
    assert apart.apart_since is None
    assert look(1.0) is None


def test_nodes_are_apart_no_longer_when_their_workers_go_on() -> None:
    now, asked = [40.0], Asked({"n1", "n2"})
    apart = ApartNodes(asked, lambda: now[0])
    now[0] = 80.0
    silent, busy = ([worker(0, 1, seconds), worker(1, 2, seconds)] for seconds in (35.0, 0.0))
    assert apart.now([node(1), node(2)], silent) is None
    assert apart.now([node(1), node(2)], silent).startswith("host1 (10.0.0.1) and host2 (10.0.0.2) to reach")
    assert (apart.now([node(1), node(2)], busy), apart.apart_since) == ("", None)


def test_before_any_worker_was_heard_of_all_nodes_with_room_are_asked_and_a_single_one_is_not() -> None:
    now, asked = [0.0], Asked()
    apart = ApartNodes(asked, lambda: now[0])
    room = {"Resources": {"CPU": 1.0}}
    now[0] = 50.0
    assert apart.now([node(1, Resources={}), node(2, **room)], []) is None
    now[0] = 100.0
    apart.now([node(1, Resources={}), node(2, **room), node(3, **room), node(4, alive=False, **room)], [])
    assert asked.questions == [{"n2": ["n3"], "n3": ["n2"]}]
