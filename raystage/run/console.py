"""How a run looks while it goes: a live line on a terminal, few plain lines anywhere else.

Both are Listeners. `Progress` holds what is known of the stage at hand and how it reads; a display
only decides when to show it. Rich alone: no torch, ray or wandb.
"""

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

from raystage.growth.operators import in_short
from raystage.plan.gates import Rejection
from raystage.plan.plan import Plan, RunPlan, StagePlan
from raystage.report.columns import STATE_STYLES, FirstThatFits
from raystage.report.formats import format_jump, format_layers, format_loss
from raystage.report.terminal import SafeConsole
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint
from raystage.run.events import RunCallback
from raystage.run.pace import Pace
from raystage.safe_text import visible
from raystage.units import format_count, format_seconds

# At most one plain line per this time on training alone.
TRAIN_LINE_SECONDS = 10.0

_REFRESHES_PER_SECOND = 2
_BAR_WIDTH = 16


def make_display(plan: Plan, stream: TextIO | None = None, finished: Collection[str] = ()) -> Display:
    """The display that suits `stream` (standard error where none is given). finished: the keys of what the store has,
    kept up to date by the driver."""
    stream = stream or sys.stderr
    console = SafeConsole(stream)
    # Ask the stream itself: for rich, FORCE_COLOR makes a terminal of any file.
    if stream.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(plan, console, Pace(plan, finished))
    return PlainDisplay(stream, pace=Pace(plan, finished))


# --- what is shown ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a stage is. step: within the stage; run_seconds_left: of the whole run, baselines included; the rest is
    what was heard last."""

    run: RunPlan
    stage: StagePlan
    state: str
    step: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    run_seconds_left: float | None = None

    @property
    def number(self) -> str:
        """'2/3'."""
        keys = [stage.key for stage in self.run.stages]
        return f"{keys.index(self.stage.key) + 1}/{len(keys)}"

    @property
    def label(self) -> str:
        return f"[{self.run.name} {self.number} {self.stage.name}]"

    @property
    def seconds_left(self) -> float | None:
        """For the rest of the stage at the speed of the last point."""
        if not self.tokens_per_second:
            return None
        return (self.stage.tokens - self.stage.step_schedule.tokens(self.step)) / self.tokens_per_second

    def after_training(self, point: TrainPoint) -> Progress:
        return replace(
            self,
            state="RUNNING",
            step=point.steps - self.stage.start_steps,
            loss=point.loss,
            tokens_per_second=point.tokens_per_second,
        )

    def after_evaluation(self, point: Evaluation) -> Progress:
        return replace(self, state="RUNNING", step=point.steps - self.stage.start_steps, eval_loss=point.loss)

    def text(self) -> str:
        """'step 64/98  loss 2.310  eval 2.290  1.2K tok/s  0:43 left', as far as it is known."""
        parts = [f"step {self.step}/{self.stage.steps}"]
        if self.loss is not None:
            parts.append(f"loss {format_loss(self.loss)}")
        if self.eval_loss is not None:
            parts.append(f"eval {format_loss(self.eval_loss)}")
        if self.tokens_per_second:
            parts += [f"{format_count(self.tokens_per_second)} tok/s", f"{format_seconds(self.seconds_left)} left"]
            if self.run_seconds_left is not None:
                parts.append(f"run: {format_seconds(self.run_seconds_left)} left")
        elif self.state == "RUNNING":
            parts.append("time left unknown")
        return "  ".join(parts)


def describe_stage(stage: StagePlan) -> str:
    """'6 layers, 353K parameters, 98 steps of 4.1K tokens, 2 workers, ZeRO 1'."""
    training = stage.training
    return (
        f"{format_layers(stage.shape.num_layers)}, {format_count(stage.num_params)} parameters, "
        f"{stage.steps} steps of {_batches(stage)} tokens, "
        f"{training.workers!s} worker{'s' if training.workers.most > 1 else ''}, ZeRO {training.zero_stage}"
    )


def _batches(stage: StagePlan) -> str:
    """'4.1K', or of a ramp '1.0K to 4.1K'."""
    sizes = (stage.step_schedule.segments[0].batch_tokens, stage.training.global_batch_tokens)
    return " to ".join(dict.fromkeys(map(format_count, sizes)))


def describe_growth(growth: GrowthRecord) -> str:
    """'grown by duplicate in 1.2 s: eval loss 2.290 -> 2.290, logits differ by up to 3e-06, gradients as predicted
    (to 1e-06)'; of gradients only where an exact prediction was tested."""
    certificate = growth.certificate
    error = certificate.gradient_error
    gradients = "" if error is None else f", gradients as predicted (to {error:.1g})"
    return (
        f"grown by {in_short(growth.operator)} in {growth.seconds:.1f} s: "
        f"eval loss {format_jump(certificate.eval_loss_before, certificate.eval_loss_after)}, "
        f"logits differ by up to {certificate.max_logit_difference:.2g}{gradients}"
    )


