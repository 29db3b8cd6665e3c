"""Sweeps through the command line, on a real cluster: shared, killed, failing, searched and stopped early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from conftest import BIN, PATIENCE, QUIET, RayCluster, Raystage, wait_until
from raystage.files.filesystem import open_folder
from raystage.storage.lease import Leases
from raystage.sweeps.config import load
from raystage.sweeps.trials import SweepPlan, plan_sweep
from wandb_reader import OfflineRun, read_run, run_files

pytestmark = pytest.mark.end_to_end

SCHEDULE = """
name: tiny
data: {source: text, path: text, validation_fraction: 0.3}
model: {family: llama, hidden_size: 32, num_heads: 2, ffn_size: 64, context_length: 32}
training:
  workers: 1
  global_batch_tokens: 512
  optimizer: {lr: 3e-3}
  evaluate: {every: 2K, tokens: 2K}
  checkpoint: {every: 100K}
  lr_schedule: {kind: constant, warmup: 1K}
stages:
  - {name: small, model: {num_layers: 1}, until: {tokens: 6K}}
  - {name: full,  model: {num_layers: 2}, until: {tokens: 4K}, grow: {operator: stack}}
"""
RUN = Path(__file__).parents[2] / "jobs/run.py"
MARK = "RAYSTAGE_TESTS_STARTED_IN"
GRID = """
stages[0].until.tokens: {grid: [4K, 6K]}
stages[1].grow.operator: {grid: [stack, identity]}
"""


def write_sweep(folder: Path, space: str, **sections: Any) -> Path:
    """A sweep over two stages of 12 and 8 steps, on a text that lies beside it."""
    (folder / "text").mkdir()
    for number, part in enumerate(Path(json.__file__).with_name("decoder.py").read_text().split("\n\n")):
        (folder / f"text/{number}.txt").write_text(part * 5)
    (folder / "tiny.yaml").write_text(SCHEDULE)
    search = {"max_concurrent": 2, **sections.pop("search", {})}
    content = {"name": "hunt", "schedule": "tiny.yaml", "space": yaml.safe_load(space), "search": search, **sections}
    path = folder / "hunt.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@dataclass(frozen=True)
class Swept:
    """A grid of four trials, killed with its cluster after the first of them and gone on with on another cluster.

    early: the report as it was then. records: by path, when each stage that was finished at the kill was written.
    said: by the second start.
    """

    raystage: Raystage
    file: Path
    plan: SweepPlan
    early: dict[str, Any]
    report: dict[str, Any]
    records: dict[Path, int]
    said: str

    @property
    def folder(self) -> Path:
        return self.raystage.folder / ".raystage/runs/hunt"


@pytest.fixture(scope="module")
def swept(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    raystage = Raystage(tmp_path_factory.mktemp("swept"), cluster.address)
    file = write_sweep(raystage.folder, GRID)
    address = raystage.environment.pop("RAY_ADDRESS")
    raystage.environment[MARK] = str(raystage.folder)
    noted = raystage.folder / ".raystage/runs/hunt/report.json"
    killed = raystage.stop_at(": done", signal.SIGKILL, "sweep", file.name, once=noted.exists)
    assert killed == -signal.SIGKILL
    early = json.loads(noted.read_text())
    wait_until(lambda: not marked(raystage), PATIENCE, "a killed sweep left processes of its cluster")
    raystage.environment["RAY_ADDRESS"] = address
    records = times(raystage)
    done = raystage("sweep", file.name, "--json")
    return Swept(raystage, file, plan_sweep(load(file)), early, json.loads(done.stdout), records, done.stderr)


def marked(raystage: Raystage) -> list[int]:
    """The ids of all living processes that a command of this folder started, by what they have in their environment."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        environment = process.info["environ"] or {}
        if environment.get(MARK) == str(raystage.folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def processes(cluster: RayCluster) -> list[str]:
    """What of a sweep lives on the cluster: the actors of trials, and of their Train runs."""
    found = []
    for process in cluster.process.children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:  # zombies, too
            continue
    signs = ("RayTrainWorker", "TrainController", "_trainable", "ImplicitFunc")
    return [command for command in found if any(sign in command for sign in signs)]


def times(raystage: Raystage) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in raystage.folder.glob(".raystage/stages/*/record.json")}


def test_a_sweep_trains_what_its_plan_said_and_claims_the_rest(swept: Swept) -> None:
    search, tree = swept.report["search"], swept.plan.tree
    assert (search["flops_spent"], search["flops_claimed"]) == (tree.flops_shared, tree.flops_apart)
    assert search["stages_trained"] == len(tree.nodes) == len(times(swept.raystage))
    assert search["flops_spent"] < search["flops_claimed"]
    assert [(row["state"], row["error"]) for row in swept.report["trials"]] == [("FINISHED", None)] * 4
    assert sorted(row["rank"] for row in swept.report["trials"]) == [1, 2, 3, 4]


