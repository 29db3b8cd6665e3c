"""`raystage store`: what lies in a store, whether it is whole, and room made in it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click

from raystage.errors import InputError
from raystage.options import exits, json_option, open_store, store_option

DAMAGED = 1


@click.group("store")
def store_group() -> None:
    """Look after a store: list it, verify its checkpoints, remove what nothing needs.

    \b
    Example:
      raystage store list
      raystage store verify
      raystage store prune --yes
    """


def _open(uri: str | None) -> Any:
    """A store that is there: of one that is not, a mistyped name is likelier than that all of it is well."""
    opened = open_store(uri)
    if not opened.folder.exists():
        problem = f"found no store at {opened.folder.uri}; expected the folder that runs wrote into"
        raise InputError(problem, key="--store")
    return opened


@store_group.command("list")
@store_option
@json_option
@exits
def list_command(store: str | None, as_json: bool) -> None:
    """List the stages and runs of a store.

    \b
    Example:
      raystage store list --store s3://my-bucket/runs
    """
    from rich.console import Console

    from raystage.housekeeping import survey
    from raystage.tables import store_table

    opened = open_store(store)
    listing = survey(opened)
    if not as_json:
        Console().print(store_table(listing))
        return
    stages = [asdict(stage) | {"state": stage.state, "runs": listing.runs_of(stage.key)} for stage in listing.stages]
    runs = [{"name": run.name, "state": run.state, "stage_keys": sorted(run.stage_keys)} for run in listing.runs]
    _print({"store": opened.folder.uri, "stages": stages, "runs": runs})


@store_group.command("verify")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@store_option
@json_option
@exits
def verify_command(keys: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Read every checkpoint again and compare its checksums.

    KEY is a stage's key or its beginning; all stages unless given. Every damaged shard is named, and then the exit
    status is 1.

    \b
    Example:
      raystage store verify 3f9a2c41
    """
    from raystage.housekeeping import chosen, survey, verify
    from raystage.units import format_bytes

    opened, began = _open(store), time.monotonic()
    found = []
    for one in verify(opened, chosen(survey(opened), keys)):
        found.append(one)
        for damage in one.damages:
            what = f": {damage.state} of {damage.parameter}" if damage.parameter else ""
            place = "/".join(filter(None, (one.key, one.checkpoint and f"checkpoints/{one.checkpoint}", damage.file)))
            click.echo(f"damaged: stages/{place}{what}: {damage.problem}", err=as_json)
    damaged = [
        {"key": one.key, "name": one.name, "checkpoint": one.checkpoint or None, **asdict(damage)}
        for one in found
        for damage in one.damages
    ]
    checkpoints, size, seconds = len(found), sum(one.bytes for one in found), time.monotonic() - began
    if as_json:
        _print({"store": opened.folder.uri, "checkpoints": checkpoints, "bytes": size, "seconds": seconds,
                "damaged": damaged})  # fmt: skip
    else:
        end = f"{len(damaged)} damaged" if damaged else "nothing is damaged"
        click.echo(f"{checkpoints} checkpoints, {format_bytes(size)} in {seconds:.1f} s: {end}")
    if damaged:
        raise click.exceptions.Exit(DAMAGED)


@store_group.command("prune")
@click.option("--yes", is_flag=True, help="Do it; otherwise it is only shown.")
@click.option("--older-than", default="1h", show_default=True, metavar="TIME",
              help="An unfinished stage that changed since then may be training, and stays: 30m, 1h, 2d.")  # fmt: skip
@store_option
@json_option
@exits
def prune_command(yes: bool, older_than: str, store: str | None, as_json: bool) -> None:
    """Remove what no run needs: stages that none refers to, older and half-written checkpoints of finished stages.

    What a run refers to stays, and all that it grew from. Without --yes nothing is removed.

    \b
    Example:
      raystage store prune
      raystage store prune --yes
    """
    from raystage.housekeeping import remove, survey
    from raystage.prune import removals
    from raystage.units import format_bytes, parse_duration

    try:
        seconds = parse_duration(older_than)
    except ValueError as error:
        raise InputError(str(error), key="--older-than") from None
    opened = _open(store)
    listing = survey(opened)
    for stage in listing.stages:
        if stage.problem:
            click.echo(f"{stage.problem}; until then no whole stage is removed", err=True)
    planned = removals(listing, time.time(), seconds)
    for one in remove(opened, planned) if yes else planned:
        place = f"{one.key}/checkpoints/{one.checkpoint}" if one.checkpoint else one.key
        done = "removed" if yes else "would remove"
        click.echo(f"{done} stages/{place}, {format_bytes(one.bytes)}: {one.reason}", err=as_json)
    size = sum(one.bytes for one in planned)
    if as_json:
        _print({"store": opened.folder.uri, "removed": yes, "bytes": size,
                "removals": [asdict(one) for one in planned]})  # fmt: skip
        return
    hint = "" if yes or not planned else "; nothing was removed (--yes does it)"
    click.echo(f"{format_bytes(size)} in {len(planned)} places{hint}" if planned else "nothing to remove")


def _print(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, indent=1))
