"""The curves of a report: held-out and training loss over tokens, FLOPs and time. Every picture of a run uses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.units import format_share

# The first part of a run falls so steeply that it would compress the rest. No axis has to show it.
_STEEP_PART = 0.2


@dataclass(frozen=True)
class Point:
    """A loss (nats per token) at a position counted from the start of the run.

    seconds: wall-clock without evaluation; None in reports of older versions.
    """

    tokens: float
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


def stage_curves(report: Mapping[str, Any]) -> tuple[StageCurve, ...]:
    """The stages of the staged run that have points, in order. `report` is what `build_report` made."""
    field = _loss_field(report)
    return tuple(stage for stage in (_stage(row, field) for row in report["stages"]) if stage.points)


def baseline_curves(report: Mapping[str, Any]) -> tuple[BaselineCurve, ...]:
    field = _loss_field(report)
    return tuple(run for run in (_baseline(row, field) for row in report["baseline"]["runs"]) if run.points)


def _loss_field(report: Mapping[str, Any]) -> str:
    """The field of an evaluation by which the two sides are compared."""
    return "judging_loss" if report["savings"].get("is_judged_on_half") else "loss"


def staged_points(stages: Sequence[StageCurve]) -> tuple[Point, ...]:
    return tuple(point for stage in stages for point in stage.points)


def loss_range(curves: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """The range of losses to show: all but the steep first part of each curve, with room below for text."""
    lowest = min(point.loss for curve in curves for point in curve)
    highest = max(point.loss for curve in curves for point in curve if point.tokens >= _STEEP_PART * curve[-1].tokens)
    span = (highest - lowest) or 0.1
    return lowest - 0.2 * span, highest + 0.06 * span


def _stage(row: Mapping[str, Any], field: str) -> StageCurve:
    """After a growth, the loss of the certificate is the first point, unless an evaluation is there."""
    points, growth = _points(row["evaluations"], field), row["growth"]
    if growth and points and points[0].tokens > row["start_tokens"]:
        grown = {
            "tokens": row["start_tokens"],
            "flops": row["start_flops"],
            "run_seconds": _end_of_growth(row),
            "loss": growth["certificate"]["eval_loss_after"],
        }
        points = _points([grown]) + points
    return StageCurve(
        row["name"], row["num_layers"], points, _points(row["train"]), growth["operator"] if growth else None
    )


def _end_of_growth(row: Mapping[str, Any]) -> float | None:
    """The seconds of a stage start with its growth."""
    start = row.get("start_seconds")
    return None if start is None else start + row["growth"]["seconds"]


def _baseline(row: Mapping[str, Any], field: str) -> BaselineCurve:
    points, end = _points(row["evaluations"], field), None
    if row["eval_loss"] is not None:
        timed = all(point.seconds is not None for point in points)
        loss = row["eval_loss"] if field == "loss" else row["evaluations"][-1][field]
        end = Point(row["tokens"], row["flops"], loss, row["seconds"] if timed else None)
    return BaselineCurve(points, end, row["name"])


def _points(rows: Iterable[Mapping[str, Any]], field: str = "loss") -> tuple[Point, ...]:
    """field: the loss to use, if a row has it. Stages before the last may not evaluate the halves separately."""
    losses = [(one, one["loss"] if one.get(field) is None else one[field]) for one in rows]
    return tuple(
        Point(one["tokens"], one["flops"], loss, one.get("run_seconds")) for one, loss in losses if loss is not None
    )


def saving_words(savings: Mapping[str, Any]) -> tuple[str, str]:
    """The two lines at the arrow from the baseline's compute to the staged run's.

    A curve shows one seed; only the verdict covers several.
    """
    share, faster = savings["compute_saved"], savings["speedup"]
    most = savings.get("compute_saved_at_most")
    if most is not None and share < 0 < most:
        return "no saving shown", f"({format_share(share)} to {format_share(most)})"
    first = f"{format_share(share)} of compute saved" if share >= 0 else f"{format_share(-share)} more compute"
    seeds = savings.get("seeds")
    second = f"seed {seeds['seeds'][0]} alone" if seeds else f"{format_share(faster)} speed-up"
    return first, f"({second})"
