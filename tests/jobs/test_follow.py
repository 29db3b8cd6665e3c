"""The lines of a job, as they come over connections that break; and how a job has ended."""

from __future__ import annotations

import pytest
from ray.job_submission import JobDetails, JobStatus

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
