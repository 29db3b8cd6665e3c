"""Standard output that cannot be written to, as of a full disk, and readers that leave early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
QUICKSTART = Path(__file__).parents[2] / "jobs/schedules/quickstart.yaml"

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
commands = pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["plan", QUICKSTART, "--json"], ["store", "list"], ["status"]], ids=str
)


@commands
def test_a_full_disk_is_one_line(command: list, tmp_path: Path) -> None:
    (tmp_path / ".raystage").mkdir()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BIN / "raystage", *command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "raystage: standard output cannot be written to (No space left on device)\n"


@commands
def test_a_reader_that_has_left_is_no_news(command: list, tmp_path: Path) -> None:
    (tmp_path / ".raystage").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([BIN / "raystage", *command], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_messages_that_cannot_be_written_change_no_exit_status(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([BIN / "raystage", "plan", "none.yaml"], cwd=tmp_path, stderr=full)
    assert done.returncode == 2
