"""The driver of a job outlives its entrypoint, and is told of its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ENTRYPOINT = "import sys; from raystage.jobs.apart import run_apart; sys.exit(run_apart(sys.argv[1:]))"
# Says that it is there, and at the first signal how many it gets; a save that takes a moment, and not less than the
# entrypoint lives.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
folder, got = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
(folder / "pid").write_text(str(os.getpid()))
(folder / "ready").touch()
while not got:
    time.sleep(0.01)
while not (folder / "may end").exists():
    time.sleep(0.01)
(folder / "saving").write_text(str(len(got)))
(folder / "saving").rename(folder / "saved")
sys.exit(130)
"""
SECONDS = 60


def wait_until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.fixture
def entrypoint(tmp_path: Path):
    command = [sys.executable, "-c", ENTRYPOINT, sys.executable, "-c", DRIVER, str(tmp_path)]
    with subprocess.Popen(command) as process:
        wait_until((tmp_path / "ready").exists, SECONDS, "the driver does not start")
        yield process
        (tmp_path / "may end").touch()


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_exit_status_is_the_drivers(status: int) -> None:
    command = [sys.executable, "-c", ENTRYPOINT, sys.executable, "-c", f"raise SystemExit({status})"]
    assert subprocess.run(command, check=False, timeout=SECONDS).returncode == status


def test_a_driver_that_is_killed_ends_as_in_a_shell() -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    command = [sys.executable, "-c", ENTRYPOINT, sys.executable, "-c", killed]
    assert subprocess.run(command, check=False, timeout=SECONDS).returncode == 137


def test_a_signal_is_passed_on_and_waited_for(entrypoint: subprocess.Popen, tmp_path: Path) -> None:
    entrypoint.send_signal(signal.SIGTERM)
    (tmp_path / "may end").touch()
    assert entrypoint.wait(SECONDS) == 130
    assert (tmp_path / "saved").read_text() == "1"


def test_what_kills_the_entrypoint_and_all_that_descends_from_it_lets_the_driver_save(
    entrypoint: subprocess.Popen, tmp_path: Path
) -> None:
    """As Ray does it: a signal to every descendant, and SIGKILL when its patience is over."""
    doomed = [psutil.Process(entrypoint.pid), *psutil.Process(entrypoint.pid).children(recursive=True)]
    driver = psutil.Process(int((tmp_path / "pid").read_text()))
    assert driver not in doomed
    for process in doomed:
        process.send_signal(signal.SIGTERM)
    for process in doomed:
        process.kill()
    entrypoint.wait(SECONDS)
    (tmp_path / "may end").touch()
    wait_until((tmp_path / "saved").exists, SECONDS, "the driver did not save")
    assert (tmp_path / "saved").read_text() == "1"  # a second signal would have cut the save short


def test_an_entrypoint_that_is_gone_without_a_signal_counts_as_one(
    entrypoint: subprocess.Popen, tmp_path: Path
) -> None:
    entrypoint.kill()
    entrypoint.wait(SECONDS)
    (tmp_path / "may end").touch()
    wait_until((tmp_path / "saved").exists, SECONDS, "the driver was not told")
