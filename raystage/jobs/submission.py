"""What is submitted to a cluster, decided without the cluster: a job's name, command and runtime environment."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from raystage.errors import InputError
from raystage.jobs.start import JOB_FILE
from raystage.safe_text import secret_in
from raystage.units import shown

# Longer than a driver waits for its workers to save (`cluster.shutdown`), and for W&B to write.
STOP_SECONDS = 60
# What Ray takes in one upload, zipped.
MOST_BYTES = 100 * 2**20
# How many times as much may be zipped at all: what is larger never becomes small enough.
MOST_UNZIPPED = 20
# The module that starts a job, and the key of a job's metadata that names its run.
START = "raystage_job"
RUN_KEY = "raystage_run"
# Never sent with a folder of the user's: environments, stores, and what runs write.
EXCLUDES = (".venv", "venv", ".git", "__pycache__", ".raystage", "/wandb", "/.cache")
_STORES = "s3://..., gs://..., or a folder that all nodes mount, such as /mnt/shared/raystage"


def check_store(store: str | None) -> str:
    """The store, if every node of a cluster may see it. Raises InputError."""
    if store is None:
        raise InputError(f"missing; expected storage that every node of the cluster sees: {_STORES}", key="--store")
    if secret := secret_in(store):
        raise InputError(f"found {secret}; expected a URI without: nodes find their keys themselves", key="--store")
    if "://" not in store and not store.startswith("/"):
        problem = f"found {shown(store)}, which is a folder on this machine, and not one that the cluster sees"
        raise InputError(f"{problem}; expected {_STORES}", key="--store")
    return store


def submission_id(run: str, taken: Collection[str]) -> str:
    """'quickstart', or the first of 'quickstart-2', 'quickstart-3', ... that no job of the cluster has had."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", run)
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def entrypoint(python: str, arguments: Sequence[str]) -> str:
    """The command of a job. `exec`: no shell stays between Ray's signals and the program."""
    return f"exec {shlex.quote(python)} -m {START} {shlex.join(arguments)}"


def job_file(version: str, folder: str, command: str, parcel: str | None) -> dict[str, str]:
    """What the program that a job begins with is told. command: what submits the job again. parcel: where the driver
    finds the variables that are sent to it."""
    return {"version": version, "folder": folder, "command": command, "parcel": parcel or ""}


def write_start(folder: Path, job: Mapping[str, str]) -> Path:
    """Write the module that a job begins with into a folder."""
    target = folder / START
    target.mkdir()
    source = Path(__file__).with_name("start.py")
    (target / "__main__.py").write_bytes(source.read_bytes())
    (target / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
    return target


def read_runtime_env(path: Path) -> dict[str, Any]:
    """The runtime environment in a YAML or JSON file. Raises InputError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", key="--runtime-env", file=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(
            "is no YAML; expected a Ray runtime environment", key="--runtime-env", file=str(path)
        ) from None
    if not isinstance(content, dict):
        problem = f"found {type(content).__name__}; expected a mapping, such as pip: [einops==0.8.1]"
        raise InputError(problem, key="--runtime-env", file=str(path))
    variables = content.get("env_vars") or {}
    if not isinstance(variables, dict):
        raise InputError("expected a mapping", key="env_vars", file=str(path))
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            problem = f"found {type(value).__name__}; expected text, in quotes where it looks like a number"
            raise InputError(problem, key=f"env_vars.{name}", file=str(path))
    modules = content.get("py_modules") or []
    if not isinstance(modules, list) or not all(isinstance(one, str) for one in modules):
        raise InputError(f"found {shown(modules)}; expected a list of folders", key="py_modules", file=str(path))
    return content


def runtime_env(
    own: Mapping[str, Any], working_dir: str, modules: Iterable[Path], pins: Sequence[str] = ()
) -> dict[str, Any]:
    """The runtime environment of a job. own: the user's, which is kept. pins: packages that pip installs on every node.
    Raises InputError."""
    env = {key: value for key, value in own.items() if value is not None}
    env["working_dir"] = working_dir
    env["py_modules"] = [*map(str, modules), *env.get("py_modules", [])]
    env["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **env.get("env_vars", {})}
    if pins:
        if taken := {"pip", "uv", "conda", "image_uri"} & env.keys():
            problem = f"found {min(taken)} in the runtime environment, too; expected one of the two"
            raise InputError(problem, key="--install")
        # Packages that the image has in these versions stay; without the check, one that misses others is no error.
        env["pip"] = {"packages": list(pins), "pip_check": False}
    return env


def pinned_requirements(requirements: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """What raystage needs, in the versions of this machine. Ray itself is the cluster's own.

    requirements: as in the metadata of a distribution. versions: of what is installed, by name.
    """
    parsed = [Requirement(one) for one in requirements]
    needed = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return sorted(f"{one.name}=={Version(versions[one.name]).public}" for one in needed if one.name != "ray")


def pins_of_this_machine() -> list[str]:
    """`pinned_requirements` of the raystage that runs."""
    requirements = metadata.requires("raystage") or []
    names = {Requirement(one).name for one in requirements}
    versions = {name: one[0].version for name in names if (one := list(metadata.distributions(name=name)))}
    return pinned_requirements([one for one in requirements if Requirement(one).name in versions], versions)
