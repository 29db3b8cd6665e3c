"""The log of a run: what the driver did, line by line, on a disk and on an object store."""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path

import pytest

from factories import make_schedule
from playback import curved_records, play
from raystage.errors import InputError, StageFailed
from raystage.files.filesystem import Folder, open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.runs.log import Invocation, LogFile, RunLog, next_steps, run_command
from s3_server import S3Server, answers

COMMAND = "raystage run tiny.yaml --name tiny"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text"))


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "store")


def invocation_in(store: Folder) -> Invocation:
    return Invocation("tiny", COMMAND, store / "runs/tiny", store, worker_logs=lambda: "/ray/logs")


def log_in(store: Folder, upload_seconds: float = 60.0) -> RunLog:
    invocation = invocation_in(store)
    return RunLog(invocation, LogFile(invocation.folder, upload_seconds))


def lines_in(store: Folder) -> list[str]:
    """Without their time and process."""
    lines = (store / "runs/tiny").read("run.log").decode().splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} \[\d+\] ")
    assert all(stamp.match(line) for line in lines)
    return [stamp.sub("", line, count=1) for line in lines]


def test_every_decision_is_a_line(store: Folder, plan: Plan) -> None:
    log, (small, full) = log_in(store), plan.staged.stages
    records = curved_records(plan)
    log.run_started(plan.staged)
    log.waiting(plan.staged, small, "free resources for 2 workers")
    log.stage_started(plan.staged, small, True)
    log.stage_finished(plan.staged, small, records[small.key], True)
    log.stage_started(plan.staged, full, False)
    log.grown(plan.staged, full, records[full.key].growth)
    log.saved(plan.staged, full, "000000000001000-1c2d")
    log.noted(plan.staged, full, "node host4 was lost")
    log.interrupted(plan.staged, full, "node host3 was lost")
    log.restarted(plan.staged, full, "the workers were started again, from step 3")
    log.stage_finished(plan.staged, full, records[full.key], False)
    log.run_finished(plan.staged, ())
    log.ended(None)
    said = lines_in(store)
    expected = [
        rf"started: raystage \S+, process \d+ on \S+, store {store.uri}, on a Ray cluster of its own",
        f"the command: {COMMAND}",
        "run staged: small, full",
        r"stage small \(staged 1/2\): waiting for free resources for 2 workers",
        rf"stage small \(staged 1/2\): reused: eval loss \d.* 800 tokens, .*{store.uri}/stages/{small.key}/ch.*",
        r"stage full \(staged 2/2\): training begins: 4 layers, .*",
        "the workers' logs are in /ray/logs",
        r"stage full \(staged 2/2\): grown by stack in .*",
        r"stage full \(staged 2/2\): saved checkpoint 000000000001000-1c2d",
        r"stage full \(staged 2/2\): node host4 was lost",
        r"stage full \(staged 2/2\): node host3 was lost",
        r"stage full \(staged 2/2\): the workers were started again, from step 3",
        r"stage full \(staged 2/2\): finished: eval loss .*",
        "run staged: finished",
        "finished",
        f"the report: {store.uri}/runs/tiny/report.md",
    ]
    assert len(said) == len(expected), said
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_what_was_reused_did_not_grow_now(store: Folder, plan: Plan) -> None:
    records = curved_records(plan)
    play(log_in(store), plan, records, reused=records)
    assert not [line for line in lines_in(store) if "grown" in line or "begins" in line]


def test_a_second_invocation_appends_below_the_first(store: Folder, plan: Plan) -> None:
    log_in(store).ended(KeyboardInterrupt())
    first = lines_in(store)
    log_in(store).ended(StageFailed("stage small: it is\nnot well"))
    assert lines_in(store)[: len(first)] == first
    second = lines_in(store)[len(first) :]
    assert first[-3:] == [
        "interrupted",
        f"to continue: {COMMAND}",
        f"log: {store.uri}/runs/tiny/run.log; the workers' logs: /ray/logs",
    ]
    assert second[0] == "a run of this name was started before: the lines above are of earlier starts"
    assert second[-3:-1] == ["failed: stage small: it is not well", f"to continue: {COMMAND}"]


def test_on_an_object_store_lines_come_now_and_then_and_all_at_the_end(s3: S3Server, plan: Plan) -> None:
    store = open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))
    log = log_in(store, upload_seconds=0.2)
    deadline = time.monotonic() + 20
    while (store / "runs/tiny").size_of("run.log") is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log.run_started(plan.staged)
    log.ended(None)
    log_in(store).ended(None)
    said = lines_in(store)
    assert sum(line.startswith("started:") for line in said) == 2
    assert said.index("run staged: small, full") < said.index("finished")
    assert said[-1].startswith("the report: s3://bucket/")
    assert said[-1].split("?")[0].endswith("/runs/tiny/report.md")


def test_a_log_that_cannot_be_written_stops_nothing_and_is_written_later(
    s3: S3Server, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))
    file = LogFile(store / "runs/tiny", upload_seconds=60.0)
    with s3.faults.injected(answers("403 Forbidden", "AccessDenied")):
        for line in ("one", "two"):
            file.write(line)
            file.flush()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    file.write("three")
    file.close()
    assert (store / "runs/tiny").read("run.log") == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("error", [StageFailed("it failed"), KeyboardInterrupt(), ZeroDivisionError("no one's fault")])
def test_after_an_error_it_is_said_what_to_do_next(store: Folder, error: BaseException) -> None:
    assert next_steps(invocation_in(store), error) == [
        f"to continue: {COMMAND}",
        f"log: {store.uri}/runs/tiny/run.log; the workers' logs: /ray/logs",
    ]


def test_wrong_input_says_itself_what_would_be_right(store: Folder) -> None:
    assert next_steps(invocation_in(store), InputError("found 0; expected 1")) == []
    assert next_steps(invocation_in(store), None) == [f"log: {store.uri}/runs/tiny/run.log"]


def test_the_command_to_go_on_with_can_be_pasted_into_a_shell() -> None:
    assert run_command("a.yaml") == "raystage run a.yaml"
    assert run_command("my file.yaml", ("evaluate={every: 8K}",), "s3://b?x=1&y=2", "mine", "auto", "disabled") == (
        "raystage run 'my file.yaml' --set 'evaluate={every: 8K}' --store 's3://b?x=1&y=2' --name mine "
        "--address auto --wandb disabled"
    )
    assert run_command("a.yaml", wandb_mode="offline") == "raystage run a.yaml --wandb offline"  # over WANDB_MODE