def test_a_sweep_can_be_looked_at_while_it_goes_on(swept: Swept) -> None:
    assert swept.early["state"] == "RUNNING"
    first, *rest = sorted(swept.early["trials"], key=lambda row: row["state"])
    assert (first["state"], first["rank"]) == ("FINISHED", 1)
    assert {row["state"] for row in rest} <= {"RUNNING"}
    assert 0 < swept.early["search"]["flops_spent"] < swept.report["search"]["flops_spent"]


def test_what_was_finished_before_the_kill_was_not_trained_again(swept: Swept) -> None:
    assert 2 <= len(swept.records) < len(swept.plan.tree.nodes)
    now = times(swept.raystage)
    assert {path: now[path] for path in swept.records} == swept.records


def test_a_trial_ends_with_the_bits_of_its_schedule_run_alone(swept: Swept) -> None:
    """The last one: its first stage goes on from a shorter one's end."""
    trial = swept.plan.trials[3]
    assert swept.plan.tree.nodes[trial.plan.staged.stages[0].key].prefix_key is not None
    file = swept.raystage.folder / "alone.yaml"
    file.write_text(yaml.safe_dump(trial.content))
    alone = json.loads(swept.raystage("run", file, "--store", "alone", "--wandb", "disabled", "--json").stdout)
    shared = swept.raystage.report("hunt-3")
    assert [stage["donor"] for stage in alone["stages"]] == [None, None]
    assert shared["stages"][0]["donor"] is not None
    for one, other in zip(shared["stages"], alone["stages"], strict=True):
        assert [point["loss"] for point in one["evaluations"]] == [point["loss"] for point in other["evaluations"]]
    assert swept.report["trials"][3]["eval_loss"] == alone["stages"][-1]["eval_loss"]


def test_a_second_start_trains_nothing_and_says_the_same(swept: Swept) -> None:
    before = times(swept.raystage)
    again = json.loads(swept.raystage("sweep", swept.file.name, "--json").stdout)
    assert times(swept.raystage) == before
    for report in (swept.report, again):
        report["search"].pop("seconds", None)
    assert again == swept.report
    assert swept.raystage.report("hunt")["trials"] == swept.report["trials"]


def test_the_best_schedule_is_a_file_that_plans_as_the_best_trial(swept: Swept) -> None:
    best = swept.report["best"]["number"]
    planned = json.loads(swept.raystage("plan", swept.folder / "best.yaml", "--json").stdout)
    keys = [stage["key"] for stage in planned["stages"]]
    assert keys == [stage.key for stage in swept.plan.trials[best].plan.staged.stages]
    assert f"Trial {best} is best" in (swept.folder / "report.md").read_text()


def test_every_trial_is_a_run_of_one_group_in_wandb(swept: Swept) -> None:
    """With the values of the space in its config, where W&B's sweep views look for them."""
    runs: dict[str, OfflineRun] = {}
    for run in map(read_run, run_files(swept.raystage.folder)):
        if run.exit_code == 0:
            runs[run.name] = run
    assert {run.group for run in runs.values()} == {"hunt"}
    assert {run.job_type for run in runs.values()} == {"trial"}
    assert len(runs) == 4
    operators = [run.config["stages[1].grow.operator"] for run in runs.values()]
    assert sorted(operators) == ["identity", "identity", "stack", "stack"]


@pytest.mark.drill
def test_an_interrupted_sweep_says_how_far_it_came_and_goes_on(raystage: Raystage) -> None:
    file = write_sweep(raystage.folder, "stages[1].grow.operator: {grid: [stack, identity, interleave]}")
    command = ["sweep", file.name, "--wandb", "disabled", "--set", "search.max_concurrent=1"]
    assert raystage.stop_at(": done", signal.SIGINT, *command) == 130
    stopped, at_stop = raystage.report("hunt"), times(raystage)
    assert stopped["state"] == "ABORTED"
    assert [row["state"] for row in stopped["trials"]][:1] == ["FINISHED"]
    assert {row["state"] for row in stopped["trials"][1:]} <= {"ABORTED"}
    done = json.loads(raystage(*command, "--json").stdout)
    assert [row["state"] for row in done["trials"]] == ["FINISHED"] * 3
    assert at_stop.items() <= times(raystage).items()


