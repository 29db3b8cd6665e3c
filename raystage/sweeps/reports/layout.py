"""What the pictures of a sweep show, and where: the stages as a tree, the trials as lines across the axes of the space,
the front of two objectives.

With many trials the lines would hide each other, so only the best are shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.reports.svg import linear_ticks, log_ticks
from raystage.results.sweep_report import SweepReport, TrialRow, TrialStage
from raystage.sweeps.reports.summary import Metric, better, finished, metric_of, ranked, short_names
from raystage.sweeps.space import format_value
from raystage.units import Unit, parse_count, parse_real

MOST_LEAVES = 40
MOST_LINES = 500
# Up to so many values of a path, its axis names all of them.
MOST_NAMED = 8
# From this ratio of the largest to the smallest value an axis is logarithmic.
_LOG_RATIO = 8
# The part of an axis for values, if some trials have no value there.
_SET = 0.84
FIFTHS = 5


# --- the tree ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageNode:
    """A stage that one or more trials went through.

    label: what distinguishes it from other stages after the same parent. trials: their numbers. ends: the numbers of
    trials whose last stage this is. column: how many stages come before it. row: position among the others, from 0 at
    the top; may be a fraction. prefix: the key of the shorter version that it continued.
    """

    key: str
    name: str
    label: str
    duration: int | None
    unit: Unit
    loss: float | None
    trials: tuple[int, ...]
    ends: tuple[int, ...]
    column: int
    row: float
    parent: str | None
    prefix: str | None

    @property
    def is_shared(self) -> bool:
        return len(self.trials) > 1


def stage_tree(report: SweepReport, most: int = MOST_LEAVES) -> list[StageNode]:
    """The stages of the best `most` trials, each once, from the top. What follows a stage is at its right; a longer
    version of a stage is below the shorter one."""
    rows = [row for row in ranked(report) if row.stages][:most]
    stages: dict[str, TrialStage] = {}
    through: dict[str, list[int]] = {}
    children: dict[str | None, list[str]] = {}
    for row in rows:
        parent = None
        for stage in row.stages:
            key = stage.key
            if key not in stages:
                children.setdefault(parent, []).append(key)
            if key not in stages or stages[key].eval_loss is None:
                stages[key] = stage
            through.setdefault(key, []).append(row.number)
            parent = key
    labels = _labels(rows, through)
    found: list[StageNode] = []
    next_row = [0]

    def place(key: str, parent: str | None, column: int) -> float:
        """Add a stage and all that follows it; returns its row."""
        stage, below = stages[key], _prefixes_first(children.get(key, ()), stages)
        ends = tuple(sorted(row.number for row in rows if row.stages[-1].key == key))
        at = [place(one, key, column + 1) for one in below]
        row = (at[0] + at[-1]) / 2 if at else next_row[0]
        next_row[0] += 0 if at else 1
        prefix = _prefix_key(stage)
        found.append(
            StageNode(
                key=key,
                name=stage.name,
                label=labels[key],
                duration=stage.duration,
                unit=stage.unit,
                loss=stage.eval_loss,
                trials=tuple(sorted(through[key])),
                ends=ends,
                column=column,
                row=row,
                parent=parent,
                prefix=prefix if prefix in stages else None,
            )
        )
        return row

    for root in _prefixes_first(children.get(None, ()), stages):
        place(root, None, 0)
    return sorted(found, key=lambda node: (node.column, node.row))


def _prefix_key(stage: TrialStage) -> str | None:
    return stage.prefix.key if stage.prefix else None


def _prefixes_first(keys: Iterable[str], stages: Mapping[str, TrialStage]) -> list[str]:
    """Siblings, each after the one that it went on from, else as they come."""
    left, found = list(keys), []

    def take(key: str) -> None:
        found.append(key)
        for other in left:
            if other not in found and _prefix_key(stages[other]) == key:
                take(other)

    for key in left:
        if key not in found and _prefix_key(stages[key]) not in left:
            take(key)
    return found


def _labels(rows: Sequence[TrialRow], through: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """For each stage the values that all trials through it have in common, without those that a stage before it already
    shows."""
    names = short_names(dict.fromkeys(path for row in rows for path in row.config))
    settings = {row.number: {path: format_value(value) for path, value in row.config.items()} for row in rows}
    everywhere = _common(settings.values()) if len(rows) > 1 else set()
    found: dict[str, str] = {}
    for row in rows:
        said = everywhere
        for stage in row.stages:
            alike = _common(settings[number] for number in through[stage.key])
            own = [item for item in settings[row.number].items() if item in alike - said]
            found.setdefault(stage.key, ", ".join(f"{names[path]}={value}" for path, value in own))
            said = said | alike
    return found


def _common(settings: Iterable[Mapping[str, str]]) -> set[tuple[str, str]]:
    return set.intersection(*(set(one.items()) for one in settings))


# --- parallel coordinates ---------------------------------------------------------------------


@dataclass(frozen=True)
class CoordinateAxis:
    """title: a path of the space, or the objective. ticks: (position from 0 to 1, label). places: positions of the
    trials, by number."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    places: Mapping[int, float]


@dataclass(frozen=True)
class CoordinateLine:
    """A trial's position on every axis. fifth: 1 for the best fifth of all trials, up to 5."""

    number: int
    rank: int
    fifth: int
    places: tuple[float, ...]
    title: str


