"""The pictures of a sweep as SVG: the stage tree, the trials across the space, the front of two objectives.

layout.py decides what they show and where. Colours come from the style sheet, by class, as for the charts of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raystage.reports.svg import (
    LETTER,
    NARROW,
    WIDE,
    Chart,
    ChartAxis,
    Line,
    Mark,
    Size,
    boxed,
    draw,
    escape,
    linear_ticks,
    segment,
    sheet,
    text,
)
from raystage.results.sweep_report import SweepReport
from raystage.sweeps.reports.layout import (
    CoordinateAxis,
    CoordinateLine,
    Front,
    StageNode,
    coordinate_axes,
    coordinate_lines,
    front,
    stage_tree,
)
from raystage.sweeps.reports.summary import verdict
from raystage.units import format_count

_ROW = 44
_HEADER = 26
_AXIS_ROW = 84


@dataclass(frozen=True)
class Drawing:
    """One picture as SVG text, for wide and for narrow screens."""

    wide: str
    narrow: str


def tree_drawing(report: SweepReport) -> Drawing | None:
    """None if no stage was started."""
    nodes = stage_tree(report)
    return _both(lambda size: _draw_tree(report, nodes, size)) if nodes else None


def coordinates_drawing(report: SweepReport) -> Drawing | None:
    """None if nothing was measured, or if no path took two values."""
    axes = coordinate_axes(report)
    lines = coordinate_lines(report, axes)
    return _both(lambda size: _draw_coordinates(axes, lines, size)) if lines else None


def front_drawing(report: SweepReport) -> Drawing | None:
    """None if there is only one objective."""
    found = front(report)
    return _both(lambda size: _draw_front(found, size)) if found else None


def _both(drawn: Callable[[Size], str]) -> Drawing:
    return Drawing(drawn(WIDE), drawn(NARROW))


def _svg(size: Size, height: float, summary: str, parts: Iterable[str]) -> str:
    head = (
        f'<svg class="chart {size.name}" viewBox="0 0 {size.width} {height:g}" role="img" '
        f'aria-label="{escape(summary)}" font-size="{size.font:g}">'
    )
    return "\n".join([head, *parts, "</svg>"])


# --- the tree ---------------------------------------------------------------------------------


def _draw_tree(report: SweepReport, nodes: Sequence[StageNode], size: Size) -> str:
    columns = max(node.column for node in nodes) + 1
    width = (size.width - 24) / columns
    best = report.best.number if report.best else None
    at = {node.key: (14 + width * node.column, _HEADER + _ROW * (node.row + 0.5)) for node in nodes}
    # The line of the best trial comes last, on top.
    below = sorted((node for node in nodes if node.parent), key=lambda node: best in node.trials)
    parts = [_edge(node, at, node.parent, best) for node in below]
    parts += [_from_prefix(node, at) for node in nodes if node.prefix]
    parts += [text(name, 5 + width * column, 14, "stage", "start") for column, name in _names(nodes, width, size)]
    ranks = {row.number: row.rank for row in report.trials}
    for node in nodes:
        parts += _node(node, at[node.key], width, size, best, ranks)
    height = _HEADER + _ROW * (max(node.row for node in nodes) + 1)
    shared = sum(node.is_shared for node in nodes)
    trials = len({number for node in nodes for number in node.trials})
    return _svg(size, height, f"{len(nodes)} stages of {trials} trials as a tree; {shared} are shared.", parts)


def _names(nodes: Sequence[StageNode], width: float, size: Size) -> list[tuple[int, str]]:
    """The stage name above each column, if all stages of the column have the same name."""
    found = []
    for column in sorted({node.column for node in nodes}):
        names = {node.name for node in nodes if node.column == column}
        if len(names) == 1:
            found.append((column, _cut(names.pop(), width - 10, size)))
    return found


def _edge(node: StageNode, at: Mapping[str, tuple[float, float]], parent: str, best: int | None) -> str:
    """The line from a stage to one that was trained from its end. Its width shows how many trials go through it."""
    (x1, y1), (x2, y2) = at[parent], at[node.key]
    style = "edge saving" if best in node.trials else "edge"
    corner = x2 - 18
    path = f"M{x1:.1f},{y1:.1f}H{corner:.1f}V{y2:.1f}H{x2:.1f}"
    return f'<path class="{style}" stroke-width="{_breadth(node):g}" d="{path}"/>'


def _breadth(node: StageNode) -> float:
    return min(1.2 + 0.5 * (len(node.trials) - 1), 5)


def _from_prefix(node: StageNode, at: Mapping[str, tuple[float, float]]) -> str:
    (x, y1), (_, y2) = at[node.prefix], at[node.key]
    return segment("donor", x, y1, x, y2)


def _node(
    node: StageNode,
    place: tuple[float, float],
    width: float,
    size: Size,
    best: int | None,
    ranks: Mapping[int, int | None],
) -> list[str]:
    """A disc with the number of trials that share the stage, or a ring if only one trial uses it. The loss stands above
    the line, the stage's own values below."""
    x, y = place
    style = "saving" if best in node.trials else "staged"
    title = f"<title>{escape(_in_words(node))}</title>"
    radius = 9 if node.is_shared else 4.5
    parts = [f'<circle class="{"shared" if node.is_shared else "end"} {style}" cx="{x:.1f}" cy="{y:.1f}" '
             f'r="{radius:g}">{title}</circle>']  # fmt: skip
    if node.is_shared:
        parts.append(text(str(len(node.trials)), x, y + 0.32 * size.font, "count", "middle"))
    room = width - 34
    figures = ["-" if node.loss is None else f"{node.loss:.4f}", *(_end(number, ranks) for number in node.ends[:1])]
    words = next((one for one in ("  ".join(figures), figures[0]) if LETTER * size.font * len(one) <= room), "")
    above, below = y - 0.4 * size.font - 1, y + 1.15 * size.font + 1  # clear of the widest line
    parts.append(boxed(words, x + 13, above, f"words {style}" if best in node.ends else "words", "start", size))
    label = node.label or (f"{format_count(node.duration)} {node.unit}" if node.duration else "")
    parts.append(boxed(_cut(label, room, size), x + 13, below, "label words", "start", size))
    return parts


