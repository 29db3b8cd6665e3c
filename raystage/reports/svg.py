"""A chart as SVG text, inside an HTML page or as a file: scales, ticks, lines, marks.

Every element has a class, and templates/chart.css says what a class looks like, by day, in the dark and on paper.
Coordinates are in the units of the viewBox, from the upper left. image.py makes a PNG of the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from importlib.resources import files
from textwrap import wrap

from raystage.safe_text import visible

# The width of a letter in font sizes, for a sans-serif font of the system; rather too wide than too narrow.
LETTER = 0.58
_BOLD_LETTER = 0.68
_MARGIN, _TITLE_FONT = 12, 15
_HEIGHT = re.compile(r'viewBox="0 0 \d+ (\d+)')
_MEDIA = re.compile(r"@media[^{]+\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS = tuple(
    factor * unit
    for unit, factors in ((1, (1, 2, 5, 10, 15, 30)), (_MINUTE, (1, 2, 5, 10, 15, 30)), (_HOUR, (1, 2, 3, 6, 12)))
    for factor in factors
)


@dataclass(frozen=True)
class ChartAxis:
    """The range from `low` to `high`, and the ticks with their labels."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False


@dataclass(frozen=True)
class Line:
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Mark:
    """A point that shows `title` under the pointer. shape: circle, square, or spot, which is invisible."""

    x: float
    y: float
    style: str
    title: str
    shape: str = "circle"


@dataclass(frozen=True)
class ChartStretch:
    """A part of the x axis with its name above: the first of `labels` that fits. has_border: whether a line marks its
    start."""

    start: float
    end: float
    labels: tuple[str, ...]
    has_border: bool


@dataclass(frozen=True)
class Level:
    """A horizontal line across the whole chart."""

    y: float
    style: str


