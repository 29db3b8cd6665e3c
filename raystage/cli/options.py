"""What all commands share: exit statuses and messages, common options, reading a schedule, and printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from raystage.cli.jobs.inside import in_job_copy
from raystage.errors import InputError, RaystageError
from raystage.safe_text import secret_in, visible
from raystage.units import shown

INTERRUPTED = 130
WANDB_MODES = ("offline", "online", "disabled")
# Older names that W&B still accepts.
_WANDB_NAMES = {"dryrun": "offline", "run": "online"}
# Ray's own name for it.
OWN_CLUSTER = "local"


def exits(command: Callable[..., None]) -> Callable[..., None]:
    """Turns an expected error into one message and the right exit status, without a traceback."""

    @wraps(command)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except RaystageError as error:
            say(f"raystage: {error}", err=True)
            _say_what_next(error)
            leave(error.exit_status)
        except KeyboardInterrupt as interrupt:
            why = str(interrupt) or "interrupted"
            say(f"raystage: {why}; the same command continues from the last checkpoint", err=True)
            _say_what_next(interrupt)
            leave(INTERRUPTED)
        if _has_train_run():
            leave(0)

    return guarded


def _say_what_next(error: BaseException) -> None:
    for line in getattr(error, "__notes__", ()):
        say(f"raystage: {line}", err=True)


def leave(status: int) -> None:
    """Exit; at once if a thread still waits for a Train run. Otherwise Ray's own clean-up would end the process with
    another status. Ray notices that the process is gone and ends its workers."""
    if _has_train_run():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _has_train_run() -> bool:
    train_run = sys.modules.get("raystage.cluster.train_run")
    return train_run is not None and train_run.has_train_run()


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
store_option = click.option(
    "--store", metavar="URI", help="Where stages are kept: a path, s3://..., gs://... [.raystage]"
)
address_option = click.option(
    "--address",
    help="A running Ray cluster: HOST:PORT, or auto for one that `ray start` started here. RAY_ADDRESS has the same "
    "effect. Otherwise, and with local, the run starts its own cluster on this machine.",
)
patience_option = click.option(
    "--patience",
    metavar="DURATION",
    help="How long to wait for nodes that the cluster lacks, as 90 or 15m. Its autoscaler, if it has one, is asked for "
    "them.  [default: 1m]",
)
wandb_option = click.option(
    "--wandb",
    "wandb_mode",
    type=click.Choice(WANDB_MODES),
    help="Where W&B keeps the run: offline in ./wandb, which `wandb sync` uploads later; online, with a key of "
    "`wandb login`; or disabled. This option overrides WANDB_MODE and WANDB_DISABLED.  [default: offline]",
)


def patience_seconds(written: str | None) -> float:
    """How long to wait for nodes that the cluster lacks. Raises InputError."""
    from raystage.runs.session import PATIENCE_SECONDS
    from raystage.units import parse_seconds

    if written is None:
        return PATIENCE_SECONDS
    try:
        seconds = parse_seconds(written)
    except ValueError as error:
        raise InputError(str(error), key="--patience") from None
    if seconds < 0:
        raise InputError(f"found {written}; expected 0 or more", key="--patience")
    return seconds


def say(text: str = "", err: bool = False, nl: bool = True) -> None:
    """Print lines for people. Control characters are shown as escapes."""
    click.echo(visible(text), err=err, nl=nl)


def open_store(uri: str | None) -> Any:
    from raystage.files.filesystem import open_folder
    from raystage.storage.store import Store

    return Store(open_folder(store_uri(uri)))


def model_source(source: str, store: str | None, key: str) -> str:
    """The value of `init.from` or of a teacher. A stage's name, mine/full, or its key becomes its folder in the store,
    with the whole key in it. So the plan does not change if the name gets another stage later. Raises InputError.

    key: in the schedule.
    """
    from raystage.storage.naming import STAGE_KEY, key_that_begins, stage_key

    is_key = STAGE_KEY.fullmatch(source) is not None
    if "://" in source or ("/" not in source and not is_key) or os.path.isdir(source):
        return source
    opened = open_store(store)
    found = key_that_begins(opened, source, key) if is_key else stage_key(opened, source, key)
    if found is None:
        return source
    if not opened.folder.is_local:
        problem = f"found stage {source!r} of {opened.folder.uri}; expected a store on disks that every worker sees"
        raise InputError(problem, key=key)
    return opened.stage_folder(found).path


def finished_in(store: str | None, keys: Collection[str]) -> set[str] | None:
    """The stages that the store has finished; None if no store is named."""
    if store is None:
        return None
    from raystage.storage.maintenance import finished_among

    return finished_among(open_store(store), keys)


def store_uri(uri: str | None) -> str:
    """The URI of the store, from the value of `--store`."""
    if uri is None and in_job_copy():
        uri = str(Path.home() / ".raystage")
        say(f"raystage: this working directory goes with the Ray job; the store is {uri} (--store)", err=True)
    return uri or ".raystage"


def cluster_address(address: str | None) -> str | None:
    """The address of the Ray cluster to join, from `--address` or the environment; None for a cluster of the run's own.

    Raises InputError.
    """
    found = address or os.environ.get("RAY_ADDRESS")
    if found and (secret := secret_in(found)):
        problem = f"found {secret}; expected an address without, for it is kept in run files"
        raise InputError(problem, key="--address" if address else "RAY_ADDRESS")
    return None if found == OWN_CLUSTER else found or None


def wandb_mode_for(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The value of `--wandb`, else of W&B's own variables, else offline. Raises InputError."""
    if given is not None:
        return given
    if environment.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        return "disabled"
    said = environment.get("WANDB_MODE", "").strip().lower()
    mode = _WANDB_NAMES.get(said, said) or "offline"
    if mode not in WANDB_MODES:
        raise InputError(f"found {shown(said)}; expected {', '.join(WANDB_MODES)}", key="WANDB_MODE")
    return mode


