"""The lines of a job, as they come over connections that break; and how a job has ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobDetails, JobStatus

from raystage.errors import ClusterLost
from raystage.jobs import follow
from raystage.jobs.follow import Log, ending, exit_status


def test_every_line_is_shown_once_over_any_number_of_connections() -> None:
    shown: list[str] = []
    log = Log(shown.append)
    for pieces in (["one\ntw"], ["one\ntwo\n", "thr"], ["one\n"], ["one\ntwo\nthree\nfour"]):
        log.begin()
        for piece in pieces:
            log.take(piece)
    assert shown == ["one", "two", "three"]
    log.end()
    assert shown == ["one", "two", "three", "four"]


class Jobs:
    """A cluster whose log flows for a while, then breaks once, and whose job is over afterwards."""

    def __init__(self, clock: list[float]) -> None:
        self.client, self._clock, self._asked = self, clock, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self._clock[0] += 10 * follow.LOST_SECONDS
        yield "a line\n"

    def details(self, job: str) -> JobDetails:
        self._asked += 1
        if self._asked == 1:
            raise ClusterLost("the connection broke")
        return JobDetails(type="SUBMISSION", submission_id=job, entrypoint="", status=JobStatus.SUCCEEDED)


def test_a_connection_that_breaks_after_hours_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(follow.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(follow.time, "sleep", lambda seconds: None)
    shown: list[str] = []
    assert follow.follow(Jobs(clock), "mine", shown.append, lambda: follow.OnInterrupt.LEAVE) is not None
    assert shown == ["a line"]


class Interrupted(Jobs):
    """A job that runs for ever. The user presses Ctrl-C at the very moment at which a line of it comes."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        yield "a line\n"
        await asyncio.sleep(5)
        yield "Ctrl-C was lost\n"

    def details(self, job: str) -> JobDetails:
        return JobDetails(type="SUBMISSION", submission_id=job, entrypoint="", status=JobStatus.SUCCEEDED)


def test_ctrl_c_is_not_lost_where_a_line_comes_at_the_same_moment() -> None:
    """`asyncio.wait_for` of Python 3.11 forgets a cancellation at the end of what it waits for."""
    shown: list[str] = []
    assert follow.follow(Interrupted([0.0]), "mine", shown.append, lambda: follow.OnInterrupt.LEAVE) is None
    assert shown == ["a line"]


def test_ctrl_c_counts_while_a_cluster_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.time, "sleep", interrupted)
    assert follow.follow(Jobs([0.0]), "mine", lambda line: None, lambda: follow.OnInterrupt.LEAVE) is None


def test_what_ray_writes_into_the_log_is_left_out() -> None:
    shown: list[str] = []
    log = Log(shown.append)
    log.take("2026-11-29 20:19:34,078\tINFO job_manager.py:568 -- Runtime env is setting up.\n")
    log.take("Running entrypoint for job mine: exec python -m raystage_job run mine.yaml\n[0:04] joining\n")
    assert shown == ["[0:04] joining"]


@pytest.mark.parametrize(
    ("state", "code", "message", "status", "said"),
    [
        ("SUCCEEDED", 0, None, 0, "job mine has succeeded"),
        ("FAILED", 2, "last logs", 2, "job mine has failed with exit status 2"),
        ("FAILED", 127, "python: not found", 127, "job mine has failed: the cluster has no such Python; expected its "
         "path in --python"),
        ("FAILED", None, "runtime_env setup failed:\nno space left\n", 1, "job mine has failed: no space left"),
        ("STOPPED", None, None, 130, "job mine was stopped"),
    ],
)  # fmt: skip
def test_how_a_job_ends(state: str, code: int | None, message: str | None, status: int, said: str) -> None:
    job = JobDetails(
        type="SUBMISSION", submission_id="mine", entrypoint="", status=JobStatus(state), driver_exit_code=code,
        message=message,
    )  # fmt: skip
    assert (exit_status(job), ending(job)) == (status, said)
