"""`raystage data`: tokenize what a schedule reads, ahead of its run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raystage.cli.options import exits, json_option, plan_schedule, print_json, say, set_option, store_option
from raystage.cli.output import Listed

if TYPE_CHECKING:
    from raystage.data.token_index import TokenIndex


@click.group("data", cls=Listed)
def data_group() -> None:
    """Prepare the text, or the samples, of a schedule.

    \b
    Example:
      raystage data prepare schedule.yaml
    """


@data_group.command("prepare")
@click.argument("schedule", type=click.Path(path_type=Path), metavar="SCHEDULE")
@set_option
@click.option(
    "--workers", type=click.IntRange(min=1), help="The number of processes; as many as there are cores unless given."
)
@store_option
@json_option
@exits
def prepare_command(
    schedule: Path, overrides: tuple[str, ...], workers: int | None, store: str | None, as_json: bool
) -> None:
    """Tokenize all text that a schedule reads, by several processes, into this machine's cache. Images are decoded.

    A run does the same at its first use of a text, one text after the other. Where this command is killed, the next one
    continues: finished shards stay. Whatever the number of processes, the tokens are the same. The store is needed if
    the schedule starts from one of its stages, or learns from one.

    \b
    Example:
      raystage data prepare schedule.yaml
      raystage data prepare schedule.yaml --workers 16
    """
    from raystage.config.schedule import load
    from raystage.data.token_cache import open_index
    from raystage.data.token_index import cache_folder
    from raystage.process_pool import num_cpus
    from raystage.units import format_count

    _, plan = plan_schedule(load(schedule, overrides), schedule, None, store)
    parts = [part.data for run in plan.runs() for stage in run.stages for part in stage.data.parts]
    texts = {data.content: data for data in parts}
    rows = []
    for data in texts.values():
        folder, start = cache_folder(data), time.perf_counter()
        with _progress_bar() as progress:
            index = open_index(data, folder, workers or num_cpus(), progress)
        rows.append(
            {
                "source": data.source,
                "path": list(data.path),
                "folder": str(folder),
                **_counted(index),
                "seconds": time.perf_counter() - start,
            }
        )
        if not as_json:
            (unit, train), (_, held_out) = _counted(index).items()
            counts = f"{format_count(train)} {unit}, {format_count(held_out)} held out"
            say(f"{data.source} {', '.join(data.path)}: {counts}, {rows[-1]['seconds']:.1f} s, in {folder}")
    if as_json:
        print_json({"texts": rows})


def _counted(index: TokenIndex) -> dict[str, int]:
    """By name how much there is on both sides: tokens, or samples where documents are samples."""
    if index.train_samples is not None:
        return {"samples": index.train_samples, "held_out_samples": index.held_out_samples}
    return {"tokens": index.train_tokens, "held_out_tokens": index.held_out_tokens}


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """On standard error: documents that are done, of all, and the time that is left."""
    from rich import progress

    from raystage.safe_console import SafeConsole

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    console = SafeConsole(stderr=True)
    shown = progress.Progress("documents", *columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task("documents", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
