"""How the progress of a run is shown: by a live line on a terminal, by plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from raystage.plans.gates import Rejection
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.reports.columns import STATE_STYLES, FirstThatFits
from raystage.reports.formats import format_jump, format_loss
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint
from raystage.runs.events import RunCallback
from raystage.runs.progress import (
    Pace,
    StageProgress,
    describe_adapter,
    describe_average,
    describe_growth,
    describe_stage,
)
from raystage.safe_console import SafeConsole
from raystage.safe_text import visible
from raystage.units import format_seconds

# At most one plain line in this time is about training steps.
TRAIN_LINE_SECONDS = 10.0

_REFRESHES_PER_SECOND = 2
_BAR_WIDTH = 16


def make_display(plan: Plan, stream: TextIO | None = None, finished: Collection[str] = ()) -> Display:
    """The display that suits `stream`, by default standard error. finished: the keys of the stages that the store has,
    which the driver keeps up to date."""
    stream = stream or sys.stderr
    console = SafeConsole(stream)
    # This asks the stream itself: rich takes any file for a terminal if FORCE_COLOR is set.
    if stream.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(plan, console, Pace(plan, finished))
    return PlainDisplay(stream, pace=Pace(plan, finished))


class Display(RunCallback):
    """Follows a run, stage by stage. Of a reused stage only the result is shown."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._progress: StageProgress | None = None
        self._pace = pace
        self._past_step: int | None = None  # points up to this step are of an earlier invocation

    def preparing(self, what: str) -> None:
        self._show_preparing(what)

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        if self._progress:
            self._past_step = step
            self._progress = replace(self._progress, step=step)
            self._show_event(self._progress, f"continues from step {step} (of {stage.steps})")

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        if self._progress:
            self._progress = self._progress.without_speed()
        self._show_waiting(self._progress or StageProgress(run, stage, "SCHEDULING"), for_what)

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._progress, self._past_step = None if reused else StageProgress(run, stage, "SCHEDULING"), None
        if self._progress:
            self._show_start(self._progress)

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None:
        if self._progress and self._past_step is None:
            self._progress = replace(self._progress, state="RUNNING")
            self._show_growth(self._progress, growth)

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None:
        if self._progress:
            self._progress = self._paced(self._progress.after_training(point))
            self._show_unless_past(is_evaluation=False)

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        if self._progress:
            self._progress = self._progress.after_evaluation(point)
            self._show_unless_past(is_evaluation=True)

    def _paced(self, progress: StageProgress) -> StageProgress:
        if self._pace is None:
            return progress
        left = self._pace.seconds_left(progress.stage, progress.step, progress.speed)
        return replace(progress, run_seconds_left=left)

    def _show_unless_past(self, is_evaluation: bool) -> None:
        """Points of the past only update the figures, without the speed, which may be that of another machine."""
        if self._past_step is None or self._progress.step > self._past_step:
            self._show_progress(self._progress, is_evaluation)
        else:
            self._progress = replace(self._progress.without_speed(), step=self._past_step)

    def noted(self, run: RunPlan, stage: StagePlan, what: str) -> None:
        self._show_event(self._progress or StageProgress(run, stage, "SCHEDULING"), what)

    def interrupted(self, run: RunPlan, stage: StagePlan, why: str) -> None:
        if self._progress:
            self._progress = replace(self._progress.without_speed(), state="RESTARTING")
            self._show_event(self._progress, why)

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        if self._progress:
            self._progress = replace(self._progress.without_speed(), state="RESTARTING")
            self._show_event(self._progress, f"RESTARTING: {reason}")

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        self._progress = None
        self._show_event(StageProgress(run, stage, "RESTARTING"), rejection.sentence())

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        self._progress = None
        if self._pace:
            self._pace.finish(stage)
        progress = StageProgress(run, stage, "REUSED" if reused else "FINISHED")
        self._show_result(progress, record)
        if record.average:
            self._show_ending(progress, describe_average(record.average))
        if record.adapter:
            self._show_ending(progress, describe_adapter(record.adapter))

    @abstractmethod
    def _show_preparing(self, what: str) -> None: ...

    @abstractmethod
    def _show_waiting(self, progress: StageProgress, for_what: str) -> None: ...

    @abstractmethod
    def _show_start(self, progress: StageProgress) -> None: ...

    @abstractmethod
    def _show_growth(self, progress: StageProgress, growth: GrowthRecord) -> None: ...

    @abstractmethod
    def _show_ending(self, progress: StageProgress, text: str) -> None: ...

    @abstractmethod
    def _show_progress(self, progress: StageProgress, is_evaluation: bool) -> None: ...

    @abstractmethod
    def _show_event(self, progress: StageProgress, text: str) -> None: ...

    @abstractmethod
    def _show_result(self, progress: StageProgress, record: StageRecord) -> None: ...


