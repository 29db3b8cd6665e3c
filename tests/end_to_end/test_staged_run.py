"""The product's spine, through the command line, on a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError

from conftest import (
    BIN,
    PATIENCE,
    QUIET,
    RayCluster,
    Raystage,
    losses_in,
    other_ray_processes,
    poison,
    said_until,
    wait_until,
)
from raystage.models.build import build
from raystage.models.shape import ModelShape, flops_per_token
from wandb_reader import read_runs

pytestmark = pytest.mark.end_to_end
REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "jobs/schedules/quickstart.yaml"

# What a run says while it goes: of a stage, or how long it has been starting something.
OURS = re.compile(r"\[(staged|baseline|\d+:\d\d)")

# The quickstart itself, with less to do in each stage.
SHORT = [
    "--set", "training.global_batch_tokens=1024", "--set", "training.evaluate={every: 8K, tokens: 8K}",
    "--set", "training.lr_schedule.warmup=4K", "--set", "stages[0].until.tokens=20K",
    "--set", "stages[1].until.tokens=20K", "--set", "stages[2].until.tokens=20K",
    "--set", "baseline.budgets=[60K]",
]  # fmt: skip


def test_the_quickstart_from_yaml_to_savings(raystage: Raystage) -> None:
    """Three stages and their baselines; the report adds up; W&B has it all; a second run trains nothing."""
    first = raystage("run", QUICKSTART, *SHORT)
    report = raystage.report("quickstart")
    _check_stages(report)
    _check_savings(report)
    _check_wandb(raystage.folder, report)
    folder = raystage.folder / ".raystage/runs/quickstart"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    verdict = report["savings"]["verdict"]
    assert verdict[1:] in (folder / "report.md").read_text()
    assert verdict in " ".join(first.stdout.split())

    again = raystage("run", QUICKSTART, *SHORT, "--json")
    second = json.loads(again.stdout)
    rows = second["stages"] + second["baseline"]["runs"]
    assert {row["state"] for row in rows} == {"REUSED"}
    assert [row["eval_loss"] for row in rows] == [
        row["eval_loss"] for row in report["stages"] + report["baseline"]["runs"]
    ]
    _check_calm(first.stderr)


def _check_stages(report: dict) -> None:
    assert [row["name"] for row in report["stages"]] == ["small", "medium", "full"]
    assert [row["num_layers"] for row in report["stages"]] == [3, 6, 12]
    assert {row["state"] for row in report["stages"]} == {"FINISHED"}
    for row in report["stages"]:
        shape = ModelShape("llama", row["num_layers"], 64, 4, 4, 16, 192, 257, 64)
        assert row["num_params"] == sum(p.numel() for p in build(shape).parameters())
        assert row["tokens"] == 20 * 1024 == row["steps"] * 1024
        body = row["num_params"] - 2 * 257 * 64
        assert flops_per_token(shape) == 6 * (body + 64 * 257) + 12 * row["num_layers"] * 64 * 64
        assert row["flops"] == row["tokens"] * flops_per_token(shape)
        assert row["worker_seconds"] == pytest.approx(2 * row["seconds"])
        assert row["peak_memory_bytes"] > 50e6
        assert 0 < row["eval_loss"] < 6
    assert report["stages"][0]["growth"] is None
    for before, row in zip(report["stages"], report["stages"][1:], strict=False):
        assert row["growth"]["operator"] == "stack"
        certificate = row["growth"]["certificate"]
        assert certificate["eval_loss_before"] == before["eval_loss"]
        assert certificate["eval_loss_after"] != before["eval_loss"]
        assert certificate["max_logit_difference"] > 0


def _check_savings(report: dict) -> None:
    runs, savings = report["baseline"]["runs"], report["savings"]
    assert [run["tokens"] for run in runs] == [59 * 1024]
    assert savings["flops_staged"] == sum(row["flops"] for row in report["stages"])
    assert savings["at_eval_loss"] == report["stages"][-1]["eval_loss"]
    # One budget gives no range to interpolate in: the report says so and prints no figure.
    assert (savings["equal_loss_reached"], savings["compute_saved"], savings["speedup"]) == (False, None, None)
    assert savings["verdict"].startswith("no saving to report")


def _check_wandb(folder: Path, report: dict) -> None:
    runs = read_runs(folder)
    assert sorted(run.job_type for run in runs.values()) == ["baseline", "staged"]
    assert {run.group for run in runs.values()} == {"quickstart"}
    staged = next(run for run in runs.values() if run.job_type == "staged")
    assert staged.summary["savings/verdict"] == report["savings"]["verdict"]
    last = [row for row in staged.history if "eval/loss" in row][-1]
    assert (last["eval/loss"], last["tokens"]) == (report["stages"][-1]["eval_loss"], 60 * 1024)


def _check_calm(errors: str) -> None:
    """What reaches the user is ours: no noise of Ray, DeepSpeed or torch."""
    assert not [line for line in errors.splitlines() if line.strip() and not OURS.match(line)]
    assert "joining the Ray cluster" in errors


@pytest.mark.drill
def test_workers_and_zero_stages_change_between_stages_without_a_jump(raystage: Raystage, tiny: Path) -> None:
    """1 -> 2 -> 3 workers, ZeRO 0 -> 1 -> 3, grown by the identity, on a user's own folder of text."""
    tiny.write_text(
        tiny.read_text().partition("stages:")[0]
        + """stages:
  - {name: one, until: {steps: 12}, model: {num_layers: 1}, training: {workers: 1, zero_stage: 0}}
  - {name: two, until: {steps: 12}, model: {num_layers: 2}, training: {workers: 2, zero_stage: 1},
     grow: {operator: identity}}
  - {name: three, until: {steps: 12}, model: {num_layers: 3}, training: {workers: 3, zero_stage: 3},
     grow: {operator: identity}}
"""
    )
    raystage("run", tiny, "--wandb", "disabled")
    report = raystage.report("tiny")
    assert [(row["num_workers"], row["zero_stage"]) for row in report["stages"]] == [(1, 0), (2, 1), (3, 3)]
    for row in report["stages"][1:]:
        certificate = row["growth"]["certificate"]
        assert certificate["eval_loss_after"] == pytest.approx(certificate["eval_loss_before"], rel=1e-5)
        assert certificate["max_logit_difference"] < 1e-4
    assert not (raystage.folder / "wandb").exists()
    assert report["savings"]["compute_saved"] is None


