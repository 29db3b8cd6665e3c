"""The command line. Imports of torch, ray and the like wait until a command needs them: `plan` is quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from raystage.errors import InputError, RaystageError

INTERRUPTED = 130
# Where `ray job submit --working-dir` unpacks a working directory: a copy that is thrown away.
_JOB_COPY = "runtime_resources/working_dir_files"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raystage")
def main() -> None:
    """Staged training on Ray Train and DeepSpeed, with the compute it saves measured.

    \b
    Example:
      raystage plan jobs/schedules/quickstart.yaml
      raystage run  jobs/schedules/quickstart.yaml
      raystage report quickstart
    """


def _exits(command: Callable[..., None]) -> Callable[..., None]:
    """One message and the right exit status for what goes wrong on purpose; no traceback."""

    @wraps(command)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except RaystageError as error:
            click.echo(f"raystage: {error}", err=True)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            click.echo("raystage: interrupted; the same command goes on from the last checkpoint", err=True)
            sys.exit(INTERRUPTED)

    return guarded


_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. stages[1].until.tokens=2M."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
_store = click.option("--store", metavar="URI", help="Where stages are kept: a path, s3://..., gs://... [.raystage]")


@main.command()
@click.argument("schedule", type=click.Path(path_type=Path))
@_set
@_json
@_exits
def plan(schedule: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print what a schedule would do and cost, without doing it.

    \b
    Example:
      raystage plan jobs/schedules/quickstart.yaml --set stages[1].until.tokens=600K
    """
    from rich.console import Console

    from raystage.plan_json import plan_json
    from raystage.tables import plan_table

    _, made = _load(schedule, overrides, None)
    if as_json:
        click.echo(json.dumps(plan_json(made), indent=1))
    else:
        Console().print(plan_table(made))


@main.command()
@click.argument("schedule", type=click.Path(path_type=Path))
@_set
@_store
@click.option("--name", help="The run's name; the schedule's own unless given.")
@click.option("--address", help="A running Ray cluster (RAY_ADDRESS counts too); a local one is started otherwise.")
@click.option(
    "--wandb", "wandb_mode", type=click.Choice(["offline", "online", "disabled"]), default="offline", show_default=True
)
@_json
@_exits
def run(
    schedule: Path,
    overrides: tuple[str, ...],
    store: str | None,
    name: str | None,
    address: str | None,
    wandb_mode: str,
    as_json: bool,
) -> None:
    """Train a schedule stage by stage, then its baselines, and report what was saved.

    What is finished is kept; the same command goes on where it was stopped.

    \b
    Example:
      raystage run jobs/schedules/quickstart.yaml --set training.optimizer.lr=4e-3 --name faster
    """
    parsed, made = _load(schedule, overrides, name)
    # The driver computes nothing: without this DeepSpeed looks for a GPU here, and says so. Workers have their own.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from rich.console import Console

    from raystage.display import make_display
    from raystage.driver import Driver
    from raystage.tables import final_table
    from raystage.tracking import WandbTracker

    opened = _open_store(store)
    folder = opened.run_folder(made.name)
    display = make_display(made, sys.stderr)
    earlier = opened.read_run(made.name, "run.json") or {}
    driver = Driver(made, parsed, opened, [display], address or os.environ.get("RAY_ADDRESS"))
    tracker = WandbTracker(
        made,
        parsed.model_dump(mode="json"),
        lambda record: (opened.stage_folder(record.key) / record.checkpoint).uri,
        mode="disabled" if driver.is_finished and earlier.get("state") == "FINISHED" else wandb_mode,
        directory=folder.path if _in_job_copy() and folder.is_local else None,
        run_ids={} if earlier.get("state") == "FINISHED" else earlier.get("wandb_run_ids"),
    )
    driver.listeners, driver.run_ids = [display, tracker], tracker.run_ids
    failed = True
    try:
        report = driver.run()
        tracker.savings(report["savings"])
        failed = False
    finally:
        display.close()
        tracker.close(failed)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    Console(stderr=as_json).print(final_table(report))
    click.echo(f"report: {folder.uri}/report.md, curves.png, report.json", err=as_json)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_store
@_json
@_exits
def report(names: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Show what runs came to: stages, baselines, savings.

    \b
    Example:
      raystage report quickstart --json
    """
    from rich.console import Console

    from raystage.tables import final_table

    opened = _open_store(store)
    reports = [_read_report(opened, name) for name in names]
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
        return
    for one in reports:
        Console().print(final_table(one))


def _load(path: Path, overrides: tuple[str, ...], name: str | None) -> tuple[Any, Any]:
    from raystage.plan import make_plan
    from raystage.schedule import load

    parsed = load(path, overrides)
    try:
        return parsed, make_plan(parsed, name)
    except InputError as error:
        raise error.inside(str(path)) from None


def _open_store(uri: str | None) -> Any:
    from raystage.storage import open_folder
    from raystage.store import Store

    if uri is None and _in_job_copy():
        uri = str(Path.home() / ".raystage")
        click.echo(f"raystage: this working directory goes with the Ray job; the store is {uri} (--store)", err=True)
    return Store(open_folder(uri or ".raystage"))


def _in_job_copy() -> bool:
    return _JOB_COPY in str(Path.cwd())


def _read_report(store: Any, name: str) -> dict[str, Any]:
    found = store.read_run(name, "report.json")
    if found is None:
        known = ", ".join(store.run_names()) or "none yet"
        raise InputError(f"no run {name!r} in {store.folder.uri}; known runs: {known}", key="NAME")
    return found
