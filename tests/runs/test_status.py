"""`raystage status`: what the driver writes down while it goes, and what is made of it."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from claimants import SPAWN, elsewhere
from factories import make_schedule
from playback import curved_records, play, play_stage
from raystage.cli.main import main
from raystage.errors import StageFailed
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.runs.log import Invocation
from raystage.runs.status import RunStatus, read_status
from raystage.storage.processes import ProcessId, this_process
from raystage.storage.store import Store
from s3_server import S3Server, answers

COMMAND = "raystage run tiny.yaml --name tiny"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def invocation_in(store: Store, process: ProcessId | None = None, name: str = "tiny") -> Invocation:
    return Invocation(
        name, COMMAND, store.run_folder(name), store.folder, None, lambda: "/ray/logs", {"staged": "abc1"},
        process or this_process(),
    )  # fmt: skip


def call(store: Store, *arguments: str, columns: int = 160) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["status", *arguments, "--store", store.folder.uri])


def shown(store: Store, *arguments: str) -> dict | list:
    done = call(store, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def after(seconds: float, store: Store, name: str = "tiny") -> None:
    """As if a run had last said something so long ago."""
    content = read_status(store.run_folder(name))
    store.write_run(name, "status.json", {**content, "updated_at": content["updated_at"] - seconds})


def soon(store: Store, key: str, field: str, value: object) -> None:
    deadline = time.monotonic() + 20
    while {row["key"]: row for row in shown(store, "tiny")["stages"]}[key][field] != value:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- while it goes ------------------------------------------------------------------------------


def test_every_stage_has_its_figures_while_it_is_trained(store: Store, plan: Plan) -> None:
    status, (small, full) = RunStatus(plan, invocation_in(store), write_seconds=0.05), plan.staged.stages
    record = curved_records(plan)[full.key]
    status.waiting(plan.staged, small, "process 4711 on node1, which trains it")
    soon(store, small.key, "waiting_for", "process 4711 on node1, which trains it")
    assert "small waits for process 4711 on node1, which trains it" in call(store, "tiny").stdout
    play_stage(status, plan.staged, small, curved_records(plan)[small.key], reused=True)
    status.stage_started(plan.staged, full, False)
    status.trained(plan.staged, full, record.train[0])
    status.restarted(plan.staged, full, "a worker died")
    status.saved(plan.staged, full, "000000000001000-1c2d")
    status.trained(plan.staged, full, record.train[1])
    status.evaluated(plan.staged, full, record.evaluations[0])
    soon(store, full.key, "eval_loss", record.evaluations[0].loss)
    found = shown(store, "tiny")
    first, second = found["stages"][:2]
    assert (first["state"], first["step"], first["steps"], first["waiting_for"], first["attempts"]) == (
        "REUSED", 8, 8, None, 0)  # fmt: skip
    point = record.train[1]
    assert second == {
        "run": "staged", "name": "full", "key": full.key, "state": "RUNNING", "step": 6, "steps": 12, "tokens": 600,
        "loss": point.loss, "eval_loss": record.evaluations[0].loss, "lr": point.lr,
        "tokens_per_second": point.speed, "seconds_left": 600 / point.speed, "attempts": 1,
        "restarts": 1, "checkpoints": f"{store.folder.uri}/stages/{full.key}/checkpoints",
        "rejections": 0,
        "last_checkpoint": "000000000001000-1c2d", "waiting_for": None, "interrupted_by": None,
    }  # fmt: skip
    assert (found["state"], found["is_alive"], found["note"], found["wandb_run_ids"], found["worker_logs"]) == (
        "RUNNING", True, None, {"staged": "abc1"}, "/ray/logs")  # fmt: skip
    assert ProcessId.from_json(found["process"]) == this_process()
    text = call(store, "tiny").stdout
    for expected in ("full", "RUNNING", "6/12", full.key[:12], "run.log", "/ray/logs", "staged abc1", COMMAND):
        assert expected in text
    assert "6/12" in call(store, "tiny", columns=80).stdout
    status.ended(None)


def test_a_stage_of_several_runs_stands_in_each(store: Store, plan: Plan) -> None:
    others = {stage.key for stage in plan.baselines[1].stages}
    shared = next(stage for stage in plan.baselines[0].stages if stage.key in others)
    status = RunStatus(plan, invocation_in(store), write_seconds=60.0)
    play_stage(status, plan.baselines[0], shared, curved_records(plan)[shared.key])
    status.ended(KeyboardInterrupt())
    rows = [row for row in shown(store, "tiny")["stages"] if row["key"] == shared.key]
    assert len(rows) > 1
    assert {(row["state"], row["step"]) for row in rows} == {("FINISHED", shared.steps)}


def test_a_file_that_takes_long_is_written_less_often(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystage.runs.status.CPU_SHARE", 1e-9)
    status, stage = RunStatus(plan, invocation_in(store), write_seconds=0.001), plan.staged.stages[0]
    status.saved(plan.staged, stage, "000000000001000-1c2d")
    time.sleep(0.1)
    assert shown(store, "tiny")["stages"][0]["last_checkpoint"] is None
    status.ended(None)
    assert shown(store, "tiny")["stages"][0]["last_checkpoint"] == "000000000001000-1c2d"


def test_the_file_is_written_at_most_now_and_then(store: Store, plan: Plan, s3: S3Server) -> None:
    remote = Store(open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}")))
    status = RunStatus(plan, invocation_in(remote), write_seconds=60.0)
    with s3.faults.injected(answers("403 Forbidden", "AccessDenied"), chosen=lambda environ: False) as faults:
        play(status, plan, curved_records(plan))
        assert faults.requests == []
    status.ended(None)
    assert {row["state"] for row in shown(remote, "tiny")["stages"]} == {"FINISHED"}


def test_a_status_that_cannot_be_written_stops_nothing(
    plan: Plan, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}")))
    writes = ("PUT", "POST")
    forbidden = answers("403 Forbidden", "AccessDenied")
    with s3.faults.injected(forbidden, chosen=lambda environ: environ["REQUEST_METHOD"] in writes):
        status = RunStatus(plan, invocation_in(store), write_seconds=0.05)
        time.sleep(0.2)
    status.ended(None)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert shown(store, "tiny")["state"] == "FINISHED"


# --- afterwards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "state", "stage_state", "note"),
    [
        (StageFailed("stage small: no luck"), "ERRORED", "ERRORED", "stage small: no luck"),
        (KeyboardInterrupt(), "ABORTED", "ABORTED", None),
    ],
)
def test_an_end_before_the_end_stands_there(
    store: Store, plan: Plan, error: BaseException, state: str, stage_state: str, note: str | None
) -> None:
    status = RunStatus(plan, invocation_in(store))
    status.stage_started(plan.staged, plan.staged.stages[0], False)
    status.ended(error)
    found = shown(store, "tiny")
    assert (found["state"], found["stages"][0]["state"], found["note"], found["is_alive"]) == (
        state, stage_state, note, None)  # fmt: skip
    assert {row["state"] for row in found["stages"][1:]} == {"NOT_STARTED"}
    assert "SCHEDULING" not in call(store, "tiny").stdout


def test_while_nothing_trains_no_speed_and_no_time_left_are_shown(store: Store, plan: Plan) -> None:
    status, stage = RunStatus(plan, invocation_in(store), write_seconds=0.05), plan.staged.stages[0]
    point = curved_records(plan)[stage.key].train[1]
    status.stage_started(plan.staged, stage, False)
    status.trained(plan.staged, stage, point)
    soon(store, stage.key, "tokens_per_second", point.speed)
    status.waiting(plan.staged, stage, "host3 (10.0.0.3) with worker 1, which does not answer")
    soon(store, stage.key, "tokens_per_second", None)
    found = shown(store, "tiny")
    row = found["stages"][0]
    assert (row["state"], row["seconds_left"], found["seconds_left"]) == ("RUNNING", None, None)
    assert row["waiting_for"] == "host3 (10.0.0.3) with worker 1, which does not answer"
    status.trained(plan.staged, stage, point)
    soon(store, stage.key, "tokens_per_second", point.speed)
    status.interrupted(plan.staged, stage, "node host3 (10.0.0.3) was lost")
    soon(store, stage.key, "state", "RESTARTING")
    found = shown(store, "tiny")
    row = found["stages"][0]
    assert (row["tokens_per_second"], row["seconds_left"], found["seconds_left"]) == (None, None, None)
    assert (row["waiting_for"], row["restarts"]) == (None, 0)
    assert "small: node host3 (10.0.0.3) was lost" in call(store, "tiny").stdout
    status.trained(plan.staged, stage, point)
    soon(store, stage.key, "interrupted_by", None)


def test_attempts_and_restarts_add_up(store: Store, plan: Plan) -> None:
    stage = plan.staged.stages[0]
    for _ in range(2):
        status = RunStatus(plan, invocation_in(store))
        status.stage_started(plan.staged, stage, False)
        status.restarted(plan.staged, stage, "a worker died")
        status.saved(plan.staged, stage, "000000000000300-1c2d")
        status.ended(KeyboardInterrupt())
    row = shown(store, "tiny")["stages"][0]
    assert (row["attempts"], row["restarts"], row["last_checkpoint"]) == (2, 2, "000000000000300-1c2d")


def killed_process() -> ProcessId:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_say_who_and_stay, args=(theirs,))
    process.start()
    name = ours.recv()
    process.kill()
    process.join()
    return name


def _say_who_and_stay(line) -> None:
    line.send(this_process())
    time.sleep(60)


def test_a_driver_that_was_killed_on_this_machine_is_known_to_be_dead(store: Store, plan: Plan) -> None:
    process = killed_process()
    RunStatus(plan, invocation_in(store, process), write_seconds=60.0)
    found = shown(store, "tiny")
    driver = f"the driver on {process.host} (process {process.pid})"
    note = f"{driver} has ended without a message; continue with: {COMMAND}"
    assert (found["state"], found["is_alive"], found["note"]) == ("INTERRUPTED", False, note)
    assert note in call(store, "tiny").stdout
    assert f"tiny: {note}" in call(store).stdout


def test_a_driver_of_another_host_may_be_dead_after_five_minutes(store: Store, plan: Plan) -> None:
    RunStatus(plan, invocation_in(store, elsewhere()), write_seconds=60.0)
    after(240, store)
    assert shown(store, "tiny")["is_alive"] is True
    after(70, store)
    found = shown(store, "tiny")
    assert found["is_alive"] is False
    assert found["note"] == (
        f"no heartbeat for 5 min: the driver on node1 (process 4711) may be dead; continue with: {COMMAND}"
    )


# --- two drivers of one run ---------------------------------------------------------------------


def test_who_waits_for_a_run_of_the_same_name_leaves_its_status_alone(store: Store, plan: Plan) -> None:
    stage = plan.staged.stages[0]
    trains = RunStatus(plan, invocation_in(store, elsewhere(1)), write_seconds=0.05)
    trains.stage_started(plan.staged, stage, False)
    soon(store, stage.key, "attempts", 1)
    waits = RunStatus(plan, invocation_in(store, elsewhere(2)), write_seconds=0.05)
    waits.waiting(plan.staged, stage, "process 4711 on node1, which trains it")
    time.sleep(0.3)
    assert shown(store, "tiny")["process"]["host"] == "node1"
    waits.stage_started(plan.staged, stage, False)
    soon(store, stage.key, "attempts", 2)
    assert shown(store, "tiny")["process"]["host"] == "node2"
    waits.ended(None)


# --- a store ------------------------------------------------------------------------------------


def test_all_runs_the_latest_first(store: Store, plan: Plan) -> None:
    assert call(store).stdout == f"no runs in {store.folder.uri}\n"
    assert shown(store) == []
    for name, seconds in (("old", 300.0), ("new", 10.0), ("older", 9000.0)):
        RunStatus(plan, invocation_in(store, name=name)).ended(None)
        after(seconds, store, name)
    store.write_run("broken", "status.json", {"name": "broken"})
    assert [run["name"] for run in shown(store)] == ["new", "old", "older", "broken"]
    lines = [line.split()[0] for line in call(store).stdout.splitlines()[1:]]
    assert lines == ["new", "old", "older", "broken", "broken:"]


def test_a_run_of_a_version_that_kept_no_status_has_its_states(store: Store, plan: Plan) -> None:
    rows = [
        {"run": "staged", "name": stage.name, "key": stage.key, "state": "FINISHED"} for stage in plan.staged.stages
    ]
    store.write_run("tiny", "run.json", {"name": "tiny", "state": "FINISHED", "updated_at": 1.0, "wandb_run_ids": {},
                                         "schedule": {}, "stages": rows})  # fmt: skip
    found = shown(store, "tiny")
    assert [(row["name"], row["state"], row["step"]) for row in found["stages"]] == [
        ("small", "FINISHED", None), ("full", "FINISHED", None)]  # fmt: skip
    assert "FINISHED" in call(store, "tiny").stdout


def test_an_unknown_run_is_an_input_error_with_the_known_ones(store: Store, plan: Plan) -> None:
    RunStatus(plan, invocation_in(store)).ended(None)
    done = call(store, "tinny")
    assert done.exit_code == 2
    assert done.output == f"raystage: NAME: no run 'tinny' in {store.folder.uri}; known runs: tiny\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"state": "RUNNING"}', b'{"state": "RUNNING", "updated_at": "now", "stages": []}',
     b'{"state": "RUNNING", "updated_at": 1.0, "stages": [{"run": "staged"}]}', b"\xff"],
)  # fmt: skip
def test_a_damaged_file_is_one_message_and_is_replaced_by_the_next_attempt(
    store: Store, plan: Plan, content: bytes
) -> None:
    store.run_folder("tiny").write_whole("status.json", content)
    done = call(store, "tiny")
    assert done.exit_code == 1
    assert done.output.startswith(f"raystage: {store.folder.uri}/runs/tiny/status.json: damaged (")
    assert done.output.count("\n") == 1
    RunStatus(plan, invocation_in(store)).ended(None)
    assert shown(store, "tiny")["state"] == "FINISHED"


ROW = {"run": "staged", "name": "full", "key": "a" * 64, "state": "RUNNING"}


@pytest.mark.parametrize(
    "damage",
    [
        {"seconds_left": "x"}, {"seconds_left": 10**400}, {"kind": "sweep"},
        {"kind": "sweep", "trials": [], "best": {"value": 1}},
        {"stages": [{**ROW, "tokens_per_second": "x"}]}, {"stages": [{**ROW, "steps": {}, "loss": []}]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("file", ["status.json", "run.json"])
def test_a_file_with_what_no_run_has_is_named_and_hides_no_other_run(
    store: Store, plan: Plan, file: str, damage: dict
) -> None:
    RunStatus(plan, invocation_in(store, name="fine")).ended(None)
    content = {"state": "RUNNING", "updated_at": time.time(), "stages": [ROW], "store": "x"} | damage
    store.write_run("broken", file, content)
    done = call(store, "broken")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert f"{store.folder.uri}/runs/broken" in done.output
    assert "damaged (" in done.output
    states = {one["name"]: one["state"] for one in shown(store)}
    assert states == {"broken": "damaged", "fine": "FINISHED"}
    assert "fine" in call(store).output


def test_a_status_without_its_store_is_shown_without_it(store: Store) -> None:
    store.write_run("old", "status.json", {"state": "RUNNING", "updated_at": 1.0, "stages": [ROW]})
    done = call(store, "old")
    assert done.exit_code == 0
    assert "checkpoints:" not in done.output