def _end(number: int, ranks: Mapping[int, int | None]) -> str:
    rank = ranks.get(number)
    return f"trial {number}" + (f", rank {rank}" if rank else "")


def _cut(words: str, room: float, size: Size) -> str:
    most = int(room / (LETTER * size.font))
    return words if len(words) <= most else f"{words[: max(most - 1, 0)]}…"


def _in_words(node: StageNode) -> str:
    facts = [node.label, f"{format_count(node.duration)} {node.unit}" if node.duration else "not finished"]
    facts += [f"held-out loss {node.loss:.4f}"] if node.loss is not None else []
    numbers = ", ".join(map(str, node.trials[:12])) + (", ..." if len(node.trials) > 12 else "")
    facts += [f"trial{'s' if node.is_shared else ''} {numbers}"]
    facts += ["continued from its shorter version"] if node.prefix else []
    return f"{node.name}: {'; '.join(fact for fact in facts if fact)}"


# --- parallel coordinates ---------------------------------------------------------------------


def _draw_coordinates(axes: Sequence[CoordinateAxis], lines: Sequence[CoordinateLine], size: Size) -> str:
    """The axes are horizontal, one below the other, so that paths can be read as they are written."""
    start, end = 20, size.width - 24
    height = _AXIS_ROW * (len(axes) - 1) + 60
    levels = [_AXIS_ROW * index + 32 for index in range(len(axes))]
    parts = [_coordinate_line(line, levels, start, end) for line in lines]
    for axis, level in zip(axes, levels, strict=True):
        parts.append(segment("axis", start, level, end, level))
        parts.append(text(_cut(axis.title, end, size), 2, level - 14, "axis-title words", "start"))
        parts += _coordinate_ticks(axis, level, start, end, size)
    best = f"the best is {lines[-1].title}" if lines[-1].rank == 1 else ""
    return _svg(size, height, f"{len(lines)} trials across {len(axes) - 1} values of the space; {best}.", parts)


def _coordinate_line(line: CoordinateLine, levels: Sequence[float], start: float, end: float) -> str:
    spots = zip(line.places, levels, strict=True)
    points = " ".join(f"{start + place * (end - start):.1f},{level}" for place, level in spots)
    style = "best" if line.rank == 1 else f"fifth-{line.fifth}"
    return f'<polyline class="trial {style}" points="{points}"><title>{escape(line.title)}</title></polyline>'


def _coordinate_ticks(axis: CoordinateAxis, level: float, start: float, end: float, size: Size) -> list[str]:
    """The labels below an axis. A label that would overlap the one before is left out."""
    parts, free = [], 0.0
    for place, word in axis.ticks:
        x, half = start + place * (end - start), LETTER * size.font * len(word) / 2
        parts.append(segment("axis", x, level - 4, x, level + 4))
        middle = min(max(x, half), size.width - half)
        if middle - half >= free:
            parts.append(boxed(word, middle, level + 1.35 * size.font, "tick words", "middle", size))
            free = middle + half + 6
    return parts


# --- the front --------------------------------------------------------------------------------


def _draw_front(found: Front, size: Size) -> str:
    count = 8 if size is WIDE else 3
    x = _front_axis(found.x_title, [point[0] for point in found.points], found.x.format, count)
    y = _front_axis(found.y_title, [point[1] for point in found.points], found.y.format, 6)
    marks = tuple(
        Mark(a, b, "dot saving" if is_best else "dot baseline", f"trial {number}: {_pair(found, a, b)}")
        for a, b, number, is_best in sorted(found.points, key=lambda point: point[3])
    )
    ends = "; ".join(_pair(found, a, b) for a, b in found.line[:6])
    summary = f"{found.y.words} against {found.x.words} of {len(marks)} trials. None beats: {ends}."
    broad = Size(size.name, size.width, size.height, size.font, (*size.margins[:3], size.margins[3] + 26))
    return draw(
        Chart(summary, x, y, lines=(Line(found.line, "curve front"),), marks=marks), broad, f"front-{size.name}"
    )


def _front_axis(title: str, values: Sequence[float], word: Callable[[float], str], count: int) -> ChartAxis:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return ChartAxis(title, low, high, tuple((tick, word(tick)) for tick in linear_ticks(low, high, count)))


def _pair(found: Front, x: float, y: float) -> str:
    return f"{found.x.words} {found.x.format(x)}, {found.y.words} {found.y.format(y)}"


def sweep_sheet(report: SweepReport) -> str:
    """All pictures of a sweep, with the verdict, as an SVG file."""
    drawings = [make(report) for make in (tree_drawing, coordinates_drawing, front_drawing)]
    return sheet(f"{report.name}: {verdict(report)}", [one.wide for one in drawings if one])