# --- displays ---------------------------------------------------------------------------------


class Display(RunCallback):
    """Follows a run, stage by stage. What is told of a reused stage is past, and only its result is shown."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._progress: Progress | None = None
        self._pace = pace
        self._past_step: int | None = None  # what is told up to there is of an earlier attempt

    def preparing(self, what: str) -> None:
        self._show_preparing(what)

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        if self._progress:
            self._past_step = step
            self._progress = replace(self._progress, step=step)
            self._show_event(self._progress, f"goes on from step {step} (of {stage.steps})")

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        self._show_waiting(Progress(run, stage, "SCHEDULING"), for_what)

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._progress, self._past_step = None if reused else Progress(run, stage, "SCHEDULING"), None
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

    def _paced(self, progress: Progress) -> Progress:
        if self._pace is None:
            return progress
        left = self._pace.seconds_left(progress.stage, progress.step, progress.tokens_per_second)
        return replace(progress, run_seconds_left=left)

    def _show_unless_past(self, is_evaluation: bool) -> None:
        """Of what is past the figures are taken over, and the speed is not: it may be another machine's."""
        if self._past_step is None or self._progress.step > self._past_step:
            self._show_progress(self._progress, is_evaluation)
        else:
            self._progress = replace(
                self._progress, step=self._past_step, tokens_per_second=None, run_seconds_left=None
            )

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        if self._progress:
            self._progress = replace(self._progress, state="RESTARTING")
            self._show_event(self._progress, f"RESTARTING: {reason}")

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        self._progress = None
        self._show_event(Progress(run, stage, "RESTARTING"), rejection.sentence())

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        self._progress = None
        if self._pace:
            self._pace.finish(stage)
        self._show_result(Progress(run, stage, "REUSED" if reused else "FINISHED"), record)

    @abstractmethod
    def _show_preparing(self, what: str) -> None: ...

    @abstractmethod
    def _show_waiting(self, progress: Progress, for_what: str) -> None: ...

    @abstractmethod
    def _show_start(self, progress: Progress) -> None: ...

    @abstractmethod
    def _show_growth(self, progress: Progress, growth: GrowthRecord) -> None: ...

    @abstractmethod
    def _show_progress(self, progress: Progress, is_evaluation: bool) -> None: ...

    @abstractmethod
    def _show_event(self, progress: Progress, text: str) -> None: ...

    @abstractmethod
    def _show_result(self, progress: Progress, record: StageRecord) -> None: ...


