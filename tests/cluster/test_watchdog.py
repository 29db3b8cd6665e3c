"""SIGTERM and SIGHUP: a request to save while a Train run is watched, an interruption at any other time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from ray.exceptions import GetTimeoutError

from raystage.cluster import queries, shutdown, watchdog
from raystage.cluster.placement import Wait, describe_start, describe_wait
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.training import Training
from raystage.errors import ClusterLost, WorkersLost


@pytest.fixture
def shutdown_signal() -> Iterator[ShutdownSignal]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    shutdown_signal = ShutdownSignal()
    shutdown_signal.install()
    yield shutdown_signal
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nobody_listens(shutdown_signal: ShutdownSignal) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_is_raised_again(shutdown_signal: ShutdownSignal, number: int) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(number)

    shutdown_signal.check()
    Freed()  # Python prints the exception, and continues
    with pytest.raises(KeyboardInterrupt):
        shutdown_signal.check()


def test_who_ignores_ctrl_c_still_does(shutdown_signal: ShutdownSignal) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shutdown_signal.install()
    os.kill(os.getpid(), signal.SIGINT)
    shutdown_signal.check()
    assert shutdown_signal.received_at is None


def test_the_second_time_it_is_meant(shutdown_signal: ShutdownSignal) -> None:
    shutdown_signal.saves_first = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert shutdown_signal.received_at is not None
    shutdown_signal.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_workers_that_do_not_save_in_time_are_not_waited_for(
    shutdown_signal: ShutdownSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown_signal.saves_first = True
    os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(shutdown, "LEAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt, match="did not save"):
        shutdown_signal.check()


def test_a_terminal_that_closes_is_a_signal_too(shutdown_signal: ShutdownSignal) -> None:
    shutdown_signal.saves_first = True
    os.kill(os.getpid(), signal.SIGHUP)
    assert (shutdown_signal.received_at is not None, shutdown_signal.signal) == (True, signal.SIGHUP)


def test_nohup_holds(shutdown_signal: ShutdownSignal) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ShutdownSignal().install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_no_worker_trains_nobody_is_waited_for(shutdown_signal: ShutdownSignal) -> None:
    """They wait for resources, or are being started."""
    found = watchdog.Watchdog(None, Training(), lambda *_: None, shutdown_signal)
    shutdown_signal.saves_first = True
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"asked to end .SIGTERM. while no worker had anything to save"):
        found._leave_in_time([], [])


def test_workers_that_could_start_and_do_not_come_are_given_up_and_others_are_waited_for(
    shutdown_signal: ShutdownSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train tries again without limit."""
    told, wait = [], [Wait("free resources", may_last=True)]
    monkeypatch.setattr(watchdog, "find_wait", lambda training: wait[0])
    monkeypatch.setattr(watchdog, "WAIT_SECONDS", -1.0)
    monkeypatch.setattr(watchdog, "START_SECONDS", 0.05)
    training = Training(hang_seconds=0.01)
    found = watchdog.Watchdog(None, training, lambda *event: told.append(event), shutdown_signal)
    for _ in range(2):
        time.sleep(0.1)
        found._tell_of_wait([])
    assert told == [("waiting", "", "free resources")], "as long as others use what they need"
    wait[0] = Wait("", may_last=False)
    time.sleep(0.1)
    with pytest.raises(WorkersLost, match="no workers for 0:00 although there is room for 1 worker with 1 CPU each"):
        found._tell_of_wait([])


def test_each_thing_that_workers_wait_for_is_said_once(
    shutdown_signal: ShutdownSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that have their places have more time before a word is said: their processes load PyTorch."""
    told: list[str] = []
    found = watchdog.Watchdog(None, Training(), lambda *event: told.append(event[2]), shutdown_signal)
    patience = watchdog.PROCESS_SECONDS
    for what, is_placed, seconds in (
        ("free resources: 0 of 2", False, 20),
        ("free resources: 1 of 2", False, 30),
        ("the nodes to install packages", True, patience - 1),
        ("", False, patience),
        ("the nodes to install packages", True, patience + 1),
        ("the nodes to install packages", True, patience + 2),
        ("free resources: 0 of 2", False, patience + 3),
    ):
        found._tell_once(Wait(what, False, is_placed), seconds)
    assert told == ["free resources: 0 of 2", "the nodes to install packages"]


@pytest.mark.parametrize(
    ("runtime_env", "said"),
    [
        ({"pip": {"packages": ["x"]}, "working_dir": "gcs://x.zip"}, "install the job's packages, once each"),
        ({"working_dir": "gcs://x.zip"}, "load the job's files and start the workers' processes"),
        ({"env_vars": {"A": "1"}}, "start the workers' processes"),
        ({}, "start the workers' processes"),
    ],
)
def test_what_nodes_do_before_a_worker_starts_is_said(runtime_env: dict, said: str) -> None:
    assert describe_start(runtime_env).startswith(f"the nodes to {said}. If this lasts, a node cannot")


@pytest.mark.parametrize(
    ("is_free", "is_unreserved", "said"),
    [
        (False, True, "free resources for 1 worker with 1 CPU each: 0 of 2 CPUs are free now"),
        (
            True,
            True,
            "Ray to reserve room for 1 worker with 1 CPU each: 0 of 2 CPUs are free now. What it had reserved",
        ),
        (
            True,
            False,
            "Ray to start 1 worker with 1 CPU each: 0 of 2 CPUs are free now. If this lasts, a node starts no",
        ),
    ],
)
def test_what_workers_wait_for_is_said(is_free: bool, is_unreserved: bool, said: str) -> None:
    assert describe_wait(Training(), "0 of 2 CPUs", is_free, is_unreserved).startswith(said)


def test_a_question_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "CLUSTER_SECONDS", 0.05)
    never = threading.Event()
    with pytest.raises(ClusterLost, match="has not answered"):
        queries.ask_cluster(never.wait)
    never.set()


class Asker:
    """Asks an actor that does not answer. Every attempt takes a second by its own clock, and the head node has answered
    meanwhile, if it answers at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(queries.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(queries.ray, "get", self._get)

    def _get(self, reference: object, timeout: float) -> None:
        self.seconds += timeout
        raise GetTimeoutError

    def let_the_head_answer(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "raystage-ask":
                thread.join()


def test_an_actor_without_an_answer_is_waited_for_as_long_as_the_head_node_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asker = Asker(monkeypatch)
    monkeypatch.setattr(queries.ray, "nodes", list)
    with pytest.raises(ClusterLost, match="an actor of this run has not answered for 300 s, although"):
        queries.get_answer(None, asker.let_the_head_answer)
    assert asker.seconds == pytest.approx(queries.ACTOR_SECONDS, abs=2)


def test_an_actor_without_an_answer_is_given_up_soon_if_the_head_node_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asker, never = Asker(monkeypatch), threading.Event()
    monkeypatch.setattr(queries.ray, "nodes", never.wait)
    with pytest.raises(ClusterLost, match="the Ray cluster has not answered for 40 s"):
        queries.get_answer(None)
    never.set()
    assert asker.seconds == pytest.approx(queries.CLUSTER_SECONDS, abs=3)


def test_an_answer_comes_back_as_it_is_and_so_does_an_error() -> None:
    assert queries.ask_cluster(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        queries.ask_cluster(lambda: 1 // 0)
