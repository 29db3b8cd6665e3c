"""`raystage schema`: the JSON schema of a schedule or of a sweep, for editors and other programs."""

from __future__ import annotations

import click

from raystage.cli.options import exits, print_json


@click.command("schema")
@click.argument("kind", type=click.Choice(["schedule", "sweep"]), default="schedule")
@exits
def schema_command(kind: str) -> None:
    """Print the JSON schema of a schedule, or of a sweep, with a description of every key.

    An editor with a YAML language server then completes and checks the keys of a file that names the schema in a
    comment:

    \b
      # yaml-language-server: $schema=schedule.schema.json

    \b
    Example:
      raystage schema > schedule.schema.json
      raystage schema sweep > sweep.schema.json
    """
    from raystage.config.json_schema import json_schema
    from raystage.config.schedule import Schedule
    from raystage.sweeps.config import Sweep

    root = {"schedule": Schedule, "sweep": Sweep}[kind]
    print_json(json_schema(root, f"A raystage {kind}"))
