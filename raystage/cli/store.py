"""`raystage store`: list a store, verify it, and free space in it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click

from raystage.cli.options import exits, json_option, open_store, print_json, say, store_option
from raystage.cli.output import Listed
from raystage.errors import InputError, RaystageError

DAMAGED = 1


@click.group("store", cls=Listed)
def store_group() -> None:
    """Maintain a store: list it, verify its checkpoints, remove what nothing needs.

    \b
    Example:
      raystage store list
      raystage store verify
      raystage store prune --yes
    """


def _open(uri: str | None) -> Any:
    """The store, which must exist: a mistyped name is more likely than an empty store. Raises InputError."""
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
    from raystage.files.typed_json import to_json
    from raystage.safe_console import SafeConsole
    from raystage.storage.survey import survey

    opened = _open(store)
    listing = survey(opened, may_remember=True, whole=False)
    for problem in listing.problems:
        say(problem, err=True)
    if not as_json:
        SafeConsole().print(_store_table(listing))
        return
    stages = [to_json(stage) | {"state": stage.state, "runs": listing.runs_of(stage.key)} for stage in listing.stages]
    runs = [_run_row(run) for run in listing.runs]
    print_json({"store": opened.folder.uri, "stages": stages, "runs": runs})


@store_group.command("verify")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@store_option
@json_option
@exits
def verify_command(keys: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Read every checkpoint again and compare its checksums.

    KEY is a stage's key, the first digits of it, or a name such as mine/full; by default all stages. Damaged shards are
    named; the exit status is then 1.

    \b
    Example:
      raystage store verify 3f9a2c41
    """
    from raystage.storage.maintenance import chosen, verify
    from raystage.storage.survey import survey
    from raystage.units import format_bytes

    opened, began = _open(store), time.monotonic()
    listing, found = survey(opened), []
    broken = [] if keys else [run.problem for run in listing.runs if run.problem]
    for problem in broken:
        say(problem, err=as_json)
    for one in verify(opened, chosen(opened, listing, keys)):
        found.append(one)
        for damage in one.damages:
            what = f": {damage.state} of {damage.parameter}" if damage.parameter else ""
            place = "/".join(filter(None, (one.key, one.checkpoint and f"checkpoints/{one.checkpoint}", damage.file)))
            say(f"damaged: stages/{place}{what}: {damage.problem}", err=as_json)
    damaged = [
        {"key": one.key, "name": one.name, "checkpoint": one.checkpoint or None, **asdict(damage)}
        for one in found
        for damage in one.damages
    ]
    checkpoints, size, seconds = len(found), sum(one.bytes for one in found), time.monotonic() - began
    if as_json:
        print_json({"store": opened.folder.uri, "checkpoints": checkpoints, "bytes": size, "seconds": seconds,
                "damaged": damaged, "damaged_runs": broken})  # fmt: skip
    else:
        bad = len(damaged) + len(broken)
        end = f"{bad} damaged" if bad else "nothing is damaged"
        say(f"{checkpoints} checkpoints, {format_bytes(size)} in {seconds:.1f} s: {end}")
    if damaged or broken:
        raise click.exceptions.Exit(DAMAGED)


@store_group.command("prune")
@click.option("--yes", is_flag=True, help="Do it; otherwise it is only shown.")
@click.option("--older-than", default="1h", show_default=True, metavar="TIME",
              help="An unfinished stage that changed since then may be training, and stays: 30m, 1h, 2d.")  # fmt: skip
@store_option
@json_option
@exits
def prune_command(yes: bool, older_than: str, store: str | None, as_json: bool) -> None:
    """Remove what no run needs: stages that no run refers to, and older or incomplete checkpoints of finished stages.

    Stages that a run refers to stay, with all that they grew from; so does a stage that lost a checkpoint. Damaged
    files are named; the exit status is then 1. Without --yes nothing is removed.

    \b
    Example:
      raystage store prune
      raystage store prune --yes
    """
    from raystage.cluster.train_notes import abandoned_notes
    from raystage.storage.maintenance import checked, links, remove
    from raystage.storage.prune import removals
    from raystage.storage.survey import survey
    from raystage.units import format_bytes, parse_duration

    try:
        seconds = parse_duration(older_than)
    except ValueError as error:
        raise InputError(str(error), key="--older-than") from None
    opened = _open(store)
    if found := links(opened):
        raise RaystageError(
            f"{found[0]}: is a symbolic link; nothing is removed from a store with links within it. "
            f"Expected the whole store behind one link, or what it points to in its place"
        )
    listing = checked(opened, survey(opened))
    for problem in listing.problems:
        say(f"{problem}; until then no whole stage is removed", err=True)
    for loss in listing.losses:
        say(f"{loss}; nothing of this stage is removed", err=True)
    planned = removals(listing, time.time(), seconds)
    done = []
    for one in remove(opened, listing, planned) if yes else planned:
        done.append(one)
        place = f"{one.key}/checkpoints/{one.checkpoint}" if one.checkpoint else one.key
        what = "removed" if yes else "would remove"
        say(f"{what} stages/{place}, {format_bytes(one.bytes)}: {one.reason}", err=as_json)
    for notes in abandoned_notes(opened.folder):
        if yes:
            notes.delete()
        what = "removed" if yes else "would remove"
        say(f"{what} ray/{notes.name}: Ray Train's notes, of a driver that has ended", err=as_json)
    size = sum(one.bytes for one in done)
    if as_json:
        found = {"removals": [asdict(one) for one in done], "problems": [*listing.problems, *listing.losses]}
        print_json({"store": opened.folder.uri, "removed": yes, "bytes": size, **found})
    else:
        hint = "" if yes or not planned else "; nothing was removed (--yes does it)"
        say(f"{format_bytes(size)} in {len(done)} places{hint}" if done else "nothing to remove")
    if listing.problems or listing.losses:
        raise click.exceptions.Exit(DAMAGED)


def _run_row(run: Any) -> dict[str, Any]:
    problem = {"problem": run.problem} if run.problem else {}
    return {"name": run.name, "state": run.state, "stage_keys": sorted(run.stage_keys), **problem}


def _length(duration: int | None, unit: str) -> str:
    """Of a stage; in tokens where no other unit is named."""
    from raystage.units import TOKENS, format_count

    if duration is None:
        return "-"
    return format_count(duration) if unit == TOKENS else f"{format_count(duration)} {unit}"


def _store_table(listing: Any) -> Any:
    """A line for each stage and each run. listing: of `raystage.storage.survey.survey`."""
    from rich.console import Group

    from raystage.reports.columns import WholeTable, name_column, number_column
    from raystage.reports.formats import KEY_DIGITS, known
    from raystage.units import format_bytes

    columns = (
        *map(name_column, ("key", "name", "state")),
        *map(number_column, ("tokens", "loss", "checkpoints", "size")),
        name_column("runs"),
    )
    rows = [
        (
            stage.key[:KEY_DIGITS],
            stage.name or "-",
            stage.state,
            _length(stage.duration, stage.unit),
            known(stage.eval_loss, "{:.4f}".format),
            str(len(stage.checkpoints)),
            format_bytes(stage.bytes),
            ", ".join(listing.runs_of(stage.key)) or "-",
        )
        for stage in listing.stages
    ]
    of_runs = (name_column("name"), name_column("state"), number_column("stages"))
    runs = [(run.name, run.state or "-", str(len(run.stage_keys))) for run in listing.runs]
    return Group(WholeTable("stages", columns, rows), "", WholeTable("runs", of_runs, runs))
