"""What is submitted: decided before there is a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from raystage.errors import InputError
from raystage.jobs.submission import (
    check_store,
    entrypoint,
    pinned_requirements,
    read_runtime_env,
    runtime_env,
    submission_id,
)


@pytest.mark.parametrize("store", ["s3://bucket/runs?region=eu-west-1", "/mnt/shared/raystage", "file:///mnt/shared"])
def test_a_store_that_a_cluster_may_see(store: str) -> None:
    assert check_store(store) == store


@pytest.mark.parametrize(
    ("store", "problem"),
    [(None, "missing"), (".raystage", "a folder on this machine"), ("~/runs", "a folder on this machine"),
     ("s3://key:secret@bucket/runs", "found a key")],
)  # fmt: skip
def test_a_store_that_it_cannot_see(store: str | None, problem: str) -> None:
    with pytest.raises(InputError, match=f"--store: .*{problem}"):
        check_store(store)


def test_every_submission_of_a_run_has_a_name_of_its_own() -> None:
    taken: set[str] = set()
    for expected in ("mine", "mine-2", "mine-3"):
        taken.add(found := submission_id("mine", taken))
        assert found == expected
    assert submission_id("größer", set()) == "gr--er"


def test_the_command_of_a_job_survives_a_shell() -> None:
    arguments = [
        "run",
        "my file.yaml",
        "--set",
        "stages[0].until.tokens=2M",
        "--store",
        "s3://b/p?region=x&scheme=http",
    ]
    command, *parts = shlex.split(entrypoint("/opt/my python", arguments))
    assert (command, parts) == ("exec", ["/opt/my python", "-m", "raystage_job", *arguments])


def test_a_runtime_environment_of_the_users_own_is_kept() -> None:
    own = {"pip": ["einops==0.8.1"], "env_vars": {"NCCL_DEBUG": "INFO"}, "py_modules": ["s3://b/m.zip"], "conda": None}
    made = runtime_env(own, "working_dir.zip", [Path("/tmp/raystage_job")])
    assert made == {
        "pip": ["einops==0.8.1"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "NCCL_DEBUG": "INFO"},
        "py_modules": ["/tmp/raystage_job", "s3://b/m.zip"],
        "working_dir": "working_dir.zip",
    }
    longer = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}
    assert runtime_env(longer, "w.zip", [])["env_vars"] == longer["env_vars"]


def test_packages_are_installed_by_one_of_two_ways() -> None:
    assert runtime_env({}, "w.zip", [], ["torch==2.13.0"])["pip"]["packages"] == ["torch==2.13.0"]
    with pytest.raises(InputError, match="--install: found conda in the runtime environment, too"):
        runtime_env({"conda": "env"}, "w.zip", [], ["torch==2.13.0"])


def test_packages_are_pinned_to_what_is_installed_here_and_ray_is_the_clusters_own() -> None:
    asked = ["torch>=2.6", "ray[default,train,tune]>=2.60", 'peft>=0.21; extra == "lora"']
    versions = {"torch": "2.13.0+cpu", "ray": "2.60.0", "peft": "0.21.0"}
    assert pinned_requirements(asked, versions) == ["torch==2.13.0"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- pip", "found list; expected a mapping"),
        ("a: [", "is no YAML"),
        ("env_vars: [A]", "env_vars: expected a"),
        ("env_vars: {OMP_NUM_THREADS: 4}", "env_vars.OMP_NUM_THREADS: found int; expected text, in quotes"),
        ("env_vars: {1: x}", "env_vars.1: found str; expected text"),
        ("py_modules: mine", "py_modules: found 'mine'; expected a list"),
    ],
)
def test_a_runtime_environment_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_runtime_env(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_runtime_env(tmp_path / "missing.yaml")
