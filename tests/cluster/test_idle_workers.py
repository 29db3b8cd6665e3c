"""Workers without a job: which group gets the next one, which leaves, and when one is started ahead of its job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from raystage.cluster.idle import ahead
from raystage.cluster.idle.ahead import LONGEST_SECONDS, WAITING_SECONDS, Patience, StartsAhead
from raystage.cluster.idle.room import WORKER_BYTES, Surroundings, has_room
from raystage.cluster.idle.workers import IdleWorkers
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.training import Training
from raystage.config.types import Workers
from raystage.errors import ResourcesMissing

ONE, TWO = Training(workers=1), Training(workers=2)
ELASTIC = Training(workers=Workers(least=1, most=4))


# --- is there room ----------------------------------------------------------------------------


def node(name: str, **resources: float) -> dict:
    return {"NodeID": name, "Alive": True, "Resources": resources}


def with_free(**cpus: float) -> Surroundings:
    """Nodes with four CPUs each, of which so many are free."""
    return Surroundings([node(name, CPU=4) for name in cpus], {name: {"CPU": count} for name, count in cpus.items()})


def test_what_is_free_counts_and_not_what_there_is() -> None:
    assert has_room(with_free(a=2), ONE, TWO)
    assert not has_room(with_free(a=1), ONE, TWO)
    assert has_room(with_free(a=1, b=1), ONE, TWO)
    assert not has_room(with_free(a=1, b=1), ONE, Training(cpus_per_worker=2))  # no worker is cut in two
    assert not has_room(with_free(a=4), ONE, Training(gpus_per_worker=1))
    assert not has_room(Surroundings([node("a", CPU=4)], {}), ONE, ONE)  # a node that Ray says nothing of


def test_who_waits_comes_first() -> None:
    assert not has_room(replace(with_free(a=4), others_wait=True), ONE, TWO)


def test_a_node_that_is_to_be_taken_away_has_no_room() -> None:
    assert not has_room(replace(with_free(a=4), leaving={"a"}), ONE, TWO)


@pytest.mark.parametrize(("present", "coming"), [(ELASTIC, ONE), (ONE, ELASTIC)])
def test_elastic_stages_keep_what_is_free(present: Training, coming: Training) -> None:
    assert not has_room(with_free(a=4, b=4), present, coming)


def test_processes_have_to_fit_into_the_memory_of_this_machine() -> None:
    assert has_room(replace(with_free(a=2), memory_bytes=2 * WORKER_BYTES), ONE, TWO)
    assert not has_room(replace(with_free(a=2), memory_bytes=2 * WORKER_BYTES - 1), ONE, TWO)


# --- how long do they stay --------------------------------------------------------------------


def test_they_leave_when_somebody_waits_for_longer_than_it_takes_to_place_them() -> None:
    patience = Patience(began=100.0)
    assert not patience.is_over(100.0 + WAITING_SECONDS - 0.1, others_wait=True)
    assert not patience.is_over(101.0 + WAITING_SECONDS, others_wait=False)
    assert not patience.is_over(102.0 + WAITING_SECONDS, others_wait=True)
    assert patience.is_over(101.0 + 2 * WAITING_SECONDS, others_wait=True)


def test_they_leave_when_their_job_does_not_come() -> None:
    patience = Patience(began=100.0)
    assert not patience.is_over(99.0 + LONGEST_SECONDS, others_wait=False)
    assert patience.is_over(100.0 + LONGEST_SECONDS, others_wait=False)


# --- who gets a job ---------------------------------------------------------------------------


@dataclass
class Group:
    """In place of a `WorkerGroup`. suits: the one job that it can have."""

    suits: object = None
    told: list[str] = field(default_factory=list)
    has_left: bool = False
    waited_seconds: float = 0.0

    def takes(self, job: object) -> bool:
        return job == self.suits

    def is_available(self) -> bool:
        return True

    def remove_notes(self) -> None:
        self.told.append("keeps no notes")

    def stay(self) -> None:
        self.told.append("stay")

    def start(self) -> None:
        self.told.append("start")

    def let_go(self) -> None:
        self.told.append("leave")

    def see_off(self, seconds: float) -> bool:
        self.waited_seconds += seconds
        return self.has_left


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The group that is started ahead of its job."""
    group = Group(suits="second")
    monkeypatch.setattr("raystage.cluster.idle.workers.WorkerGroup", lambda job: group)
    return group


