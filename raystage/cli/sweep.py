"""`raystage sweep`: a search over schedules."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click

from raystage.cli.jobs.inside import continuing, how_to_sync, in_job, wandb_place
from raystage.cli.options import (
    address_option,
    cluster_address,
    exits,
    json_option,
    name_models,
    open_store,
    patience_option,
    patience_seconds,
    print_result,
    say,
    store_option,
    wandb_mode_for,
    wandb_option,
)
from raystage.cli.output import DebugStream
from raystage.cluster.shutdown import SHUTDOWN


@click.command()
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Override a value of the sweep, e.g. search.max_concurrent=4.")  # fmt: skip
@store_option
@click.option("--name", help="The sweep's name; the file's own unless given.")
@address_option
@patience_option
@wandb_option
@json_option
@exits
def sweep(
    sweep: Path,
    overrides: tuple[str, ...],
    store: str | None,
    name: str | None,
    address: str | None,
    patience: str | None,
    wandb_mode: str | None,
    as_json: bool,
) -> None:
    """Search over schedules with Ray Tune. Stages that trials share are trained once.

    The plan is printed first (`raystage plan SWEEP` prints only the plan). The same command continues a sweep that was
    stopped, and trains nothing twice.

    \b
    Example:
      raystage init --example sweeps/quickstart sweep.yaml
      raystage sweep sweep.yaml
      raystage sweep sweep.yaml --set search.max_concurrent=1 --wandb disabled
    """
    SHUTDOWN.install()
    mode, waits = wandb_mode_for(wandb_mode), patience_seconds(patience)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as for `raystage run`: the driver computes nothing
    from raystage.errors import SweepFailed
    from raystage.files.typed_json import to_json
    from raystage.runs.log import sweep_command
    from raystage.safe_console import SafeConsole
    from raystage.sweeps.config import load
    from raystage.sweeps.console import make_sweep_display
    from raystage.sweeps.reports.html import write_papers
    from raystage.sweeps.reports.summary import failure
    from raystage.sweeps.search import SweepRunner, plan_with_store
    from raystage.sweeps.terminal import sweep_result_table, sweep_table
    from raystage.sweeps.trial import TrialTask

    overrides = (*overrides, f"name={name}") if name else overrides
    loaded = load(sweep, overrides)
    name_models(loaded.base, store)
    opened = open_store(store)
    made = plan_with_store(loaded, opened)
    SafeConsole(stderr=True).print(sweep_table(made))
    folder = opened.run_folder(loaded.name)
    in_store, copied_to = wandb_place(folder)
    task = TrialTask(
        sweep=loaded,
        store=opened.folder.uri,
        command=continuing(sweep_command(str(sweep), overrides, store, address, wandb_mode, patience), sys.argv),
        wandb_mode=mode,
        wandb_folder=None if copied_to else in_store or str(Path.cwd()),
        patience_seconds=waits,
    )
    display = make_sweep_display()
    search = SweepRunner(made, opened, task, display, cluster_address(address))
    # Ray prints warnings even if it is told not to.
    with contextlib.redirect_stdout(DebugStream()), contextlib.closing(display):
        report = search.run()
    write_papers(opened, made, report)
    print_result(to_json(report), sweep_result_table(report), as_json)
    best = f"; the best schedule: {(folder / 'best.yaml').uri}" if report.best else ""
    say(f"report: {(folder / 'report.html').uri}, report.md, report.json{best}", err=as_json)
    if in_job() and mode == "offline":
        say(how_to_sync(folder), err=as_json)
    if problem := failure(report):
        raise SweepFailed(problem)
