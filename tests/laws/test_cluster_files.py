"""The files in cluster/ are read the way their readers read them, and name only what exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import submit
from ray.scripts import scripts, symmetric_run

from raystage.cli import main
from raystage.config.schedule import load

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path.name for path in CLUSTER.iterdir())


def text_of(name: str) -> str:
    """A cluster file with continued lines joined, within comments too."""
    return re.sub(r"\\\n[ #]*", "", (CLUSTER / name).read_text(encoding="utf-8"))


def commands(name: str, start: str) -> list[list[str]]:
    """The arguments after each `start` in the file; what is quoted in prose ends at the backquote."""
    return [shlex.split(found) for found in re.findall(rf"(?<!`){re.escape(start)} ([^`\n]*)", text_of(name))]


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def rayjob() -> dict:
    (job,) = (document for document in documents("kuberay-rayjob.yaml") if document["kind"] == "RayJob")
    return job


@pytest.fixture(scope="module")
def launcher() -> dict:
    (config,) = documents("aws.yaml")
    return config


def pod_specs(job: dict) -> list[dict]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


# ---- the job that each of them runs


@pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "aws.yaml", "slurm.sh", "README.md"])
def test_every_place_runs_the_quickstart(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = commands(name, "python jobs/run.py")
    assert (ROOT / "jobs" / "run.py").is_file()
    assert runs, f"{name} has no `python jobs/run.py`"
    for arguments in runs:
        parsed = main.main.commands["run"].make_context("run", list(arguments)).params
        overrides = tuple(value for option, value in pairwise(arguments) if option == "--set")
        assert load(ROOT / arguments[0], overrides).name == "quickstart"
        assert parsed["store"], "a cluster's nodes share no default store"


@pytest.mark.parametrize("name", ["aws.yaml", "README.md"])
def test_ray_job_submit_knows_its_options(name):
    submissions = commands(name, "ray job submit")
    assert submissions
    for arguments in submissions:
        parsed = submit.make_context("submit", arguments).params
        assert parsed["working_dir"] == "."
        assert parsed["entrypoint"][:2] == ("python", "jobs/run.py")


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_named_exist(name):
    text = text_of(name)
    paths = re.findall(r"\b(?:jobs|cluster|tests|raystage)/[\w./-]*\w", text)
    links = re.findall(r"\]\(([^)]+)\)", text) if name.endswith(".md") else []
    missing = [path for path in paths if not (ROOT / path).exists() and ".com/" not in path]
    assert not [path for path in missing if f"REGISTRY/{path}" not in text]
    assert not [link for link in links if not (CLUSTER / link).exists()]


# ---- one Ray version, and every version pinned


def test_every_dependency_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins()
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier
    assert not [name for name, version in pinned.items() if not re.fullmatch(r"[\w.]+", version)]


def test_one_ray_version_everywhere(rayjob):
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pins()["ray"]
    images = {tag for name in FILES for tag in re.findall(r"rayproject/ray:(\d[\d.]*)", text_of(name))}
    assert images == {pins()["ray"]}


# ---- KubeRay


def test_rayjob_has_its_fields(rayjob):
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    types = {
        "entrypoint": str, "submissionMode": str, "runtimeEnvYAML": str, "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int, "backoffLimit": int, "rayClusterSpec": dict,
    }  # fmt: skip
    assert {key: type(value) for key, value in spec.items()} == types
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["ttlSecondsAfterFinished"] == 0 or spec["shutdownAfterJobFinishes"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in environment.values())


def test_rayjob_trains_on_workers_behind_a_token(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (training,) = cluster["workerGroupSpecs"]
    assert training["minReplicas"] == training["replicas"] == training["maxReplicas"]
    needed = load(ROOT / "jobs/schedules/quickstart.yaml").training
    (worker,) = training["template"]["spec"]["containers"]
    cpus = int(worker["resources"]["limits"]["cpu"])
    assert training["replicas"] * (cpus // needed.cpus_per_worker) >= needed.workers.most


def test_every_pod_has_the_store_and_shared_memory(rayjob):
    (claim,) = (one for one in documents("kuberay-rayjob.yaml") if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    store = shlex.split(rayjob["spec"]["entrypoint"])[-1]
    for pod in pod_specs(rayjob):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts[store]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert container["resources"].keys() == {"requests", "limits"}


# ---- AWS


def test_launcher_file_passes_the_validation_of_ray_up(launcher):
    config = prepare_config(launcher)
    validate_config(config)
    assert config["max_workers"] == sum(kind["min_workers"] for kind in config["available_node_types"].values())
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}


def test_launcher_file_installs_from_the_constraints_and_mounts_the_store(launcher):
    assert "-c constraints.txt" in launcher["setup_commands"][0]
    sources = [source for source in launcher["file_mounts"].values() if not source.startswith("~")]
    assert sources == ["."]
    store = "/mnt/raystage"
    assert f"--volume {store}:{store}" in launcher["docker"]["run_options"]
    assert any(store in command and "mount -t nfs4" in command for command in launcher["initialization_commands"])


def test_launcher_file_starts_ray_behind_a_token(launcher):
    for commands_to_start in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        (command,) = (command for command in commands_to_start if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in command
        arguments = shlex.split(command.partition("ray start ")[2])
        scripts.start.make_context("start", arguments)


# ---- SLURM


def test_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    assert (CLUSTER / "slurm.sh").stat().st_mode & 0o111


def test_symmetric_run_knows_its_options():
    (line,) = re.findall(r"^srun .* ray symmetric-run (.*)$", text_of("slurm.sh"), re.MULTILINE)
    numbered = re.sub(r"\$SLURM_\w+|\$\{SLURM_\w+:-0\}", "2", line).replace("$RAY_ADDRESS", "10.0.0.1:6379")
    before, _, entrypoint = numbered.partition(" -- ")
    arguments = shlex.split(before)
    own = symmetric_run.symmetric_run.make_context("symmetric-run", list(arguments)).params
    assert (own["address"], own["min_nodes"]) == ("10.0.0.1:6379", 2)
    for_ray_start = symmetric_run.curate_and_validate_ray_start_args(list(arguments))
    started = scripts.start.make_context("start", ["--head", *for_ray_start]).params
    assert (started["num_cpus"], started["num_gpus"], started["temp_dir"]) == (2, 2, "/tmp/ray-2")
    assert shlex.split(entrypoint)[:2] == ["python", "jobs/run.py"]
