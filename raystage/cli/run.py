"""`raystage run`: train a schedule stage by stage, then its baselines, and report the saving."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

import click

from raystage.cli.jobs.inside import continuing, how_to_sync, in_job, wandb_place
from raystage.cli.options import (
    address_option,
    cluster_address,
    exits,
    json_option,
    open_store,
    patience_option,
    patience_seconds,
    plan_schedule,
    print_result,
    say,
    set_option,
    store_option,
    wandb_mode_for,
    wandb_option,
)
from raystage.cli.output import DebugStream
from raystage.cluster.shutdown import SHUTDOWN


@click.command()
@click.argument("schedule", type=click.Path(path_type=Path))
@set_option
@store_option
@click.option("--name", help="The run's name; the schedule's own unless given.")
@address_option
@patience_option
@wandb_option
@json_option
@exits
def run(
    schedule: Path,
    overrides: tuple[str, ...],
    store: str | None,
    name: str | None,
    address: str | None,
    patience: str | None,
    wandb_mode: str | None,
    as_json: bool,
) -> None:
    """Train a schedule stage by stage, then its baselines, and report what was saved.

    Finished stages stay in the store. The same command continues a run that was stopped.

    \b
    Example:
      raystage init --example quickstart
      raystage run quickstart.yaml
      raystage run quickstart.yaml --set training.optimizer.lr=4e-3 --name faster
    """
    from raystage.config.schedule import load

    SHUTDOWN.install()
    mode, waits = wandb_mode_for(wandb_mode), patience_seconds(patience)
    parsed, made = plan_schedule(load(schedule, overrides), schedule, name, store)
    # The driver computes nothing. Without this, DeepSpeed looks for a GPU here and prints it. Workers set their own.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from raystage.files.typed_json import to_json
    from raystage.reports.terminal import final_table
    from raystage.runs.console import make_display
    from raystage.runs.earlier import make_way
    from raystage.runs.log import next_steps, run_command
    from raystage.runs.session import RunSession, Tracking
    from raystage.tools.deliver import DeliveredModels, delivered_models_folder
    from raystage.tools.measured import MeasuredEnsembles

    joins = cluster_address(address)
    opened = open_store(store)
    folder = opened.run_folder(made.name)
    if aside := make_way(opened, made.name, made.stage_keys()):
        say(f"raystage: {aside}", err=True)
    command = run_command(str(schedule), overrides, store, name, address, wandb_mode, patience)
    command, tracking = continuing(command, sys.argv), Tracking(mode, *wandb_place(folder))
    session = RunSession(
        made, parsed, opened, command=command, address=joins, patience_seconds=waits, tracking=tracking
    )
    # The display reports in its own words what Ray prints (for example that a worker died).
    with contextlib.redirect_stdout(DebugStream()), session:
        display = make_display(made, sys.stderr, session.finished)
        report = session.run([display, DeliveredModels(made, opened), MeasuredEnsembles(made, opened)])
    print_result(to_json(report), final_table(report), as_json)
    where = f" --store {shlex.quote(store)}" if store else ""
    say(f"report: {(folder / 'report.html').uri} (and report.md, curves.png, report.json)", err=as_json)
    for one in made.deliveries:
        say(f"delivered: {(delivered_models_folder(opened, made.name) / one.stage).uri}", err=as_json)
    if in_job() and mode == "offline":
        say(how_to_sync(folder), err=as_json)
    say(f"compare: raystage report {made.name} OTHER --html both.html{where}", err=as_json)
    for line in next_steps(session.invocation, None):
        say(line, err=as_json)
