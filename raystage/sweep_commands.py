"""Sweeps on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import click


def print_sweep_plan(path: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """What `raystage plan` says of a sweep."""
    from rich.console import Console

    from raystage.plan_json import sweep_json
    from raystage.sweep_file import load
    from raystage.sweep_tables import sweep_table
    from raystage.trials import plan_sweep

    made = plan_sweep(load(path, overrides))
    if as_json:
        click.echo(json.dumps(sweep_json(made), indent=1))
        return
    Console().print(sweep_table(made))