@pytest.mark.drill
def test_a_sweep_that_is_asked_to_end_has_the_workers_of_its_trials_save_first(raystage: Raystage) -> None:
    """SIGTERM while two train, with checkpoints so far apart that nothing would have been saved."""
    file = write_sweep(raystage.folder, "seed: {grid: [1, 2, 3]}")
    rare, long = "every: 100M", "tokens: 400K"
    schedule = raystage.folder / "tiny.yaml"
    schedule.write_text(SCHEDULE.replace("every: 100K", rare).replace("tokens: 6K", long))

    def both_train() -> bool:
        files = [raystage.folder / f".raystage/runs/hunt-{number}/status.json" for number in (0, 1)]
        return all(file.exists() and json.loads(file.read_text())["stages"][0]["step"] > 20 for file in files)

    command = ["sweep", file.name, "--wandb", "disabled"]
    process = raystage.start(*command)
    wait_until(both_train, PATIENCE, "two trials did not train")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "all is saved; the same command continues" in errors
    saved = [path.parent.name for path in raystage.folder.glob(".raystage/stages/*/checkpoints/*/manifest.json")]
    assert len(saved) == 2
    assert all(20 * 512 <= int(name.split("-")[0]) < 400_000 for name in saved)
    report = json.loads(raystage(*command, "--json").stdout)
    assert [row["state"] for row in report["trials"]] == ["FINISHED"] * 3
    logs = [(raystage.folder / f".raystage/runs/hunt-{number}/run.log").read_text() for number in (0, 1, 2)]
    assert ["continues from step" in log for log in logs] == [True, True, False]


