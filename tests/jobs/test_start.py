"""The program that a job begins with, where the cluster has no raystage, or another one."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from raystage.jobs.submission import job_file, write_start


def started(folder: Path, version: str, *options: str) -> subprocess.CompletedProcess:
    """A job that begins on this machine, with `raystage --help` for a run."""
    write_start(folder, job_file(version, ".", "raystage submit mine.yaml", None))
    command = [sys.executable, *options, "-m", "raystage_job", "--help"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_cluster_with_the_same_raystage_runs_it(tmp_path: Path) -> None:
    done = started(tmp_path, metadata.version("raystage"))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Usage: raystage [OPTIONS] COMMAND [ARGS]...")


def test_a_cluster_with_another_raystage_says_so(tmp_path: Path) -> None:
    done = started(tmp_path, "9.9")
    assert done.returncode == 2
    version = metadata.version("raystage")
    assert done.stderr.startswith(f"raystage: the cluster has raystage {version}; expected 9.9, which has submitted")
    assert "--install" in done.stderr


def test_a_cluster_without_raystage_says_so(tmp_path: Path) -> None:
    done = started(tmp_path, "0.1.0", "-S")  # without installed packages
    assert done.returncode == 2
    assert done.stderr.startswith(f"raystage: the cluster has no raystage for {sys.executable}; expected 0.1.0")
    assert "Traceback" not in done.stderr
