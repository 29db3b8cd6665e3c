"""The files in cluster/ run the quickstart, name only what exists, and pin every version."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cluster_files import (
    CLUSTER,
    DOCKERFILES,
    FILES,
    KUBERAY,
    LAUNCHER,
    ROOT,
    SCRIPTS,
    commands,
    pins,
    planned,
    text_of,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.dashboard.modules.job.cli import submit

# Of Docker: https://docs.docker.com/reference/dockerfile/
INSTRUCTIONS = {"ARG", "COPY", "ENV", "FROM", "RUN", "WORKDIR"}


# ---- the job that each of them runs


@pytest.mark.parametrize("name", [*(one for one in KUBERAY if "raycluster" in one), *LAUNCHER, "README.md"])
def test_every_place_runs_the_quickstart(name: str) -> None:
    runs = commands(name, "python jobs/run.py")
    assert (ROOT / "jobs" / "run.py").is_file()
    assert runs, f"{name} has no `python jobs/run.py`"
    for arguments in runs:
        plan, store = planned(arguments)
        assert plan.name == "quickstart"
        assert store, "a cluster's nodes share no default store"


@pytest.mark.parametrize("name", [*LAUNCHER, "kuberay/raycluster-gpu.yaml", "README.md"])
def test_ray_job_submit_knows_its_options(name: str) -> None:
    submissions = commands(name, "ray job submit")
    assert submissions
    for arguments in submissions:
        parsed = submit.make_context("submit", arguments).params
        assert parsed["working_dir"] == "."
        assert parsed["entrypoint"][:2] == ("python", "jobs/run.py")


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_named_exist(name: str) -> None:
    text = text_of(name)
    paths = re.findall(r"\b(?:jobs|cluster|tests|raystage)/[\w./-]*\w", text)
    links = re.findall(r"\]\(([^)]+)\)", text) if name.endswith(".md") else []
    missing = [path for path in paths if not (ROOT / path).exists() and ".com/" not in path]
    assert not [path for path in missing if not re.search(rf"(REGISTRY|instance-profile|/home/ray|~)/{path}", text)]
    assert not [link for link in links if not (CLUSTER / link).exists()]


def test_the_readme_names_every_file() -> None:
    assert not [name for name in FILES if name != "README.md" and f"({name})" not in text_of("README.md")]


@pytest.mark.parametrize("name", [one for one in FILES if "ray-job" not in one and not one.startswith("docker/")])
def test_a_stopped_job_has_the_time_to_save(name: str) -> None:
    """`ray job stop` kills after 3 s; what says otherwise is the environment of Ray on the head node, or of the job."""
    if name in ("README.md", "launcher/spot_notice.py"):
        return
    assert "RAY_JOB_STOP_WAIT_TIME_S" in text_of(name)


# ---- one Ray version, and every version pinned


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned, extras = pins(), project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["test"], *extras["energy"]]:
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier
    assert not [name for name, version in pinned.items() if not re.fullmatch(r"[\w.]+", version)]


def test_one_ray_version_everywhere() -> None:
    images = {tag for name in FILES for tag in re.findall(r"rayproject/ray:(\d[\d.]*)", text_of(name))}
    assert images == {pins()["ray"]}


def test_one_raystage_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert {tag for name in FILES for tag in re.findall(r"raystage:(\d[\d.]*)", text_of(name))} == {version}


# ---- images


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_installs_the_pinned_versions_from_what_there_is(name: str) -> None:
    lines = [line for line in text_of(name).splitlines() if line and not line.startswith("#")]
    steps = [tuple(line.split(" ", 1)) for line in lines]
    assert {instruction for instruction, _ in steps} <= INSTRUCTIONS
    assert steps[0][0] == "FROM"
    for instruction, rest in steps:
        if instruction == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            assert not [source for source in sources if not (ROOT / source).exists()]
    (installs,) = (rest for instruction, rest in steps if instruction == "RUN")
    assert "-c constraints.txt" in installs


def test_the_image_without_gpus_has_no_cuda() -> None:
    assert "download.pytorch.org/whl/cpu" in text_of("docker/Dockerfile")
    assert "-gpu" not in text_of("docker/Dockerfile")
    assert "download.pytorch.org/whl/cpu" not in text_of("docker/Dockerfile.cuda")


# ---- scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_sound_bash(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, CLUSTER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (CLUSTER / name).stat().st_mode & 0o111