class PlainDisplay(Display):
    """One line at the start and end of a stage, at a growth, at an evaluation; between them at most one per 10 s."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic, pace: Pace | None = None) -> None:
        super().__init__(pace)
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._last_progress = clock()

    def _show_preparing(self, what: str) -> None:
        print(f"[{format_seconds(self._clock() - self._began)}] {what}", file=self._stream, flush=True)

    def _show_waiting(self, progress: Progress, for_what: str) -> None:
        self._write(progress, f"waiting for {for_what}")

    def _show_start(self, progress: Progress) -> None:
        self._last_progress = self._clock()
        self._write(progress, describe_stage(progress.stage))

    def _show_growth(self, progress: Progress, growth: GrowthRecord) -> None:
        self._write(progress, describe_growth(growth))

    def _show_progress(self, progress: Progress, is_evaluation: bool) -> None:
        now = self._clock()
        if is_evaluation or now - self._last_progress >= TRAIN_LINE_SECONDS:
            self._last_progress = now
            self._write(progress, progress.text())

    def _show_event(self, progress: Progress, text: str) -> None:
        self._write(progress, text)

    def _show_result(self, progress: Progress, record: StageRecord) -> None:
        took = format_seconds(record.seconds)
        self._write(progress, f"{progress.state}: eval loss {format_loss(record.eval_loss)} after {took} of training")

    def _write(self, progress: Progress, text: str) -> None:
        print(visible(f"{progress.label} {text}"), file=self._stream, flush=True)


class LiveDisplay(Display):
    """One line that moves, for the stage at hand; what is finished stays above it as the rows of a table."""

    def __init__(self, plan: Plan, console: Console, pace: Pace | None = None) -> None:
        super().__init__(pace)
        self._began = time.monotonic()
        self._widths = _column_widths(plan)
        self._console = console
        self._has_header = False
        # Without the redirection other output would tear the line; what goes into a pipe is not for this terminal.
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

    def _show_waiting(self, progress: Progress, for_what: str) -> None:
        self._console.print(Text(f"{progress.label} waiting for {for_what}", style="dim"))

    def _show_start(self, progress: Progress) -> None:
        self._live.update(_live_line(progress))
        self._live.start()

    def _show_growth(self, progress: Progress, growth: GrowthRecord) -> None:
        """What the growth did stands in the row of the finished stage."""
        self._live.update(_live_line(progress))

    def _show_progress(self, progress: Progress, is_evaluation: bool) -> None:
        self._live.update(_live_line(progress))

    def _show_event(self, progress: Progress, text: str) -> None:
        self._console.print(Text(f"{progress.label} {text}", style=STATE_STYLES["RESTARTING"]))
        self._live.update(_live_line(progress))

    def _show_result(self, progress: Progress, record: StageRecord) -> None:
        self._live.update(Text(""))
        if not self._has_header:
            self._console.print(_row(self._widths, (Text(header, style="dim") for header in _HEADERS)))
            self._has_header = True
        self._console.print(_row(self._widths, _result_cells(progress, record)))


@dataclass(frozen=True)
class _Preparing:
    """What is being started, and the time since the run was. began: by `time.monotonic`."""

    what: str
    began: float

    def __rich__(self) -> Text:
        return Text(f"{self.what}  {format_seconds(time.monotonic() - self.began)}", style="dim")


_HEADERS = ("run", "", "stage", "eval", "loss at growth", "time", "state")


def _column_widths(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Fixed before the first row, so that rows printed one by one stand under each other; a width of 0 is left out.

    On a narrow terminal the stages have their numbers only.
    """
    run = max(len(run.name) for run in plan.runs())
    number = max(len(f"{len(run.stages)}/{len(run.stages)}") for run in plan.runs())
    stage = max(len(stage.name) for run in plan.runs() for stage in run.stages)
    return (run, number, stage, 6, 16, 7, 8), (run, number, 0, 6, 14, 7, 8)


def _row(layouts: tuple[tuple[int, ...], ...], cells: Iterable[Text]) -> FirstThatFits:
    """On a terminal narrower than any of the layouts the cells follow each other, and wrap."""
    cells = list(cells)
    return FirstThatFits((*(_line(cells, widths) for widths in layouts), Text("  ").join(filter(None, cells))))


def _result_cells(progress: Progress, record: StageRecord) -> list[Text]:
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


def _live_line(progress: Progress) -> FirstThatFits:
    """On a narrow terminal the figures are worth more than the bar, the state and the names."""
    name = Text(f"{progress.run.name} {progress.number} {progress.stage.name}", style="bold")
    state = Text(progress.state, style=STATE_STYLES[progress.state])
    bar = ProgressBar(total=progress.stage.steps, completed=progress.step, width=_BAR_WIDTH)
    figures = Text(progress.text())
    shortest = Text(f"{progress.number} {progress.text()}")
    layouts = ((name, state, bar, figures), (name, state, figures), (name, figures))
    return FirstThatFits((*(_line(cells) for cells in layouts), shortest))


def _line(cells: Sequence[RenderableType], widths: Sequence[int] | None = None) -> Table:
    """Cells side by side, each as wide as it needs or as `widths` says."""
    placed = [(cell, width) for cell, width in zip(cells, widths or [None] * len(cells), strict=True) if width != 0]
    line = Table.grid(*(Column(width=width, no_wrap=True) for _, width in placed), padding=(0, 1, 0, 0))
    line.add_row(*(cell for cell, _ in placed))
    return line
