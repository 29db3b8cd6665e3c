"""`raystage.run` in a process that goes on afterwards: as a script, after an error, after an interrupt."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PATIENCE, RayCluster, Raystage, losses_in, said_until, write_tiny

pytestmark = pytest.mark.end_to_end

SCRIPT = Path(__file__).parents[2] / "jobs/from_python.py"
# On a cluster of its own each time; nothing of one may be left for the next.
STORY = """
import sys
import ray
import raystage
from raystage.errors import NonFiniteLoss

def state():
    return "connected" if ray.is_initialized() else "not connected"

try:
    raystage.run(raystage.load("tiny.yaml", ["training.optimizer.lr=1e20", "name=bad"]), wandb="disabled")
except NonFiniteLoss:
    print("error,", state(), flush=True)
try:
    raystage.run(raystage.load("tiny.yaml", ["training.checkpoint.every=100M"]), wandb="disabled")
except KeyboardInterrupt as interrupt:
    print(f"{interrupt},", state(), flush=True)
report = raystage.run(raystage.load("tiny.yaml", ["training.checkpoint.every=100M"]), wandb="disabled")
print(report.state, state(), *report.curves().loss.map(repr))
"""


def python(raystage: Raystage, *arguments: str | Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=raystage.folder, env=raystage.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_script_that_ships_loads_plans_runs_and_shows(raystage: Raystage) -> None:
    process = python(
        raystage, SCRIPT, write_tiny(raystage.folder), "stages[0].until.steps=6", "stages[1].until.steps=4"
    )
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert output.startswith("small: ")
    report = raystage.report("tiny")
    assert report["savings"]["verdict"] in " ".join(output.split())
    assert repr(round(min(one["loss"] for one in report["stages"][-1]["evaluations"]), 4))[:5] in output
    assert "step 6/6" in errors


@pytest.mark.drill
def test_a_process_goes_on_after_an_error_and_an_interrupt(raystage: Raystage, cluster: RayCluster) -> None:
    calm = losses_in(raystage("run", write_tiny(raystage.folder), "--json", "--store", "calm").stdout)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        raystage.environment.pop(name, None)
    process = python(raystage, "-c", STORY)
    said_until(process, "small] step 0")  # of the first run, which fails
    said_until(process, "small] step 1")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    error, interrupt, done = output.splitlines()
    assert error == "error, not connected"
    assert interrupt == "asked to end, and all is saved, not connected"
    assert done.startswith("FINISHED not connected ")
    assert "from step" in errors
    assert [float(one) for one in done.split()[3:]] == [loss for stage in calm["evaluations"] for loss in stage]
