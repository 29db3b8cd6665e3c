"""`raystage plan`: what a schedule or a sweep would do and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raystage.cli.options import (
    exits,
    finished_in,
    json_option,
    name_models,
    open_store,
    plan_schedule,
    print_json,
    set_option,
)
from raystage.errors import InputError, RaystageError


@click.command()
@click.argument("schedule", type=click.Path(path_type=Path), metavar="SCHEDULE|SWEEP")
@set_option
@click.option("--suggest", "suggested", is_flag=True, help="Also suggest lengths for the stages, by published rules.")
@click.option("--address", help="Also say what this running Ray cluster has for each stage: HOST:PORT, or auto.")
@click.option("--store", metavar="URI", help="Also say which stages this store has: a path, s3://..., gs://...")
@click.option(
    "--no-code", "without_code", is_flag=True, help="Import no metric that the file names, for files that others wrote."
)
@json_option
@exits
def plan(
    schedule: Path,
    overrides: tuple[str, ...],
    suggested: bool,
    address: str | None,
    store: str | None,
    without_code: bool,
    as_json: bool,
) -> None:
    """Print what a schedule would do and cost, with warnings. Nothing is trained.

    For a sweep: its trials, the tree of their stages, and how much the trials share.

    The functions of training.evaluate.metrics are imported, to check that they can be called. That runs the files which
    the schedule names; with --no-code none of them runs.

    \b
    Example:
      raystage init --example quickstart
      raystage plan quickstart.yaml --set stages[1].until.tokens=600K
      raystage plan quickstart.yaml --suggest
      raystage plan quickstart.yaml --store .raystage
      raystage plan quickstart.yaml --address 10.0.0.1:6379
      raystage init --example sweeps/quickstart sweep.yaml
      raystage plan sweep.yaml
    """
    from raystage.cli.views.capacity import capacity_json, capacity_table
    from raystage.cli.views.plan_json import left_json, plan_json, suggestions_json, unchecked_line, unchecked_of
    from raystage.reports.plan_tables import left_line, plan_table, suggestion_table
    from raystage.reports.suggestions import suggest
    from raystage.safe_console import SafeConsole
    from raystage.sweeps.config import Sweep, load_any

    loaded = load_any(schedule, overrides)
    if isinstance(loaded, Sweep):
        if suggested:
            raise InputError("found with a sweep; expected a schedule", key="--suggest", file=str(schedule))
        if address:
            raise InputError("found with a sweep; expected a schedule", key="--address", file=str(schedule))
        _print_sweep_plan(loaded, store, not without_code, as_json)
        return
    _, made = plan_schedule(loaded, schedule, None, store, with_code=not without_code)
    finished = finished_in(store, made.stages_by_key())
    if as_json:
        suggestions = {"suggestions": suggestions_json(made)} if suggested else {}
        left = {} if finished is None else left_json(made, finished)
        unchecked = {"unchecked": unchecked_of(made)} if without_code else {}
        cluster = {"cluster": capacity_json(_capacities(made, address))} if address else {}
        print_json(plan_json(made) | suggestions | left | unchecked | cluster)
        return
    SafeConsole().print(plan_table(made))
    if finished is not None:
        SafeConsole().print(left_line(made, finished))
        if warning := _taken_name(open_store(store), made):
            SafeConsole().print(warning, style="yellow", soft_wrap=True)
    if without_code:
        SafeConsole().print(unchecked_line(unchecked_of(made)), soft_wrap=True)
    if address:
        SafeConsole().print("", capacity_table(_capacities(made, address)), sep="\n")
    if suggested:
        SafeConsole().print("", suggestion_table(made, suggest(made)), sep="\n")


def _capacities(plan: Any, address: str) -> list[Any]:
    """What the cluster at `address` has for each stage of the staged run."""
    from raystage.cluster.capacity import capacities_at

    return capacities_at(address, plan.staged.stages)


def _taken_name(store: Any, plan: Any) -> str | None:
    """A warning if the store has a run of this name with other stages; None otherwise."""
    from raystage.runs.earlier import stage_keys
    from raystage.storage.store import EARLIER
    from raystage.storage.stored_files import RUN_FILE

    try:
        before = store.read_run(plan.name, RUN_FILE)
        if before is None or stage_keys(before) == plan.stage_keys():
            return None
        what = f"of another schedule ({before['state']})"
    except RaystageError as error:
        what = f"that cannot be read ({error})"
    return (
        f"Warning: the store has a run {plan.name!r} {what}. `raystage run` will keep "
        f"its report as {plan.name}/{EARLIER}/{len(store.earlier_runs(plan.name)) + 1}; --name gives the new run "
        f"another name."
    )


def _print_sweep_plan(sweep: Any, store: str | None, with_code: bool, as_json: bool) -> None:
    """Print the plan of a sweep. store: if given, the stages in it count as done."""
    from raystage.cli.views.plan_json import sweep_json, unchecked_line, unchecked_of
    from raystage.safe_console import SafeConsole
    from raystage.sweeps.terminal import sweep_table
    from raystage.sweeps.trials import plan_sweep

    name_models(sweep.base, store)
    made = plan_sweep(sweep, with_code=with_code)
    if store and not made.is_foreseen:
        problem = "found with trials that Optuna draws as it goes; expected algorithm: grid or random"
        raise InputError(problem, key="--store", file=sweep.file)
    if finished := finished_in(store, made.keys()):
        made = plan_sweep(sweep, finished, with_code)
    if as_json:
        unchecked = {} if with_code else {"unchecked": unchecked_of(*(trial.plan for trial in made.trials))}
        print_json(sweep_json(made) | unchecked)
        return
    SafeConsole().print(sweep_table(made))
    if not with_code:
        SafeConsole().print(unchecked_line(unchecked_of(*(trial.plan for trial in made.trials))), soft_wrap=True)