class PlainDisplay(Display):
    """One line at the start and the end of a stage, at a growth, at an evaluation; otherwise at most one per 10 s."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, pace: Pace | None = None) -> None:
        super().__init__(pace)
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._last_progress = clock()

    def _show_preparing(self, what: str) -> None:
        print(f"[{format_seconds(self._clock() - self._began)}] {what}", file=self._stream, flush=True)

    def _show_waiting(self, progress: StageProgress, for_what: str) -> None:
        self._write(progress, f"waiting for {for_what}")

    def _show_start(self, progress: StageProgress) -> None:
        self._last_progress = self._clock()
        self._write(progress, describe_stage(progress.stage))

    def _show_growth(self, progress: StageProgress, growth: GrowthRecord) -> None:
        self._write(progress, describe_growth(progress.stage, growth))

    def _show_ending(self, progress: StageProgress, text: str) -> None:
        self._write(progress, text)

    def _show_progress(self, progress: StageProgress, is_evaluation: bool) -> None:
        now = self._clock()
        if is_evaluation or now - self._last_progress >= TRAIN_LINE_SECONDS:
            self._last_progress = now
            self._write(progress, progress.text())

    def _show_event(self, progress: StageProgress, text: str) -> None:
        self._write(progress, text)

    def _show_result(self, progress: StageProgress, record: StageRecord) -> None:
        took = format_seconds(record.seconds)
        self._write(progress, f"{progress.state}: eval loss {format_loss(record.eval_loss)} after {took} of training")

    def _write(self, progress: StageProgress, text: str) -> None:
        print(visible(f"{progress.label} {text}"), file=self._stream, flush=True)


class LiveDisplay(Display):
    """A live line for the current stage. Finished stages stay above it, as the rows of a table."""

    def __init__(self, plan: Plan, console: Console, pace: Pace | None = None) -> None:
        super().__init__(pace)
        self._began = time.monotonic()
        self._widths = _column_widths(plan)
        self._console = console
        self._has_header = False
        # Without the redirection other output would break the line. Output into a pipe does not go to this terminal.
        self._live = Live(
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def ended(self, error: BaseException | None) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _show_preparing(self, what: str) -> None:
        self._live.update(_Preparing(what, self._began))
        self._live.start()

    def _show_waiting(self, progress: StageProgress, for_what: str) -> None:
        self._console.print(Text(f"{progress.label} waiting for {for_what}", style="dim"))
        if progress is self._progress:
            self._live.update(_live_line(progress))

    def _show_start(self, progress: StageProgress) -> None:
        self._live.update(_live_line(progress))
        self._live.start()

    def _show_growth(self, progress: StageProgress, growth: GrowthRecord) -> None:
        """What the growth did is shown in the row of the finished stage."""
        self._live.update(_live_line(progress))

    def _show_progress(self, progress: StageProgress, is_evaluation: bool) -> None:
        self._live.update(_live_line(progress))

    def _show_event(self, progress: StageProgress, text: str) -> None:
        self._console.print(Text(f"{progress.label} {text}", style=STATE_STYLES["RESTARTING"]))
        self._live.update(_live_line(progress))

    def _show_result(self, progress: StageProgress, record: StageRecord) -> None:
        self._live.update(Text(""))
        if not self._has_header:
            self._console.print(_row(self._widths, (Text(header, style="dim") for header in _HEADERS)))
            self._has_header = True
        self._console.print(_row(self._widths, _result_cells(progress, record)))

    def _show_ending(self, progress: StageProgress, text: str) -> None:
        self._console.print(Text(f"{progress.label} {text}", style="dim"))


@dataclass(frozen=True)
class _Preparing:
    """What is being started, and the time since the start of the run. began: by `time.monotonic`."""

    what: str
    began: float

    def __rich__(self) -> Text:
        return Text(f"{self.what}  {format_seconds(time.monotonic() - self.began)}", style="dim")


_HEADERS = ("run", "", "stage", "eval", "loss at growth", "time", "state")


def _column_widths(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Column widths for a wide and a narrow terminal; a column of width 0 is left out: the names of stages.

    They are fixed before the first row, because rows are printed one by one.
    """
    run = max(len(run.name) for run in plan.runs())
    number = max(len(f"{len(run.stages)}/{len(run.stages)}") for run in plan.runs())
    stage = max(len(stage.name) for run in plan.runs() for stage in run.stages)
    return (run, number, stage, 6, 16, 7, 8), (run, number, 0, 6, 14, 7, 8)


def _row(layouts: tuple[tuple[int, ...], ...], cells: Iterable[Text]) -> FirstThatFits:
    """On a terminal that is too narrow for all layouts the cells follow each other, and wrap."""
    cells = list(cells)
    return FirstThatFits((*(_line(cells, widths) for widths in layouts), Text("  ").join(filter(None, cells))))


def _result_cells(progress: StageProgress, record: StageRecord) -> list[Text]:
    certificate = record.growth.certificate if record.growth else None
    jump = format_jump(certificate.eval_loss_before, certificate.eval_loss_after) if certificate else "-"
    cells = (
        progress.run.name,
        progress.number,
        progress.stage.name,
        format_loss(record.eval_loss),
        jump,
        format_seconds(record.seconds),
    )
    return [*map(Text, cells), Text(progress.state, style=STATE_STYLES[progress.state])]


def _live_line(progress: StageProgress) -> FirstThatFits:
    """On a narrow terminal the bar, then the state, then the names are left out."""
    name = Text(f"{progress.run.name} {progress.number} {progress.stage.name}", style="bold")
    state = Text(progress.state, style=STATE_STYLES[progress.state])
    bar = ProgressBar(total=progress.stage.steps, completed=progress.step, width=_BAR_WIDTH)
    figures = Text(progress.text())
    shortest = Text(f"{progress.number} {progress.text()}")
    layouts = ((name, state, bar, figures), (name, state, figures), (name, figures))
    return FirstThatFits((*(_line(cells) for cells in layouts), shortest))


def _line(cells: Sequence[RenderableType], widths: Sequence[int] | None = None) -> Table:
    """Cells side by side, with the given widths, or each as wide as its content."""
    placed = [(cell, width) for cell, width in zip(cells, widths or [None] * len(cells), strict=True) if width != 0]
    line = Table.grid(*(Column(width=width, no_wrap=True) for _, width in placed), padding=(0, 1, 0, 0))
    line.add_row(*(cell for cell, _ in placed))
    return line
