"""`raystage status`: the progress of runs, while they run and afterwards."""

from __future__ import annotations

import time

import click

from raystage.cli.options import exits, json_option, open_store, print_json, say, store_option


@click.command("status")
@click.argument("name", required=False)
@store_option
@json_option
@exits
def status_command(name: str | None, store: str | None, as_json: bool) -> None:
    """Show the progress of a run or a sweep: every stage's step, losses, learning rate and time left, and its logs.

    For a sweep it shows every trial. Without NAME it shows a line for every run and sweep of the store, the latest
    first.

    \b
    Example:
      raystage status
      raystage status quickstart --json
      raystage status when-to-grow
    """
    from raystage.cli.views.run_status import all_statuses, lines_below, notes, run_table, runs_table, status_of
    from raystage.safe_console import SafeConsole

    opened, now = open_store(store), time.time()
    found = all_statuses(opened, now) if name is None else status_of(opened, name, now)
    if as_json:
        print_json(found)
    elif name is not None:
        SafeConsole().print(run_table(found, now))
        say("\n".join(lines_below(found)))
    elif found:
        SafeConsole().print(runs_table(found, now))
        say("\n".join(notes(found)), nl=bool(notes(found)))
    else:
        say(f"no runs in {opened.folder.uri}")