def print_result(report: dict[str, Any], table: Any, as_json: bool) -> None:
    """With --json, only JSON on standard output, and the table on standard error; else the table."""
    from raystage.safe_console import SafeConsole

    if as_json:
        print_json(report)
    SafeConsole(stderr=as_json).print(table)


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. stages[1].until.tokens=2M."
)


def plan_schedule(
    schedule: Any, path: Path | str, name: str | None, store: str | None, with_code: bool = True
) -> tuple[Any, Any]:
    """The schedule that was read from `path`, with its `init` and its teachers looked up in the store, and its plan.

    name: of the run, if not the schedule's own. with_code: whether functions that the schedule names are imported.
    Raises InputError.
    """
    from raystage.planning.build import make_plan
    from raystage.planning.inputs import Sources

    try:
        schedule = _with_models(schedule, store)
        return schedule, make_plan(schedule, name, Sources(with_code=with_code))
    except InputError as error:
        raise error.inside(str(path)) from None


def _with_models(schedule: Any, store: str | None) -> Any:
    """The schedule with a folder in place of every name of a stage in the store."""
    stages = {stage.name for stage in schedule.stages}

    def taught(section: Any, place: str) -> Any:
        teachers = section.objective.teachers
        if stages.issuperset(teachers):
            return section
        key = f"{place}objective.teacher"
        found = [one if one in stages else model_source(one, store, key) for one in teachers]
        return section.model_copy(update={"objective": section.objective.taught_by(found)})

    if schedule.init is not None:
        init = schedule.init.model_copy(update={"source": model_source(schedule.init.source, store, "init.from")})
        schedule = schedule.model_copy(update={"init": init})
    found = tuple(taught(stage, f"stages[{index}].") for index, stage in enumerate(schedule.stages))
    return taught(schedule, "").model_copy(update={"stages": found})


def name_models(base: dict[str, Any], store: str | None) -> None:
    """Replace the names of stages in the `init` and in the teachers of a sweep's schedule by folders in the store."""
    stages = [stage for stage in base.get("stages") or () if isinstance(stage, dict)]
    names = {stage.get("name") for stage in stages}
    places = [(base.get("init"), "from", "init.from"), (base.get("objective"), "teacher", "objective.teacher")]
    places += [
        (stage.get("objective"), "teacher", f"stages[{number}].objective.teacher")
        for number, stage in enumerate(stages)
    ]
    for section, key, path in places:
        if isinstance(section, dict):
            section.update({key: _named_model(section[key], names, store, path)} if key in section else {})


def _named_model(value: Any, stages: Collection[Any], store: str | None, path: str) -> Any:
    """A folder in place of the name of a stage in the store, also within a list; what is no name stays."""
    if isinstance(value, list):
        return [_named_model(one, stages, store, path) for one in value]
    return model_source(value, store, path) if isinstance(value, str) and value not in stages else value


def register_family(path: str) -> None:
    """Make the family in the file at `path` known to this command."""
    from raystage.config.family import read_family
    from raystage.models.families import register

    try:
        register(read_family(Path(path)))
    except ValueError as error:
        raise InputError(str(error), key="name", file=path) from None


def print_json(content: Any) -> None:
    """Print an object as JSON, in which control characters are escaped."""
    click.echo(json.dumps(content, indent=1))
