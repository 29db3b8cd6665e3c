"""SIGTERM and SIGHUP: a notice while a Train run listens, an interruption at any other time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from raystage.cluster import shutdown as notices
from raystage.cluster import watchdog
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.stage import Training
from raystage.errors import ClusterLost


@pytest.fixture
def notice() -> Iterator[ShutdownSignal]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    notice = ShutdownSignal()
    notice.install()
    yield notice
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nobody_listens(notice: ShutdownSignal) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_second_time_it_is_meant(notice: ShutdownSignal) -> None:
    notice.is_heard = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.came_at is not None
    notice.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_workers_that_do_not_save_in_time_are_not_waited_for(
    notice: ShutdownSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice.is_heard = True
    os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(notices, "LEAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt, match="did not save"):
        notice.check()


def test_a_terminal_that_closes_is_a_notice_too(notice: ShutdownSignal) -> None:
    notice.is_heard = True
    os.kill(os.getpid(), signal.SIGHUP)
    assert (notice.came_at is not None, notice.signal) == (True, signal.SIGHUP)


def test_nohup_holds(notice: ShutdownSignal) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ShutdownSignal().install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_no_worker_trains_nobody_is_waited_for(notice: ShutdownSignal) -> None:
    """They wait for room, or are being started."""
    watch_ = watchdog.Watch(None, Training(), lambda *_: None, notice)
    notice.is_heard = True
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"asked to end .SIGTERM. while no worker had anything to save"):
        watch_._heed_notices([])


def test_a_question_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "CLUSTER_SECONDS", 0.05)
    never = threading.Event()
    with pytest.raises(ClusterLost, match="has not answered"):
        watchdog.in_time(never.wait)
    never.set()


def test_an_answer_comes_back_as_it_is_and_so_does_an_error() -> None:
    assert watchdog.in_time(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.in_time(lambda: 1 // 0)
