"""The curves of a report: held-out and training loss over progress, FLOPs and time. Every picture uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raystage.results.report import (
    BudgetRow,
    EvaluationPoint,
    GrowthRow,
    ResultRow,
    RunReport,
    SavingsPart,
    StageRow,
    TrainingPoint,
)
from raystage.units import format_share

# The first part of a run falls so steeply that it would compress the rest. No axis has to show it.
_STEEP_PART = 0.2


@dataclass(frozen=True)
class Point:
    """A loss (nats per token) at a position counted from the start of the run.

    seconds: wall-clock without evaluation; None in reports of older versions.
    """

    position: float
    flops: float
    loss: float
    seconds: float | None = None


@dataclass(frozen=True)
class StageCurve:
    """A stage in a picture: its points so far. growth: the operator; None if the stage does not grow."""

    name: str
    num_layers: int
    points: tuple[Point, ...]
    train: tuple[Point, ...] = ()
    growth: str | None = None


@dataclass(frozen=True)
class BaselineCurve:
    """A baseline run. end: where its budget ends; None until it is finished."""

    points: tuple[Point, ...]
    end: Point | None
    name: str = ""


def stage_curves(report: RunReport) -> tuple[StageCurve, ...]:
    """The stages of the staged run that have points, in order."""
    on_half = report.savings.is_judged_on_half
    return tuple(stage for stage in (_stage(row, on_half) for row in report.stages) if stage.points)


def baseline_curves(report: RunReport) -> tuple[BaselineCurve, ...]:
    on_half = report.savings.is_judged_on_half
    return tuple(run for run in (_baseline(row, on_half) for row in report.baseline.runs) if run.points)


def staged_points(stages: Sequence[StageCurve]) -> tuple[Point, ...]:
    return tuple(point for stage in stages for point in stage.points)


def loss_range(curves: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """The range of losses to show: all but the steep first part of each curve, with room below for text."""
    lowest = min(point.loss for curve in curves for point in curve)
    late = [point for curve in curves for point in curve if point.position >= _STEEP_PART * curve[-1].position]
    highest = max(point.loss for point in late)
    span = (highest - lowest) or 0.1
    return lowest - 0.2 * span, highest + 0.06 * span


def _stage(row: StageRow, on_half: bool) -> StageCurve:
    """After a growth, the loss of the certificate is the first point, unless an evaluation is there."""
    points, growth = _evaluated(row, on_half), row.growth
    if growth and points and points[0].position > row.start:
        loss = growth.certificate.eval_loss_after
        grown = () if loss is None else (Point(row.start, row.start_flops, loss, _end_of_growth(row, growth)),)
        points = grown + points
    train = tuple(_point(one, one.loss) for one in row.train if one.loss is not None)
    return StageCurve(row.name, row.num_layers, points, train, growth.operator if growth else None)


def _end_of_growth(row: StageRow, growth: GrowthRow) -> float | None:
    """The seconds of a stage start with its growth."""
    return None if row.start_seconds is None else row.start_seconds + growth.seconds


def _baseline(row: BudgetRow, on_half: bool) -> BaselineCurve:
    points, end = _evaluated(row, on_half), None
    if row.eval_loss is not None:
        timed = all(point.seconds is not None for point in points)
        loss = row.evaluations[-1].judging_loss if on_half else row.eval_loss
        end = Point(row.duration, row.flops, loss, row.seconds if timed else None)
    return BaselineCurve(points, end, row.name)


def _evaluated(row: ResultRow, on_half: bool) -> tuple[Point, ...]:
    """on_half: whether the two sides are compared by the loss on the half of the text that chose no value.

    Stages before the last may not evaluate the halves separately: then it is the loss on the whole text.
    """
    losses = (
        (one, one.judging_loss if on_half and one.judging_loss is not None else one.loss) for one in row.evaluations
    )
    return tuple(_point(one, loss) for one, loss in losses if loss is not None)


def _point(one: EvaluationPoint | TrainingPoint, loss: float) -> Point:
    return Point(one.position, one.flops, loss, one.run_seconds)


def saving_words(savings: SavingsPart) -> tuple[str, str]:
    """The two lines at the arrow from the baseline's compute to the staged run's.

    A curve shows one seed; only the verdict covers several.
    """
    share, faster = savings.compute_saved, savings.speedup
    most = savings.compute_saved_at_most
    if most is not None and share < 0 < most:
        return "no saving shown", f"({format_share(share)} to {format_share(most)})"
    first = f"{format_share(share)} of compute saved" if share >= 0 else f"{format_share(-share)} more compute"
    seeds = savings.seeds
    second = f"seed {seeds.seeds[0]} alone" if seeds else f"{format_share(faster)} speed-up"
    return first, f"({second})"
