"""Two drivers of one schedule and one store: no stage is trained twice, and none is left when one of them dies."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import PATIENCE, Raystage, wait_until
from raystage.cli.main import main

pytestmark = pytest.mark.end_to_end
STAGES = ["small", "full"]


def follow(raystage: Raystage, tiny: Path, said: list[str]) -> tuple[subprocess.Popen, threading.Thread]:
    """Start a run; what it says on standard error is added to `said`."""
    process = raystage.start("run", tiny, "--wandb", "disabled", "--store", "shared")

    def listen() -> None:
        said.extend(process.stderr)

    thread = threading.Thread(target=listen)
    thread.start()
    return process, thread


def stages_with(said: list[str], text: str) -> list[str]:
    return [match[1] for line in said if (match := re.match(rf"\[staged \d/\d (\w+)\] {text}", line))]


def test_the_same_schedule_started_twice_at_once_trains_each_stage_once(raystage: Raystage, tiny: Path) -> None:
    heard: list[list[str]] = [[], []]
    drivers = [follow(raystage, tiny, said) for said in heard]
    for process, thread in drivers:
        thread.join(PATIENCE)
        process.communicate(timeout=PATIENCE)
    assert [process.returncode for process, _ in drivers] == [0, 0], heard
    trained = [stages_with(said, r"\d layers?") for said in heard]
    assert sorted(trained[0] + trained[1], reverse=True) == STAGES
    assert sorted(stages_with(heard[0], "FINISHED") + stages_with(heard[1], "FINISHED"), reverse=True) == STAGES
    for own, other in zip(heard, reversed(heard), strict=True):
        assert stages_with(own, "(FINISHED|REUSED): eval loss") == STAGES
        assert losses(own) == losses(other)
    assert any(stages_with(said, "waiting for process") for said in heard)


def losses(said: list[str]) -> list[str]:
    """'eval loss 3.1 after 0:12 of training', as both tell of it."""
    return [match[1] for line in said if (match := re.search(r"(?:FINISHED|REUSED): (.*)", line))]


def test_when_one_of_two_drivers_is_killed_the_other_takes_over(raystage: Raystage, tiny: Path) -> None:
    said: list[str] = []
    tiny.write_text(tiny.read_text().replace("until: {steps: 90}}\n", "until: {steps: 300}}\n"))
    killed = raystage.start("run", tiny, "--wandb", "disabled", "--store", "shared")
    other = None
    for line in killed.stderr:
        if other is None and "small] 1 layer," in line:
            other, thread = follow(raystage, tiny, said)
        if "small] step 4" in line:
            wait_until(lambda: stages_with(said, "waiting for process"), PATIENCE, "the other driver does not wait")
            check_live_status(raystage, killed.pid)
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    thread.join(PATIENCE)
    other.communicate(timeout=PATIENCE)
    assert other.returncode == 0, said
    assert stages_with(said, "waiting for process") == ["small"], said
    assert f"waiting for process {killed.pid} on" in "".join(said)
    assert stages_with(said, r"\d layers?") == stages_with(said, "FINISHED") == STAGES
    assert raystage.report_in("shared", "tiny")["state"] == "FINISHED"
    status = status_of(raystage)
    assert (status["state"], status["is_alive"], status["process"]["pid"]) == ("FINISHED", None, other.pid)
    assert [(row["step"], row["attempts"]) for row in status["stages"]] == [(300, 2), (90, 1)]
    log = (raystage.folder / "shared/runs/tiny/run.log").read_text()
    assert re.findall(r"\[(\d+)\] stage (\w+) \(staged ./2\): training begins", log) == [
        (str(killed.pid), "small"), (str(other.pid), "small"), (str(other.pid), "full")]  # fmt: skip
    assert log.count("saved checkpoint") >= 5
    assert log.splitlines()[-1].endswith("/shared/runs/tiny/report.md")


def check_live_status(raystage: Raystage, pid: int) -> None:
    """The second driver, which waits, leaves the status to the one that trains, and writes it once a second or so."""
    wait_until(lambda: status_of(raystage)["stages"][0]["step"] > 0, PATIENCE, "the status has no step")
    status = status_of(raystage)
    first, second = status["stages"]
    assert (status["state"], status["is_alive"], status["process"]["pid"]) == ("RUNNING", True, pid)
    assert (first["state"], first["steps"], first["attempts"], second["state"]) == ("RUNNING", 300, 1, "SCHEDULING")
    assert 0 < first["step"] < 300
    assert first["seconds_left"] > 0
    assert Path(status["log"]).exists()
    assert Path(status["worker_logs"]).is_dir()
    assert "RUNNING" in raystage_status(raystage)


def status_of(raystage: Raystage) -> dict:
    return json.loads(raystage_status(raystage, "tiny", "--json"))


def raystage_status(raystage: Raystage, *arguments: str) -> str:
    """Within this process: a new one would take so long to start that the stage is over."""
    done = CliRunner().invoke(main, ["status", *arguments, "--store", str(raystage.folder / "shared")])
    assert done.exit_code == 0, done.output
    return done.stdout