def test_killed_anywhere_and_started_again_ends_with_the_same_bits(
    raystage: Raystage, tiny: Path, cluster: RayCluster
) -> None:
    """The driver killed within a stage, then a worker as soon as it has grown."""
    calm = raystage("run", tiny, "--wandb", "disabled", "--store", "calm", "--json")
    chaos = ["run", tiny, "--wandb", "disabled", "--store", "chaos", "--json"]
    assert raystage.stop_at("small] step 2", signal.SIGKILL, *chaos) == -signal.SIGKILL

    process, said = raystage.start(*chaos), []
    for line in process.stderr:
        said.append(line)
        if "full] grown" in line and not any("RESTARTING" in one for one in said):
            cluster.workers()[0].kill()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, "".join(said)
    assert sum("RESTARTING" in line for line in said) == 1, "".join(said)
    assert losses_in(output) == losses_in(calm.stdout)


def test_a_cluster_of_the_runs_own_is_closed_to_others_and_a_killed_driver_leaves_nothing_of_it(
    raystage: Raystage, tiny: Path, cluster: RayCluster
) -> None:
    """Where temporary files go to a folder with a long name, and there is no home, too."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        raystage.environment.pop(name, None)
    long = raystage.folder / ("t" * 80)
    long.mkdir()
    raystage.environment |= {"TMPDIR": str(long), "HOME": "/proc/no-home"}
    poison(raystage.folder)
    before = other_ray_processes(cluster)
    process = raystage.start("run", tiny, "--wandb", "disabled")
    said_until(process, "small] step 1")
    all_of_it = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    # Only the workers' rendezvous, for which torch has no choice.
    assert {one.name()[:15] for one in all_of_it if listens_to_all(one)} <= {"ray::RayTrainWo"}
    (address,) = {word for one in all_of_it for word in one.cmdline() if word.startswith("--gcs-address=")}
    with pytest.raises(AuthenticationError):
        GcsClient(address=address.partition("=")[2])
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until(
        lambda: other_ray_processes(cluster) <= before,
        PATIENCE,
        "processes of the dead driver's cluster are still there",
    )
    assert not (raystage.folder / ".raystage/ray").exists()


def listens_to_all(process: psutil.Process) -> bool:
    listening = [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return any(one.laddr.ip.removeprefix("::ffff:") != "127.0.0.1" for one in listening)


@pytest.mark.drill
def test_a_loss_that_explodes_ends_the_run_with_one_clear_line(raystage: Raystage, tiny: Path) -> None:
    failed = raystage("run", tiny, "--wandb", "disabled", "--set", "training.optimizer.lr=1e19", status=1)
    last, to_go_on, log = failed.stderr.splitlines()[-3:]
    assert last.startswith("raystage: stage small: the training loss is nan at step")
    assert "Try a lower training.optimizer.lr" in last
    command = f"raystage run {tiny} --set training.optimizer.lr=1e19 --wandb disabled"
    assert to_go_on == f"raystage: to continue: {command}"
    file = raystage.folder / ".raystage/runs/tiny/run.log"
    assert re.fullmatch(rf"raystage: log: {file}; the workers' logs: /.*", log)
    assert f"failed: {last.removeprefix('raystage: ')}" in file.read_text()
    assert "Traceback" not in failed.stderr
    report = raystage.report("tiny")
    assert (report["state"], report["stages"][0]["state"]) == ("ERRORED", "ERRORED")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.yaml"], "missing.yaml: no such file"),
        (["run", "tiny.yaml", "--set", "stages[1].until.tokns=2M"], "tiny.yaml: stages[1].until.tokns: unknown key"),
        (["plan", "tiny.yaml", "--set", "training.workers=0"], "tiny.yaml: training.workers: found 0"),
        (["report", "nobody"], "no run 'nobody'"),
        (["run", "tiny.yaml", "--address", "127.0.0.1:1"], "--address: no Ray cluster answers at '127.0.0.1:1'"),
        (["run", "tiny.yaml", "--address", "http://127.0.0.1:8265"], "the address that jobs are submitted to"),
    ],
)
def test_wrong_input_is_one_message_and_exit_status_2(
    raystage: Raystage, tiny: Path, arguments: list[str], message: str
) -> None:
    failed = raystage(*arguments, status=2)
    assert failed.stdout == ""
    assert len([line for line in failed.stderr.splitlines() if not OURS.match(line)]) == 1
    assert message in failed.stderr
    assert not (raystage.folder / ".raystage/stages").exists()


def test_ray_job_submit_runs_a_schedule(cluster: RayCluster, tmp_path: Path) -> None:
    """As the README shows it, with a shorter schedule; the store outlives the job."""
    command = [
        BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--",
        sys.executable, "jobs/run.py", "jobs/schedules/quickstart.yaml", *SHORT[:4], "--set", "baseline=null",
        "--set", "training.lr_schedule={kind: constant}",
        "--set", "stages=[{name: small, model: {num_layers: 3}, until: {steps: 4}}]",
        "--store", str(tmp_path / "store"), "--wandb", "disabled",
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    report = json.loads((tmp_path / "store/runs/quickstart/report.json").read_text())
    assert [row["state"] for row in report["stages"]] == ["FINISHED"]
