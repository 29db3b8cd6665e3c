"""`raystage doctor`: every check in its good case and in its bad one, as far as this machine can be made bad."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from packaging.requirements import Requirement

from raystage.cli.main import main
from raystage.files.filesystem import open_folder
from raystage.tools import machine_check
from raystage.tools.doctor_cluster import judge_node
from raystage.tools.findings import Finding
from raystage.tools.machine_check import check_devices, check_shared_memory, check_store, check_token, check_wandb
from raystage.tools.node_agent import NodeAgent, NodeFacts
from raystage.tools.versions import (
    CONSTRAINTS,
    SHOWN,
    check_packages,
    check_versions,
    import_problem,
    judge_package,
    judge_python,
    read_constraints,
)
from s3_server import BUCKET, S3Server

HERE = NodeFacts("head", "3.11.7", {"ray": "2.60.0", "torch": "2.13.0+cpu"})
FAR_TOO_MUCH = 2**62


def states(findings: object) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


# --- versions ---------------------------------------------------------------------------------


def test_this_environment_is_fit() -> None:
    findings = list(check_versions())
    assert not [finding for finding in findings if finding.is_failure]
    assert {finding.check for finding in findings} >= {"Python", *SHOWN}


@pytest.mark.parametrize(("version", "state"), [("3.10.14", "FAILED"), ("3.11.0", "ok"), ("3.13.1", "ok")])
def test_python(version: str, state: str) -> None:
    assert judge_python(version, ">=3.11").state == state


@pytest.mark.parametrize(
    ("installed", "tested", "state", "found"),
    [
        (None, "2.60.0", "FAILED", "not installed"),
        ("2.59.1", "2.60.0", "FAILED", "2.59.1, where raystage needs >=2.60"),
        ("2.61.0", "2.60.0", "warning", "2.61.0; raystage is tested with 2.60.0"),
        ("2.60.0", "2.60.0", "ok", "2.60.0"),
        ("2.60.0+cpu", "2.60.0", "ok", "2.60.0+cpu"),
        ("2.61.0", None, "ok", "2.61.0"),
    ],
)
def test_a_package(installed: str | None, tested: str | None, state: str, found: str) -> None:
    finding = judge_package(Requirement("ray[train]>=2.60"), installed, tested)
    assert (finding.state, finding.found) == (state, found)
    assert ("ray" in finding.advice) == (state == "FAILED")


def test_only_what_is_wrong_is_said_of_packages_nobody_asks_after() -> None:
    asked = ["click>=8", "torch>=2", "raystage-has-no-such-package>=1", 'pytest>=9000; extra == "test"']
    assert states(check_packages(asked, {})) == {"torch": "ok", "raystage-has-no-such-package": "FAILED"}


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_problem("half_installed") == "OSError: libcudart.so.12: cannot open shared object file"
    assert import_problem("json") is None


def test_the_tested_versions_are_those_of_the_repository(tmp_path: Path) -> None:
    assert read_constraints(CONSTRAINTS).keys() >= set(SHOWN)
    assert read_constraints(tmp_path / "missing.txt") == {}


# --- this machine -----------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu_is_no_fault() -> None:
    (finding,) = check_devices()
    assert finding.found.startswith("none; stages train on ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="has no GPU")
def test_a_gpu_is_named_and_computes() -> None:
    first = check_devices()[0]
    assert (first.check, first.state) == ("GPU 0", "ok")
    assert torch.cuda.get_device_name(0) in first.found


def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path, 0).state == "ok"
    assert check_shared_memory(tmp_path / "missing").found == f"no {tmp_path / 'missing'} on this system"
    small = check_shared_memory(tmp_path, FAR_TOO_MUCH)
    assert small.state == "warning"
    assert "--shm-size" in small.advice


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "used" / "stages").mkdir(parents=True)
    for name in ("new/er", "used"):
        assert states(check_store(str(tmp_path / name), 0)) == {"store": "ok", "disk": "ok"}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["used", "used/stages"]


@pytest.mark.parametrize("place", ["file/store", "/proc/store"])
def test_a_store_that_cannot_be_written_to(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (finding,) = check_store(str(tmp_path / place))
    assert finding.state == "FAILED"
    assert f"{tmp_path / place}: cannot be made" in finding.found


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    assert states(check_store(str(tmp_path), FAR_TOO_MUCH)) == {"store": "ok", "disk": "warning"}


def test_a_store_whose_server_is_gone_is_waited_for_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the call that does not return is a stand-in: a file system that hangs would outlive the test."""
    answers = threading.Event()

    @contextlib.contextmanager
    def waiting(folder: object) -> Iterator[tuple[str, float]]:
        answers.wait()
        yield "mark", 0.0

    monkeypatch.setattr(machine_check, "mark_in", waiting)
    (finding,) = check_store(str(tmp_path), 0, limit_seconds=0.1)
    answers.set()
    assert (finding.state, finding.found) == ("FAILED", f"{tmp_path}: no answer within 0.1 s")