@pytest.fixture
def idle(early: Group) -> IdleWorkers:
    """With one group that is done with its job, and one that was started ahead of the second one."""
    idle = IdleWorkers()
    idle.keep(Group(suits="first"))
    idle.start_early("second")
    assert early.told == ["start"]
    return idle


def test_the_early_workers_get_their_job_and_nobody_waits_for_the_others_to_leave(
    idle: IdleWorkers, early: Group
) -> None:
    done = idle._done
    assert idle.take("second") is early
    assert (done.told[-1], done.waited_seconds) == ("leave", 0.0)
    assert (early.told, idle.has_early) == (["start"], False)
    assert idle.take("third") is None
    assert done.waited_seconds > 0.0, "where new ones are started, they may need the room"
    done.has_left = True
    idle.dismiss()
    assert not idle._leaving


def test_workers_that_are_done_go_on_where_they_suit_and_the_early_ones_leave(idle: IdleWorkers, early: Group) -> None:
    done = idle._done
    assert idle.take("first") is done
    assert (early.told[-1], early.waited_seconds) == ("leave", 0.0)
    assert not idle.has_early


def test_if_none_suits_all_leave(idle: IdleWorkers, early: Group) -> None:
    done = idle._done
    assert idle.take("third") is None
    assert (done.told[-1], early.told[-1]) == ("leave", "leave")


def test_early_workers_that_are_let_go_are_not_waited_for(idle: IdleWorkers, early: Group) -> None:
    idle.let_early_go()
    assert (early.told[-1], early.waited_seconds, idle.has_early) == ("leave", 0.0, False)
    idle.tend()
    assert early.told[-1] == "leave"
    assert early.waited_seconds == 0.0
    idle.let_early_go()


# --- when are they started --------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    training: Training
    stages: tuple = ()


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> list[Surroundings]:
    """What the cluster has left, the last of the list; every look is one of its own."""
    found = [with_free(a=4)]
    monkeypatch.setattr(ahead, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "look_around", lambda: found[-1])
    monkeypatch.setattr(ahead, "describe_start", lambda job: "starting")
    return found


@dataclass
class Scene:
    """One job, and the next one once `is_time`."""

    idle: IdleWorkers
    shutdown: ShutdownSignal = field(default_factory=ShutdownSignal)
    is_time: bool = True
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ahead = StartsAhead(self.idle, Job(ONE), self._coming, self.said.append, self.shutdown)

    def _coming(self) -> Job | None:
        return Job(TWO, ("stage",)) if self.is_time else None


@pytest.fixture
def scene(early: Group, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(ahead, "check_memory", lambda stage, nodes: None)
    return Scene(IdleWorkers())


def test_they_are_started_once_it_is_time_and_there_is_room(
    scene: Scene, early: Group, surroundings: list[Surroundings]
) -> None:
    scene.is_time = False
    scene.ahead.look()
    scene.is_time = True
    surroundings.append(with_free(a=1))
    scene.ahead.look()
    assert (early.told, scene.said) == ([], [])
    surroundings.append(with_free(a=2))
    for _ in range(3):
        scene.ahead.look()
    assert early.told == ["start", "stay", "stay"]
    assert scene.said == ["starting"]


def test_they_give_way_to_who_waits_and_are_not_started_again(
    scene: Scene, early: Group, surroundings: list[Surroundings], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.ahead.look()
    surroundings.append(replace(with_free(a=2), others_wait=True))
    scene.ahead.look()
    assert early.told == ["start", "stay"]
    monkeypatch.setattr(ahead, "WAITING_SECONDS", 0.0)
    scene.ahead.look()
    assert early.told[-1] == "leave"
    surroundings.append(with_free(a=4))
    scene.ahead.look()
    assert early.told[-1] == "leave"


def test_whoever_is_to_end_has_them_leave_at_once(scene: Scene, early: Group, surroundings: list[Surroundings]) -> None:
    scene.ahead.look()
    scene.shutdown.received_at = 0.0
    scene.ahead.look()
    scene.ahead.look()
    assert early.told == ["start", "leave"]


def test_a_job_that_can_not_have_its_memory_says_so_when_it_begins(
    scene: Scene, early: Group, surroundings: list[Surroundings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(stage: object, nodes: object) -> None:
        raise ResourcesMissing("no node has so much memory")

    monkeypatch.setattr(ahead, "check_memory", missing)
    scene.ahead.look()
    assert (early.told, scene.said) == ([], [])
