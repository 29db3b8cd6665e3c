"""How a sweep looks while it runs: a live view on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raystage.reports.columns import STATE_STYLES
from raystage.safe_console import SafeConsole
from raystage.safe_text import visible
from raystage.sweeps.standing import SweepStanding
from raystage.sweeps.status import SweepDisplay
from raystage.units import format_seconds

# Without a terminal, a line is printed at least this often.
LINE_SECONDS = 60.0
_MOST_TRIALS = 8
_BAR_WIDTH = 30


def make_sweep_display(stream: TextIO | None = None) -> SweepDisplay:
    """The display that suits `stream` (standard error by default)."""
    stream = stream or sys.stderr
    console = SafeConsole(stream)
    is_live = stream.isatty() and not console.is_dumb_terminal
    return LiveSweep(console) if is_live else PlainSweep(stream)


class PlainSweep:
    """Prints a line for every event, and one about all trials when there was no event for a minute."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._said_at = stream, clock, clock()
        self._lock = threading.Lock()
        self._begun: set[int] = set()

    def say(self, line: str) -> None:
        with self._lock:
            self._write(line)

    def show(self, standing: SweepStanding) -> None:
        with self._lock:
            for trial in standing.trials:
                if trial.is_training and trial.number not in self._begun:
                    self._begun.add(trial.number)
                    self._write(f"trial {trial.number}: {trial.place()}")
            if self._clock() - self._said_at >= LINE_SECONDS:
                self._write(_in_one_line(standing))

    def close(self) -> None:
        """The lines stay on the screen."""

    def _write(self, line: str) -> None:
        self._said_at = self._clock()
        print(visible(line), file=self._stream, flush=True)


def _in_one_line(standing: SweepStanding) -> str:
    if standing.doing:
        return f"{standing.doing} ({format_seconds(standing.elapsed_seconds)} so far)"
    running = [f"trial {one.number}: {one.place()}" for one in standing.trials if one.state == "RUNNING"]
    return "; ".join([standing.count_line(), standing.best_line(), *running[:_MOST_TRIALS], standing.work_line()])


class LiveSweep:
    """The counts, the best so far, a line for every running trial and what is left; events stand above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=2, transient=True, redirect_stdout=sys.stdout.isatty())
        self._live.start()

    def say(self, line: str) -> None:
        self._console.print(Text(line))

    def show(self, standing: SweepStanding) -> None:
        self._live.update(live_view(standing))

    def close(self) -> None:
        self._live.update(Text(""))
        self._live.stop()


def live_view(standing: SweepStanding) -> RenderableType:
    """Lines that wrap on a narrow terminal."""
    if standing.doing:
        return Text(f"{standing.name}: {standing.doing}  {format_seconds(standing.elapsed_seconds)}", style="dim")
    running = [one for one in standing.trials if one.state == "RUNNING"]
    lines: list[RenderableType] = [Text.assemble((standing.name, "bold"), f"  {standing.count_line()}")]
    lines += [Text(f"  trial {one.number}: {one.place()}", style=STATE_STYLES["RUNNING"])
              for one in running[:_MOST_TRIALS]]  # fmt: skip
    if len(running) > _MOST_TRIALS:
        lines.append(Text(f"  and {len(running) - _MOST_TRIALS} more"))
    if standing.flops_total:
        bar = Table.grid()  # a bar alone would not end its line
        bar.add_row(ProgressBar(total=standing.flops_total, completed=standing.flops_done, width=_BAR_WIDTH))
        lines.append(bar)
    return Group(*lines, Text(standing.best_line()), Text(standing.work_line()))
