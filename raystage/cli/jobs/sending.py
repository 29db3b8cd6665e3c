"""What `raystage submit` does before there is a job: reads what is to be submitted, and sends it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import raystage
from raystage.cli.options import wandb_mode_for
from raystage.config import yaml_file
from raystage.config.schedule import is_sweep
from raystage.config.schedule import load as load_schedule
from raystage.config.types import check_name
from raystage.errors import InputError
from raystage.jobs.address import jobs_address
from raystage.jobs.client import Jobs, check_size, new_parcel, zipped
from raystage.jobs.contents import FOLDER, Contents, contents_of, read_places
from raystage.jobs.submission import (
    check_store,
    entrypoint,
    job_file,
    pins_of_this_machine,
    read_runtime_env,
    runtime_env,
    submission_id,
    write_start,
)
from raystage.jobs.variables import sent_variables, shown_secrets
from raystage.sweeps.config import load as load_sweep
from raystage.units import first_line


@dataclass(frozen=True)
class Request:
    """The command line of `raystage submit`."""

    schedule: Path
    overrides: tuple[str, ...]
    store: str | None
    name: str | None
    address: str | None
    wandb_mode: str | None
    patience: str | None
    working_dir: Path | None
    runtime_env: Path | None
    install: bool
    named: tuple[str, ...]
    no_env: bool
    python: str
    follow: bool
    detach: bool

    def command(self, address: str) -> str:
        """The command line that submits the same again, ready to paste into a shell."""
        options = [
            *(("--set", one) for one in self.overrides),
            ("--store", self.store),
            ("--name", self.name),
            ("--address", address),
            ("--wandb", self.wandb_mode),
            ("--patience", self.patience),
            ("--working-dir", self.working_dir),
            ("--runtime-env", self.runtime_env),
            *(("--env", one) for one in self.named),
            ("--python", None if self.python == "python" else self.python),
        ]
        parts = ["raystage", "submit", str(self.schedule)]
        parts += [str(one) for option, value in options if value is not None for one in (option, value)]
        parts += [flag for flag, is_set in (("--install", self.install), ("--no-env", self.no_env)) if is_set]
        return shlex.join(parts)


@dataclass(frozen=True)
class Submitted:
    """What was read of the file to submit. kind: the command that runs it."""

    kind: str
    name: str
    contents: Contents
    places: list[str]


def read(request: Request) -> Submitted:
    """Read the file, and check what can be checked here. Raises InputError."""
    check_store(request.store)
    file = request.schedule
    content = yaml_file.read_mapping(file)
    kind = "sweep" if is_sweep(content) else "run"
    if kind == "sweep":
        loaded = load_sweep(file, request.overrides, content)
        contents = contents_of(file, content, (loaded.schedule_file, loaded.base))
        places = read_places(loaded.base)
    else:
        loaded = load_schedule(file, request.overrides, content)
        contents, places = contents_of(file, content), read_places(content)
    if request.name is not None:
        try:
            check_name(request.name)
        except ValueError as error:
            raise InputError(str(error), key="--name") from None
    return Submitted(kind, request.name or loaded.name, contents, places)


def connected(request: Request) -> Jobs:
    """Raises InputError."""
    return Jobs(jobs_address(request.address, os.environ))


def ship(
    jobs: Jobs, request: Request, submitted: Submitted, folder: Path, tell: Callable[[str], None]
) -> tuple[str, str | None]:
    """Submit a job; returns its id, and where its variables are. folder: for what is sent. Raises InputError."""
    own = read_runtime_env(request.runtime_env) if request.runtime_env else {}
    mode = wandb_mode_for(request.wandb_mode)
    environment = {} if request.no_env else dict(os.environ)
    environment |= {name: os.environ[name] for name in request.named if name in os.environ}
    variables = sent_variables(environment, request.named, [request.store or "", *submitted.places], mode)
    if shown := shown_secrets(own.get("env_vars") or {}):
        tell(f"warning: everybody who may list the cluster's jobs sees env_vars ({', '.join(shown)}); --env hides them")
    if mode == "online" and "WANDB_API_KEY" not in variables:
        tell("WANDB_API_KEY is not sent (it is not set here): the cluster needs a W&B key of its own")
    package, place, file = pack(request, submitted, own, folder)
    modules = [Path(raystage.__file__).parent, _distribution(folder)] if request.install else []
    pins = pins_of_this_machine() if request.install else []
    parcel = new_parcel() if variables else None
    start = write_start(folder, job_file(metadata.version("raystage"), place, request.command(jobs.address), parcel))
    environment_of_job = runtime_env(own, package, [start, *modules], pins)
    arguments = [submitted.kind, file, *(part for one in request.overrides for part in ("--set", one))]
    arguments += ["--store", request.store, "--wandb", mode]
    for option, value in (("--name", request.name), ("--patience", request.patience)):
        arguments += [option, value] if value else []
    job = submission_id(submitted.name, jobs.ids())
    try:
        if parcel:  # nothing between here and the job may fail without taking them back
            tell(f"sends {', '.join(variables)} (in no list of the cluster; docs/clusters.md says what that protects)")
            jobs.send(parcel, variables)
        jobs.submit(job, entrypoint(request.python, arguments), environment_of_job, submitted.name)
    except BaseException:
        if parcel:
            jobs.withdraw(parcel)
        raise
    return job, parcel


def pack(request: Request, submitted: Submitted, own: dict[str, Any], folder: Path) -> tuple[str, str, str]:
    """The working directory as one file or URI, where in it the job runs, and the schedule's path from there."""
    target, file = folder / "working_dir.zip", request.schedule.absolute()
    if "working_dir" in own:
        if request.working_dir is not None:
            raise InputError("found working_dir in the runtime environment, too; expected one", key="--working-dir")
        if "://" in str(own["working_dir"]):
            return str(own["working_dir"]), ".", str(request.schedule)
    given = request.working_dir or own.get("working_dir")
    if given is not None:
        root = Path(given).expanduser().absolute()
        if not root.is_dir():
            raise InputError(f"found no folder {given}; expected one", key="--working-dir")
        if not file.is_relative_to(root):
            problem = f"found {given}, which does not have {request.schedule} in it; expected a folder that has"
            raise InputError(problem, key="--working-dir")
        place = Path.cwd() if Path.cwd().is_relative_to(root) else root
        package = zipped(root, target, is_own=True)
        return str(package), str(place.relative_to(root)), os.path.relpath(file, place)
    contents = submitted.contents
    staged = folder / "staged"
    check_size([*(contents.root / path for path in contents.files), *contents.modules])
    for path in contents.files:
        _copy(contents.root / path, staged / FOLDER / path)
    (staged / FOLDER / contents.folder).mkdir(parents=True, exist_ok=True)
    for module in contents.modules:
        _copy(module, staged / module.name)
    package = zipped(staged, target, is_own=False)
    place = Path(FOLDER) / contents.folder
    return str(package), str(place), os.path.relpath(file, contents.root / contents.folder)


def _copy(source: Path, target: Path) -> None:
    """Raises InputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".git")
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    except shutil.Error as error:  # a list of what could not be copied, each with the reason
        (file, _, reason), *more = error.args[0]
        rest = f", and {len(more)} more" if more else ""
        raise InputError(f"cannot be sent with the job ({reason}{rest})", file=str(file)) from None
    except OSError as error:
        raise InputError(f"cannot be sent with the job ({first_line(error)})", file=str(source)) from None


def _distribution(folder: Path) -> Path:
    """What tells the cluster's Python the version of the raystage that is sent."""
    target = folder / f"raystage-{metadata.version('raystage')}.dist-info"
    target.mkdir()
    (target / "METADATA").write_text(str(metadata.metadata("raystage")), encoding="utf-8")
    return target