def test_a_store_on_s3(s3: S3Server) -> None:
    assert states(check_store(s3.uri(f"{BUCKET}/doctor"))) == {"store": "ok"}
    assert open_folder(s3.uri(f"{BUCKET}/doctor")).files() == []
    (missing,) = check_store(s3.uri("no-such-bucket/doctor"))
    assert (missing.state, "no bucket" in missing.found) == ("FAILED", True)


def test_wandbs_key_is_found_and_never_shown(tmp_path: Path) -> None:
    secret = "0123456789" * 4
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {secret}\n")
    found = {
        "none": check_wandb({}, tmp_path / "elsewhere"),
        "file": check_wandb({}, tmp_path),
        "other server": check_wandb({"WANDB_BASE_URL": "https://wandb.example.org"}, tmp_path),
        "named file": check_wandb({"NETRC": str(tmp_path / ".netrc")}, tmp_path / "elsewhere"),
        "environment": check_wandb({"WANDB_API_KEY": secret}, tmp_path / "elsewhere"),
    }
    has_key = {case: finding.found.startswith("a key for api.wandb.ai in ") for case, finding in found.items()}
    assert has_key == {
        "none": False, "file": True, "other server": False, "named file": True, "environment": True,
    }  # fmt: skip
    assert not any(secret in str(finding) for finding in found.values())


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    """Ray writes it so."""
    assert list(check_token({}, tmp_path)) == []
    file = tmp_path / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    (finding,) = check_token({}, tmp_path)
    assert (finding.state, finding.advice) == ("warning", f"chmod 600 {file}")
    assert "mode 644" in finding.found
    file.chmod(0o600)
    assert list(check_token({}, tmp_path)) == []
    assert list(check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path)) == []


# --- a cluster --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "ok", "ray 2.60.0"),
        ({"python": "3.11.2"}, "ok", "Python 3.11.2"),
        ({"python": "3.12.1"}, "FAILED", "Python 3.12.1, where this process has 3.11.7"),
        ({"packages": {"ray": "2.59.0", "torch": "2.13.0+cpu"}}, "FAILED", "ray 2.59.0 (here 2.60.0)"),
        ({"packages": {"ray": "2.60.0", "torch": None}}, "FAILED", "without torch"),
        ({"packages": {"ray": "2.60.0", "torch": "2.12.0"}}, "warning", "torch 2.12.0 (here 2.13.0+cpu)"),
        ({"store_problem": "does not see it"}, "FAILED", "does not see it"),
    ],
)
def test_a_node_beside_this_process(changes: dict, state: str, said: str) -> None:
    finding = judge_node("node", {"CPU": 8.0}, replace(HERE, **changes), HERE)
    assert finding.state == state
    assert said in finding.found
    assert "8 CPUs, 0 GPUs" in finding.found


def test_a_node_says_whether_it_sees_the_store(tmp_path: Path) -> None:
    (tmp_path / "mark.txt").write_text("here")
    agent = NodeAgent()
    assert agent.describe(str(tmp_path), "mark.txt").store_problem is None
    assert agent.describe(str(tmp_path), "other.txt").store_problem == f"does not see what was written to {tmp_path}"


# --- the command ------------------------------------------------------------------------------


def test_where_nobody_answers_all_else_is_looked_at_and_the_status_is_1(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    result = CliRunner().invoke(main, ["doctor", "--address", "127.0.0.1:1", "--store", store, "--json"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("checks FAILED")
    content = json.loads(result.stdout)
    findings = [Finding(**check) for check in content["checks"]]
    assert content["ok"] is False
    assert {"Python", *SHOWN, "shared memory", "store", "disk", "W&B"} <= states(findings).keys()
    assert [finding.check for finding in findings if finding.is_failure] == ["Ray cluster"]
    assert "no Ray cluster answers at '127.0.0.1:1'" in findings[-1].found
    assert list(tmp_path.iterdir()) == []


def test_each_check_is_a_line(tmp_path: Path) -> None:
    arguments = ["doctor", "--address", "http://127.0.0.1:8265", "--store", "/proc/store"]
    lines = CliRunner().invoke(main, arguments).stdout.splitlines()
    assert lines[0].startswith("ok       Python: 3.")
    assert [line.split(":")[0] for line in lines if line.startswith("FAILED")] == [
        "FAILED   store", "FAILED   Ray cluster",
    ]  # fmt: skip
