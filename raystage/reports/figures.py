"""The pictures of runs: their curves over compute, tokens and time, of one run or of several. Drawn once, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from raystage.growth.operators import in_short
from raystage.reports.curves import (
    BaselineCurve,
    Point,
    StageCurve,
    baseline_curves,
    loss_range,
    saving_words,
    stage_curves,
    staged_points,
)
from raystage.reports.formats import format_loss
from raystage.reports.svg import (
    NARROW,
    WIDE,
    Arrow,
    Chart,
    ChartAxis,
    ChartStretch,
    Level,
    Line,
    Mark,
    draw,
    linear_ticks,
    log_ticks,
    sheet,
    time_ticks,
)
from raystage.results.report import RunReport, SavingsPart
from raystage.units import format_count, format_flops, format_seconds

# The number of colours for runs in a comparison. With more runs, colours repeat.
COLOURS = 6


@dataclass(frozen=True)
class Unit:
    """A unit of the x axis, not only of progress. field: of a point. words: makes text of a value for a sentence."""

    field: str
    name: str
    label: str
    format: Callable[[float], str]
    words: Callable[[float], str]
    ticks: Callable[[float, float, int], list[float]]
    is_log: bool = False


_FLOPS = Unit("flops", "FLOPs", "training compute (FLOPs)", format_flops, lambda value: f"{format_flops(value)} FLOPs",
              log_ticks, is_log=True)  # fmt: skip
_SECONDS = Unit("seconds", "time", "training time (h:mm:ss)", format_seconds, format_seconds, time_ticks)


def _units(reports: Sequence[RunReport]) -> tuple[Unit, ...]:
    """Progress is an axis where all stages count in one unit."""
    counted = {row.unit for report in reports for row in (*report.stages, *report.baseline.runs)}
    if len(counted) != 1:
        return _FLOPS, _SECONDS
    (name,) = counted
    progress = Unit(
        "position", name, f"training {name}", format_count, lambda value: f"{format_count(value)} {name}", linear_ticks
    )
    return _FLOPS, progress, _SECONDS


def _loss_label(reports: Sequence[RunReport]) -> str:
    units = {row.loss_unit for report in reports for row in (*report.stages, *report.baseline.runs)}
    return f"held-out loss ({units.pop()})" if len(units) == 1 else "held-out loss"


@dataclass(frozen=True)
class Panel:
    """The same curves over one unit, as SVG text for wide and for narrow screens."""

    unit: Unit
    wide: str
    narrow: str


def run_panels(report: RunReport, identity: str) -> list[Panel]:
    """A run against its baselines. Empty before the first evaluation. identity: unique within the page."""
    stages, baselines = stage_curves(report), baseline_curves(report)
    curves = [staged_points(stages), *(run.points for run in baselines), _ends(baselines)]

    def chart(unit: Unit, x: ChartAxis, y: ChartAxis) -> Chart:
        return Chart(
            f"{_summary(unit, stages, baselines)} {report.savings.verdict}.",
            x,
            y,
            _stretches(stages, unit),
            _levels(report.savings),
            (*_baseline_lines(baselines, unit), *_staged_lines(stages, unit)),
            _arrows(report.savings, unit),
            (*_baseline_marks(baselines, unit), *_staged_marks(stages, unit), *_crossing(report.savings, unit)),
        )

    return _panels(chart, curves, identity, [report])


def run_sheet(report: RunReport) -> str:
    """The curves of a run over compute and over progress, with the verdict and the legend, as an SVG file."""
    panels = [panel.wide for panel in run_panels(report, "curves") if panel.unit.field != "seconds"]
    verdict = f"{report.name}: {report.savings.verdict}" + ("" if panels else "; no evaluation yet")
    return sheet(verdict, panels, run_legend(report))


def comparison_panels(reports: Sequence[RunReport], identity: str) -> list[Panel]:
    """The staged runs of several reports in one picture, with the ends of their baselines."""
    runs = [(report, staged_points(stage_curves(report))) for report in reports]
    curves = [points for _, points in runs] + [_ends(baseline_curves(report)) for report in reports]

    def chart(unit: Unit, x: ChartAxis, y: ChartAxis) -> Chart:
        lines, marks, words = [], [], []
        for number, (report, points) in enumerate(runs):
            style = colour(number)
            lines.append(Line(_along(points, unit), f"curve {style}"))
            marks += _squares(baseline_curves(report), unit, f"end {style}", f"{report.name}, ")
            marks += _spots(points, unit, report.name) + _last(points, unit, f"dot {style}", report.name)
            words += [f"{report.name} ends at {_place(points[-1], unit)}."] if points else []
        summary = f"Held-out loss of {len(runs)} staged runs over {unit.label}. {' '.join(words)}"
        return Chart(summary, x, y, lines=tuple(lines), marks=tuple(marks))

    return _panels(chart, curves, identity, reports)


def run_legend(report: RunReport) -> list[tuple[str, str]]:
    """(class, text) of what `run_panels` draws for this report."""
    stages, baselines = stage_curves(report), baseline_curves(report)
    ends = sum(run.end is not None for run in baselines)
    entries = [
        (bool(stages), "curve staged", "staged run"),
        (any(stage.train for stage in stages), "train staged", "its training loss"),
        (any(stage.growth for stage in stages), "jump staged", "just grown"),
        (bool(baselines), "curve baseline", "baselines from scratch"),
        (ends > 0, "end baseline", "end of each budget's run"),
        (ends > 1, "interpolated", "between them at most: linear in log FLOPs"),
        (report.savings.equal_loss_reached, "equal", "equal loss"),
    ]
    return [(style, words) for is_drawn, style, words in entries if is_drawn]


def comparison_legend(reports: Sequence[RunReport]) -> list[tuple[str, str]]:
    runs = [(f"curve {colour(number)}", report.name) for number, report in enumerate(reports)]
    ends = any(run.end for report in reports for run in baseline_curves(report))
    return [*runs, *([("end baseline", "its baselines' ends, in its colour")] if ends else [])]


def colour(number: int) -> str:
    """The class of run `number` in a comparison."""
    return f"run-{number % COLOURS + 1}"


# --- axes -------------------------------------------------------------------------------------


def _panels(
    chart: Callable[[Unit, ChartAxis, ChartAxis], Chart],
    curves: Sequence[Sequence[Point]],
    identity: str,
    reports: Sequence[RunReport],
) -> list[Panel]:
    """A panel for each unit that the points have. All points of `curves` are inside the axes."""
    curves = [curve for curve in curves if curve]
    if not curves:
        return []
    low, high = loss_range(curves)
    panels = []
    label = _loss_label(reports)
    for unit in _units(reports):
        extent = _extent(unit, curves, high)
        if extent is None:
            continue
        drawn = {}
        for size, x_ticks, y_ticks in ((WIDE, 9, 8), (NARROW, 4, 6)):
            x = _axis(unit, *extent, x_ticks)
            y = ChartAxis(label, low, high, tuple((tick, f"{tick:.3g}") for tick in linear_ticks(low, high, y_ticks)))
            drawn[size.name] = draw(chart(unit, x, y), size, f"{identity}-{unit.field}-{size.name}")
        panels.append(Panel(unit, **drawn))
    return panels


def _extent(unit: Unit, curves: Iterable[Sequence[Point]], highest: float) -> tuple[float, float] | None:
    """From 0 to the last point; on a logarithmic axis from where the first curve becomes visible."""
    shown = [point for curve in curves for point in curve if point.loss <= highest or not unit.is_log]
    values = [value for point in shown if (value := getattr(point, unit.field)) is not None and value > 0]
    if not values:
        return None
    return (0.9 * min(values), 1.15 * max(values)) if unit.is_log else (0.0, 1.04 * max(values))


def _axis(unit: Unit, low: float, high: float, count: int) -> ChartAxis:
    ticks = tuple((tick, unit.format(tick)) for tick in unit.ticks(low, high, count))
    return ChartAxis(unit.label, low, high, ticks, unit.is_log)


# --- what is drawn ----------------------------------------------------------------------------


def _along(points: Iterable[Point], unit: Unit) -> tuple[tuple[float, float], ...]:
    return tuple((value, point.loss) for point in points if (value := getattr(point, unit.field)) is not None)


def _ends(baselines: Sequence[BaselineCurve]) -> tuple[Point, ...]:
    """The ends of the budgets. In time, they come after the last evaluation, because saving counts."""
    return tuple(run.end for run in baselines if run.end)


def _staged_lines(stages: Sequence[StageCurve], unit: Unit) -> list[Line]:
    training = [Line(_along(stage.train, unit), "train staged") for stage in stages]
    return [*training, Line(_along(staged_points(stages), unit), "curve staged")]


def _baseline_lines(baselines: Sequence[BaselineCurve], unit: Unit) -> list[Line]:
    """Between the ends of the budgets, the loss lies below straight lines over log FLOPs."""
    lines = [Line(_along(run.points, unit), "curve baseline") for run in baselines]
    return [*lines, Line(_along(_ends(baselines), unit), "interpolated")] if unit.is_log else lines


def _staged_marks(stages: Sequence[StageCurve], unit: Unit) -> list[Mark]:
    marks = [mark for stage in stages for mark in _spots(stage.points, unit, stage.name)]
    for before, stage in pairwise(stages):
        if stage.growth:
            loss = f"{format_loss(before.points[-1].loss)} to {format_loss(stage.points[0].loss)}"
            words = f"{stage.name}, grown by {in_short(stage.growth)}: held-out loss {loss}"
            marks += _at(stage.points[0], unit, "jump staged", words)
    return marks + _last(staged_points(stages), unit, "dot staged", "end of the staged run")


def _baseline_marks(baselines: Sequence[BaselineCurve], unit: Unit) -> list[Mark]:
    spots = [mark for run in baselines for mark in _spots(run.points, unit, run.name)]
    return spots + _squares(baselines, unit, "end baseline", "")


def _squares(baselines: Sequence[BaselineCurve], unit: Unit, style: str, prefix: str) -> list[Mark]:
    ends = [(f"{prefix}end of {run.name}", run.end) for run in baselines if run.end]
    return [mark for words, end in ends for mark in _at(end, unit, style, f"{words}: {_place(end, unit)}", "square")]


def _spots(points: Iterable[Point], unit: Unit, name: str) -> list[Mark]:
    return [mark for point in points for mark in _at(point, unit, "spot", f"{name}: {_place(point, unit)}", "spot")]


def _last(points: Sequence[Point], unit: Unit, style: str, name: str) -> list[Mark]:
    return _at(points[-1], unit, style, f"{name}: {_place(points[-1], unit)}") if points else []


def _at(point: Point, unit: Unit, style: str, title: str, shape: str = "circle") -> list[Mark]:
    """One mark, or none if the point has no position on the axis."""
    value = getattr(point, unit.field)
    return [] if value is None else [Mark(value, point.loss, style, title, shape)]


def _stretches(stages: Sequence[StageCurve], unit: Unit) -> tuple[ChartStretch, ...]:
    """Where each stage lies, with its name above, or its depth if there is no room for the name."""
    stretches = []
    for index, stage in enumerate(stages):
        along = [value for value, _ in _along(stage.points, unit)]
        if along:
            layers = f"{stage.num_layers} layer{'s' if stage.num_layers != 1 else ''}"
            labels = (f"{stage.name}, {layers}", stage.name, f"{stage.num_layers}L")
            stretches.append(ChartStretch(along[0], along[-1], labels, has_border=index > 0))
    return tuple(stretches)


def _levels(savings: SavingsPart) -> tuple[Level, ...]:
    return (Level(savings.at_eval_loss, "equal"),) if savings.equal_loss_reached else ()


def _crossing(savings: SavingsPart, unit: Unit) -> list[Mark]:
    """The mark where the baseline reaches the equal loss."""
    if not savings.equal_loss_reached or unit.field != "flops":
        return []
    place = f"loss {format_loss(savings.at_eval_loss)} after {unit.words(savings.flops_baseline)} at the earliest"
    return [Mark(savings.flops_baseline, savings.at_eval_loss, "saving", f"the baselines: {place}")]


def _arrows(savings: SavingsPart, unit: Unit) -> tuple[Arrow, ...]:
    """From the baseline's compute to the staged run's, along the line of equal loss."""
    if not savings.equal_loss_reached or unit.field != "flops":
        return ()
    words = saving_words(savings)
    return (Arrow(savings.flops_baseline, savings.flops_staged, savings.at_eval_loss, "saving", words),)


# --- words ------------------------------------------------------------------------------------


def _summary(unit: Unit, stages: Sequence[StageCurve], baselines: Sequence[BaselineCurve]) -> str:
    points = staged_points(stages)
    staged = f"The staged run ({', '.join(stage.name for stage in stages)}) is at {_place(points[-1], unit)}. "
    ends = [_place(end, unit) for end in _ends(baselines)]
    against = f"Baselines from scratch end at {'; '.join(ends)}. " if ends else ""
    return f"Held-out loss over {unit.label}. {staged if points else ''}{against}In words:"


def _place(point: Point, unit: Unit) -> str:
    value = getattr(point, unit.field)
    return f"loss {format_loss(point.loss)}" + ("" if value is None else f" after {unit.words(value)}")