@dataclass(frozen=True)
class Arrow:
    """An arrow along a level, with text below its right end."""

    start: float
    end: float
    y: float
    style: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """summary: what the picture shows, for screen readers."""

    summary: str
    x: ChartAxis
    y: ChartAxis
    stretches: tuple[ChartStretch, ...] = ()
    levels: tuple[Level, ...] = ()
    lines: tuple[Line, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Size:
    """The size of the viewBox and of its letters. margins: top, right, bottom, left."""

    name: str
    width: int
    height: int
    font: float
    margins: tuple[int, int, int, int]


WIDE = Size("wide", 1000, 440, 14.5, (50, 18, 50, 52))
NARROW = Size("narrow", 380, 360, 12.5, (50, 12, 48, 40))


# --- scales and ticks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to positions from `start` to `end`, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return _multiples(step, low, high)


def time_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round times in seconds: steps of 1, 2, 5, 10, 15, 30 seconds or minutes, of hours, of days."""
    rough = (high - low) / count
    fitting = (step for step in _TIME_STEPS if step >= rough)
    return _multiples(next(fitting, _DAY * math.ceil(rough / _DAY)), low, high)


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """1, 2 and 5 times powers of ten if at most `count` of them fit, else only powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= count:
            return ticks
    return ticks[:: math.ceil(len(ticks) / count)]


def _multiples(step: float, low: float, high: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


# --- drawing ----------------------------------------------------------------------------------


def draw(chart: Chart, size: Size, identity: str) -> str:
    """The chart as one <svg>. identity: unique within its page."""
    top, right, bottom, left = size.margins
    x = Scale(chart.x.low, chart.x.high, left, size.width - right, chart.x.is_log)
    y = Scale(chart.y.low, chart.y.high, size.height - bottom, top, chart.y.is_log)
    frame = f'x="{left}" y="{top}" width="{x.end - left:g}" height="{y.start - top:g}"'
    parts = [
        f'<svg class="chart {size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(chart.summary)}" font-size="{size.font:g}">',
        f'<clipPath id="{identity}"><rect {frame}/></clipPath>',
        *_axes(chart, size, x, y),
        *_each(_stretch, chart.stretches, size, x, y),
        f'<g clip-path="url(#{identity})">',
        *_each(_level, chart.levels, x, y),
        *_each(_line, chart.lines, x, y),
        "</g>",
        *_each(_arrow, chart.arrows, size, x, y),
        *(_mark(mark, x, y) for mark in chart.marks if _is_within(mark, chart)),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _each(draw_one: Callable[..., str], things: Iterable[object], *where: object) -> list[str]:
    return [draw_one(thing, *where) for thing in things]


def _axes(chart: Chart, size: Size, x: Scale, y: Scale) -> list[str]:
    below, beside = y.start + 1.4 * size.font, x.start - 0.5 * size.font
    parts = []
    for value, word in chart.y.ticks:
        parts.append(segment("grid", x.start, y.at(value), x.end, y.at(value)))
        parts.append(text(word, beside, y.at(value) + 0.35 * size.font, "tick", "end"))
    parts.append(segment("axis", x.start, y.start, x.end, y.start))
    for value, word in chart.x.ticks:
        parts.append(segment("axis", x.at(value), y.start, x.at(value), y.start + 4))
        parts.append(text(word, _inside(word, x.at(value), size), below, "tick", "middle"))
    parts.append(text(chart.x.label, (x.start + x.end) / 2, size.height - 0.6 * size.font, "label", "middle"))
    parts.append(text(chart.y.label, 2, 1.1 * size.font, "label", "start"))
    return parts


def _inside(word: str, middle: float, size: Size) -> float:
    """The middle of a label that stays inside the picture."""
    half = LETTER * size.font * len(word) / 2
    return min(max(middle, half), size.width - half)


def _stretch(one: ChartStretch, size: Size, x: Scale, y: Scale) -> str:
    start, end = (min(max(x.at(value), x.start), x.end) for value in (max(one.start, x.low), one.end))
    border = segment("border", start, y.end, start, y.start) if one.has_border else ""
    fitting = (label for label in one.labels if LETTER * size.font * len(label) <= end - start)
    label = next(fitting, "")
    return border + (text(label, (start + end) / 2, y.end - 0.6 * size.font, "stage", "middle") if label else "")


def _level(level: Level, x: Scale, y: Scale) -> str:
    return segment(level.style, x.start, y.at(level.y), x.end, y.at(level.y))


def _line(line: Line, x: Scale, y: Scale) -> str:
    """A logarithmic axis has no place for points at zero."""
    points = [point for point in line.points if point[0] > 0 or not x.is_log]
    places = " ".join(f"{x.at(across):.1f},{y.at(up):.1f}" for across, up in points)
    return f'<polyline class="{line.style}" points="{places}"/>' if len(points) > 1 else ""


def _arrow(arrow: Arrow, size: Size, x: Scale, y: Scale) -> str:
    start, end, level = x.at(arrow.start), x.at(arrow.end), y.at(arrow.y)
    back = 1 if start > end else -1
    tip, neck = end + 6 * back, end + 14 * back  # next to the mark at its end
    head = f"{tip:.1f},{level:.1f} {neck:.1f},{level - 4.5:.1f} {neck:.1f},{level + 4.5:.1f}"
    room = level + 1.5 * size.font * (len(arrow.words) + 0.3) < y.start
    first = level + 1.5 * size.font if room else level - 0.8 * size.font - 1.3 * size.font * (len(arrow.words) - 1)
    words = (
        boxed(word, max(start, end), first + 1.3 * size.font * number, f"{arrow.style} words", "end", size)
        for number, word in enumerate(arrow.words)
    )
    return "".join([segment(arrow.style, start, level, neck, level), _polygon(arrow.style, head), *words])


def _mark(mark: Mark, x: Scale, y: Scale) -> str:
    across, up, title = x.at(mark.x), y.at(mark.y), f"<title>{escape(mark.title)}</title>"
    if mark.shape == "square":
        where = f'x="{across - 4:.1f}" y="{up - 4:.1f}" width="8" height="8"'
        return f'<rect class="{mark.style}" {where}>{title}</rect>'
    radius = {"circle": 4.5, "spot": 9}[mark.shape]
    return f'<circle class="{mark.style}" cx="{across:.1f}" cy="{up:.1f}" r="{radius:g}">{title}</circle>'


def _is_within(mark: Mark, chart: Chart) -> bool:
    return chart.x.low <= mark.x <= chart.x.high and chart.y.low <= mark.y <= chart.y.high


def segment(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _polygon(style: str, points: str) -> str:
    return f'<polygon class="{style}" points="{points}"/>'


def escape(words: str) -> str:
    """Text for SVG. Control characters, which XML does not allow, are shown as escapes."""
    return escape_html(visible(words))


def boxed(words: str, x: float, y: float, style: str, anchor: str, size: Size) -> str:
    """Text on a background of its own, so that no line drawn before crosses it."""
    is_bold = not style.startswith(("label", "tick"))
    width = (_BOLD_LETTER if is_bold else LETTER) * size.font * len(words) + 4
    left = x - {"start": 2.0, "middle": width / 2, "end": width - 2}[anchor]
    place = f'x="{left:.1f}" y="{y - size.font:.1f}" width="{width:.1f}" height="{1.3 * size.font:.1f}"'
    behind = f'<rect class="behind" {place}/>'
    return behind + text(words, x, y, style, anchor) if words else ""


def text(words: str, x: float, y: float, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


# --- a file -----------------------------------------------------------------------------------


def symbol(style: str) -> str:
    """The symbol of a class in a legend."""
    shape = f'<line class="{style}" x1="1" y1="6" x2="25" y2="6"/>'
    if style.startswith("end"):
        shape = f'<rect class="{style}" x="9" y="2" width="8" height="8"/>'
    if style.startswith("jump"):
        shape = f'<circle class="{style}" cx="13" cy="6" r="4.5"/>'
    return f'<svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{shape}</svg>'


def sheet(title: str, drawings: Sequence[str], legend: Sequence[tuple[str, str]] = ()) -> str:
    """A whole SVG file: the title, wide drawings below each other, the legend, in the page's light colours.

    legend: classes and text.
    """
    most = (WIDE.width - 2 * _MARGIN) / (LETTER * _TITLE_FONT)
    lines = wrap(title, math.ceil(len(title) / math.ceil(len(title) / most)) + 8)
    parts, y = [], _MARGIN
    for line in lines:
        parts.append(text(line, _MARGIN, y + _TITLE_FONT, "title", "start"))
        y += 1.4 * _TITLE_FONT
    for drawing in drawings:
        height = int(_HEIGHT.search(drawing)[1])
        parts.append(drawing.replace("<svg ", f'<svg y="{y + _MARGIN:g}" width="{WIDE.width}" height="{height}" ', 1))
        y += height + _MARGIN
    rows, y = _legend_rows(legend, y + _MARGIN)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDE.width} {y:g}" width="{WIDE.width}" '
        f'height="{y:g}" font-size="{WIDE.font:g}" style="font-family: sans-serif">'
    )
    ground = f'<rect class="behind" width="{WIDE.width}" height="{y:g}"/>'
    return "\n".join([head, f"<style>{file_style()}</style>", ground, *parts, *rows, "</svg>", ""])


def file_style() -> str:
    """The style sheet of drawings outside a page, without the dark colours."""
    return _MEDIA.sub("", files("raystage.reports").joinpath("templates/chart.css").read_text())


def _legend_rows(legend: Sequence[tuple[str, str]], y: float) -> tuple[list[str], float]:
    """The entries of the legend in as many rows as needed, and where the last row ends."""
    if not legend:
        return [], y
    parts, x = [], float(_MARGIN)
    for style, words in legend:
        width = 34 + LETTER * WIDE.font * len(words)
        if x > _MARGIN and x + width > WIDE.width - _MARGIN:
            x, y = float(_MARGIN), y + 1.6 * WIDE.font
        parts.append(symbol(style).replace("<svg ", f'<svg x="{x:g}" y="{y:g}" ', 1))
        parts.append(text(words, x + 32, y + 0.85 * WIDE.font, "label", "start"))
        x += width + 18
    return parts, y + 1.6 * WIDE.font + _MARGIN