def coordinate_axes(report: SweepReport, most: int = MOST_LINES) -> list[CoordinateAxis]:
    """An axis for each path that takes several values among the best `most` trials, and one for the first objective."""
    objective = report.objective[0]
    metric, rows = metric_of(objective), _measured(report)[:most]
    axes = []
    for path in dict.fromkeys(path for row in rows for path in row.config):
        values = {row.number: row.config.get(path) for row in rows}
        if len({format_value(value) for value in values.values()}) > 1:
            axes.append(_axis(path, values, format_value))
    if not axes:
        return []
    outcomes = {row.number: row.objectives[objective.name] for row in rows}
    return [*axes, _axis(f"{metric.words} ({better(objective)})", outcomes, metric.format)]


def coordinate_lines(report: SweepReport, axes: Sequence[CoordinateAxis]) -> list[CoordinateLine]:
    """The trials on their axes, the worst first, so that the best are drawn on top."""
    count = sum(row.rank is not None for row in report.trials)
    shown = [row for row in finished(report) if axes and row.number in axes[-1].places]
    metric, name = metric_of(report.objective[0]), report.objective[0].name
    return [
        CoordinateLine(
            number=row.number,
            rank=row.rank,
            fifth=1 + (row.rank - 1) * FIFTHS // count,
            places=tuple(axis.places[row.number] for axis in axes),
            title=f"trial {row.number}, rank {row.rank}: {metric.words} {metric.format(row.objectives[name])}",
        )
        for row in reversed(shown)
    ]


def _measured(report: SweepReport) -> list[TrialRow]:
    metric = report.objective[0].name
    return [row for row in finished(report) if row.objectives.get(metric) is not None]


def _axis(title: str, values: Mapping[int, Any], word: Callable[[Any], str]) -> CoordinateAxis:
    """Numbers are placed by size, logarithmically if their range is wide; other values at equal distances."""
    there = {number: value for number, value in values.items() if value is not None}
    reach = _SET if len(there) < len(values) else 1.0
    figures = {number: _figure(value) for number, value in there.items()}
    if None in figures.values():
        names = list(dict.fromkeys(map(word, there.values())))
        spots = {name: reach * (index + 0.5) / len(names) for index, name in enumerate(names)}
        places = {number: spots[word(value)] for number, value in there.items()}
        ticks = [(spots[name], name) for name in names[:: math.ceil(len(names) / MOST_NAMED)]]
    else:
        at = _scale(list(figures.values()), reach)
        places = {number: at(figure) for number, figure in figures.items()}
        written = {figures[number]: word(value) for number, value in there.items()}
        if len(written) > MOST_NAMED:
            ticks_of = log_ticks if _is_log(list(figures.values())) else linear_ticks
            written = {tick: word(tick) for tick in ticks_of(min(written), max(written), 5)}
        ticks = [(at(figure), name) for figure, name in sorted(written.items())]
    if reach < 1:
        ticks.append((1.0, "not set"))
        places |= dict.fromkeys(values.keys() - there.keys(), 1.0)
    return CoordinateAxis(title, tuple(ticks), places)


def _figure(value: Any) -> float | None:
    """A value of a space as a number, as in YAML or with a suffix. None for anything else."""
    for parse in (parse_real, parse_count):
        try:
            return float(parse(value))
        except ValueError:
            continue
    return None


def _scale(figures: Sequence[float], reach: float) -> Callable[[float], float]:
    low, high = min(figures), max(figures)
    if low == high:
        return lambda figure: reach / 2
    if _is_log(figures):
        return lambda figure: reach * math.log(figure / low) / math.log(high / low)
    return lambda figure: reach * (figure - low) / (high - low)


def _is_log(figures: Sequence[float]) -> bool:
    """Whether the range is wide and the numbers are more evenly spread on a logarithmic scale."""
    low, high, middle = min(figures), max(figures), statistics.median(figures)
    if low <= 0 or high / low < _LOG_RATIO:
        return False
    along, along_log = (middle - low) / (high - low), math.log(middle / low) / math.log(high / low)
    return abs(along_log - 0.5) < abs(along - 0.5)


# --- several objectives -----------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """The first two objectives against each other. points: (x, y, number of the trial, whether no other trial beats
    it). line: through the trials that none beats, from left to right."""

    x: Metric
    y: Metric
    x_title: str
    y_title: str
    points: tuple[tuple[float, float, int, bool], ...]

    @property
    def line(self) -> list[tuple[float, float]]:
        return sorted((x, y) for x, y, _, is_best in self.points if is_best)


def front(report: SweepReport) -> Front | None:
    """None if there is only one objective, or if no trial has both."""
    if len(report.objective) < 2:
        return None
    first, second = report.objective[:2]
    points = [
        (
            row.objectives.get(first.name),
            row.objectives.get(second.name),
            row.number,
            row.is_pareto,
        )
        for row in finished(report)
    ]
    known = tuple(point for point in points if None not in point[:2])
    x, y = metric_of(first), metric_of(second)
    titles = f"{x.words} ({better(first)})", f"{y.words} ({better(second)})"
    return Front(x, y, *titles, known) if known else None
