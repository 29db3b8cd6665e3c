"""Follows a job: prints what its driver prints, until the job is over or the user has seen enough."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from enum import Enum

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from raystage.errors import ClusterLost
from raystage.jobs.client import Jobs, is_over

# After so much silence the log is opened anew: a connection that is gone may say nothing.
SILENCE_SECONDS = 60.0
# So long a cluster may be out of reach before the job is left to itself.
LOST_SECONDS = 120.0
_RETRY_SECONDS = 2.0
# What Ray writes into a job's log before the job's own lines.
_RAYS_OWN = re.compile(
    r"\S+ \S+\tINFO job_manager\.py:\d+ -- Runtime env is setting up\.|Running entrypoint for job .*"
)

Show = Callable[[str], None]


class OnInterrupt(Enum):
    """What Ctrl-C does to a job that is being followed."""

    STOP = "stop"
    LEAVE = "leave"


class Log:
    """The log of a job, line by line. Every connection sends it from its beginning.

    heard_at: when something of it came last, by the monotonic clock.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._shown = 0
        self._read = 0
        self._rest = ""
        self.heard_at = time.monotonic()

    def begin(self) -> None:
        """A new connection."""
        self._read = 0

    def take(self, text: str) -> None:
        self.heard_at = time.monotonic()
        new = text[max(self._shown - self._read, 0) :]
        self._read += len(text)
        self._shown = max(self._shown, self._read)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._say(line)

    def end(self) -> None:
        """Nothing more will come."""
        rest, self._rest = self._rest, ""
        if rest:
            self._say(rest)

    def _say(self, line: str) -> None:
        if not _RAYS_OWN.fullmatch(line.rstrip("\r")):
            self._show(line)


def follow(jobs: Jobs, job: str, show: Show, ask: Callable[[], OnInterrupt]) -> JobDetails | None:
    """The job once it is over; None if the user leaves it. ask: what is to be done on Ctrl-C. A job that is stopped is
    followed to its end. Raises ClusterLost."""
    log, is_stopping, reached_at = Log(show), False, time.monotonic()
    while True:
        try:
            try:
                asyncio.run(_tail(jobs, job, log))
                details = jobs.details(job)
                reached_at = time.monotonic()
                if is_over(details):
                    log.end()
                    return details
            except ClusterLost:
                if time.monotonic() - max(reached_at, log.heard_at) > LOST_SECONDS:
                    raise
            time.sleep(_RETRY_SECONDS)
        except KeyboardInterrupt:
            if is_stopping or ask() is OnInterrupt.LEAVE:
                return None
            jobs.stop(job)
            is_stopping = True


async def _tail(jobs: Jobs, job: str, log: Log) -> None:
    """Show the log as long as it comes."""
    log.begin()
    lines = jobs.client.tail_job_logs(job)
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):  # `wait_for` may lose a Ctrl-C (Python 3.11)
                text = await anext(lines)
            log.take(text)
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, OSError, RuntimeError):
        return  # whether the job is over, or the cluster out of reach, the caller finds out
    finally:
        await lines.aclose()


def exit_status(job: JobDetails) -> int:
    """The exit status of the driver: 130 where the job was stopped, 1 where the driver never came to run."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 130
    return job.driver_exit_code if job.driver_exit_code and job.driver_exit_code > 0 else 1


def ending(job: JobDetails) -> str:
    """How a job ended, in a sentence; what its driver said itself is not repeated."""
    if job.status == JobStatus.SUCCEEDED:
        return f"job {job.submission_id} has succeeded"
    if job.status == JobStatus.STOPPED:
        return f"job {job.submission_id} was stopped"
    status = exit_status(job)
    if job.driver_exit_code in (126, 127):
        return f"job {job.submission_id} has failed: the cluster has no such Python; expected its path in --python"
    if job.driver_exit_code:
        return f"job {job.submission_id} has failed with exit status {status}"
    lines = [line for line in (job.message or "").splitlines() if line.strip()]
    return f"job {job.submission_id} has failed: {lines[-1].strip() if lines else 'Ray gives no reason'}"