@pytest.mark.drill
def test_a_trial_that_fails_ends_alone(raystage: Raystage) -> None:
    """At an absurd rate the loss is not finite. Two trials need that stage: the second is begun once the first has
    failed, tries by itself and fails too; the third is none the worse."""
    space = """
    stages[0].training.optimizer.lr: {grid: [1e20, 1e-3]}
    stages[1].grow.operator: {grid: [stack, identity], when: {"stages[0].training.optimizer.lr": 1e20}}
    """
    file = write_sweep(raystage.folder, space, search={"max_concurrent": 3})
    done = raystage("sweep", file, "--wandb", "disabled", "--json", status=1)
    report = json.loads(done.stdout)
    *failed, good = report["trials"]
    assert [row["state"] for row in report["trials"]] == ["ERRORED", "ERRORED", "FINISHED"]
    for row in failed:
        assert row["error"].startswith("stage small: the training loss is nan at step")
        assert row["rank"] is None
    assert report["best"]["number"] == good["number"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("raystage: sweep hunt: 2 of its 3 trials failed, the first of them trial 0: stage small")
    logs = [(raystage.folder / f".raystage/runs/hunt-{row['number']}/run.log").read_text() for row in failed]
    assert not any("waiting for process" in log for log in logs)
    assert list(raystage.folder.glob(".raystage/stages/*/leases/*")) == []


@pytest.mark.drill
def test_trials_train_baselines_while_another_driver_has_the_stage_that_they_begin_with(raystage: Raystage) -> None:
    file = write_sweep(raystage.folder, "stages[1].grow.operator: {grid: [stack, identity]}",
                       objective={"metric": "compute_saved"})  # fmt: skip
    tuned = "baseline: {budgets: [8K, 16K], tune: {training.optimizer.lr: [1e-3, 3e-3]}}\n"
    (raystage.folder / "tiny.yaml").write_text(SCHEDULE + tuned)
    plan, stages = plan_sweep(load(file)).trials[0].plan, raystage.folder / ".raystage/stages"
    baselines = [stage.key for run in plan.known_runs() if run.name.startswith("baseline") for stage in run.stages]
    with Leases(open_folder(stages)).acquire(plan.staged.stages[0].key):
        sweep = raystage.start("sweep", file.name, "--wandb", "disabled", "--json")
        finished = lambda: all((stages / key / "record.json").exists() for key in baselines)  # noqa: E731
        wait_until(finished, PATIENCE, "no baseline was trained")
    output, errors = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, errors
    assert [row["state"] for row in json.loads(output)["trials"]] == ["FINISHED"] * 2
    logs = [(raystage.folder / f".raystage/runs/hunt-{number}/run.log").read_text() for number in (0, 1)]
    assert any("stage small (staged 1/2): another driver trains it; meanwhile scratch-" in log for log in logs)
    runs = [raystage.report(f"hunt-{number}")["baseline"]["runs"] for number in (0, 1)]
    of_each = [[(run["key"], run["eval_loss"]) for run in one] for one in runs]
    assert of_each[0] == of_each[1]
    assert list(stages.glob("*/leases/*")) == []


@pytest.mark.drill
def test_optuna_asks_for_paths_only_where_they_count(raystage: Raystage) -> None:
    space = """
    stages[1].grow.operator: {choice: [stack, middle]}
    stages[1].grow.block: {choice: [1], when: {"stages[1].grow.operator": middle}}
    stages[1].training.optimizer.lr: {loguniform: [1e-3, 1e-2]}
    """
    search = {"algorithm": "optuna", "num_trials": 3, "seed": 1}
    report = json.loads(
        raystage("sweep", write_sweep(raystage.folder, space, search=search), "--wandb", "disabled", "--json").stdout
    )
    rows = report["trials"]
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {row["state"] for row in rows} == {"FINISHED"}
    operators = {row["config"]["stages[1].grow.operator"] for row in rows}
    assert operators == {"stack", "middle"}  # by this seed
    for row in rows:
        assert ("stages[1].grow.block" in row["config"]) == (row["config"]["stages[1].grow.operator"] == "middle")


@pytest.mark.drill
def test_asha_stops_what_is_worse_and_leaves_nothing_running(raystage: Raystage, cluster: RayCluster) -> None:
    """The worse trial is stopped at its first evaluation, while its workers train on."""
    space = """
    stages[0].training.optimizer.lr: {grid: [5e-3, 1e-8]}
    stages[0].until.tokens: {grid: [200K]}
    """
    scheduler = {"name": "asha", "grace": "2K", "reduction_factor": 2}
    file = write_sweep(raystage.folder, space, search={"max_concurrent": 1}, scheduler=scheduler)
    done = raystage("sweep", file, "--wandb", "disabled", "--json")
    report, plan = json.loads(done.stdout), plan_sweep(load(file))
    good, bad = report["trials"]
    assert (good["state"], bad["state"], bad["rank"]) == ("FINISHED", "ABORTED", None)
    assert "trial 1: stopped early" in done.stderr
    spent = plan.trials[0].plan.staged.flops + bad["flops"]
    assert report["search"]["flops_spent"] == report["search"]["flops_claimed"] == spent
    small = plan.trials[1].plan.staged.stages[0]
    assert bad["flops"] == small.flops // small.steps * 4  # 2K tokens
    wait_until(lambda: not processes(cluster), PATIENCE, "a trial that was stopped left workers on the cluster")


@pytest.mark.drill
def test_trials_that_were_stopped_leave_their_room_to_others(raystage: Raystage) -> None:
    """Each of the trials needs all CPUs of a local cluster, which has no API server for Ray Train to ask."""
    space = f"""
    stages[0].training.optimizer.lr: {{grid: [5e-3, 1e-8, 2e-8]}}
    stages[0].until.tokens: {{grid: [200K]}}
    training.cpus_per_worker: {{grid: [{os.cpu_count()}]}}
    """
    scheduler = {"name": "asha", "grace": "2K", "reduction_factor": 2}
    file = write_sweep(raystage.folder, space, search={"max_concurrent": 1}, scheduler=scheduler)
    del raystage.environment["RAY_ADDRESS"]
    report = json.loads(raystage("sweep", file, "--wandb", "disabled", "--json").stdout)
    assert [row["state"] for row in report["trials"]] == ["FINISHED", "ABORTED", "ABORTED"]


@pytest.mark.drill
def test_lag_goes_on_with_the_best_after_growth(raystage: Raystage) -> None:
    file = write_sweep(
        raystage.folder, "stages[1].grow.operator: {grid: [stack, identity]}",
        scheduler={"name": "lag", "after_growth": {"tokens": "1K", "keep": 1}},
    )  # fmt: skip
    report = json.loads(raystage("sweep", file, "--wandb", "disabled", "--json").stdout)
    states = {row["state"]: row for row in report["trials"]}
    assert set(states) == {"FINISHED", "ABORTED"}
    kept, dropped = states["FINISHED"], states["ABORTED"]
    assert report["best"]["number"] == kept["number"]
    whole = plan_sweep(load(file)).trials[kept["number"]].plan.staged
    small, full = whole.stages
    step_flops = full.flops // full.steps
    assert dropped["flops"] == small.flops + 2 * step_flops
    assert report["search"]["flops_claimed"] == whole.flops + dropped["flops"]
    assert report["search"]["flops_spent"] == whole.flops + 2 * step_flops


@pytest.mark.drill
def test_ray_job_submit_runs_a_sweep(cluster: RayCluster, tmp_path: Path) -> None:
    """A file with a space is swept by the same script that runs schedules; all that counts outlives the job."""
    (tmp_path / "sent").mkdir()
    file = write_sweep(tmp_path / "sent", "stages[1].grow.operator: {grid: [identity]}")
    command = [
        BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", file.parent, "--",
        sys.executable, RUN, file.name, "--store", tmp_path / "store",
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), env=os.environ | QUIET, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "store/runs/hunt/report.json").read_text())
    assert [row["state"] for row in report["trials"]] == ["FINISHED"]
    assert report["search"]["flops_spent"] == plan_sweep(load(file)).tree.flops_shared
    assert [run.group for run in map(read_run, run_files(tmp_path / "store/runs/hunt"))] == ["hunt"]
