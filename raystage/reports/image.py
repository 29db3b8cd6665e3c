"""A drawing of svg.py as image files: the SVG itself, and a PNG of the same elements.

Here, matplotlib only sets pixels. svg.py and its style sheet decide what is drawn, where and in which colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D, Transform

from raystage.reports.svg import file_style

DOTS_PER_INCH = 200
_UNITS_PER_INCH = 100
_POINT = 72 / _UNITS_PER_INCH
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_VARIABLE = re.compile(r"var\(--([\w-]+)\)")

Style = Mapping[str, str]


def write_image(svg: str, png: Path) -> tuple[Path, Path]:
    """Write an SVG file, as `svg.sheet` makes it, as a PNG and as an SVG beside it. Returns both paths."""
    file = png.with_suffix(".svg")
    png.write_bytes(as_png(svg))
    file.write_text(svg, encoding="utf-8")
    return png, file


def as_png(svg: str) -> bytes:
    """The same SVG gives the same bytes."""
    root = ElementTree.fromstring(svg)
    width, height = (float(root.get(name)) for name in ("width", "height"))
    figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=DOTS_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _Painter(axes, _StyleSheet.parse(file_style()), float(root.get("font-size"))).paint(root, axes.transData)
    content = io.BytesIO()
    with rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


# --- style ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StyleSheet:
    """rules: (tag or "", classes, declarations), in order. Of a selector, only the last part counts."""

    rules: tuple[tuple[str, frozenset[str], Style], ...]

    @classmethod
    def parse(cls, text: str) -> _StyleSheet:
        found = [(selector.strip(), _declarations(body)) for selector, body in _RULE.findall(text)]
        variables = {name[2:]: value for selector, body in found if selector == ":root" for name, value in body.items()}
        rules = []
        for selectors, body in found:
            body = {name: _VARIABLE.sub(lambda one: variables[one[1]], value) for name, value in body.items()}
            for selector in selectors.split(","):
                tag, *classes = selector.split()[-1].split(".")
                rules.append((tag, frozenset(classes), body))
        return cls(tuple(rules))

    def of(self, tag: str, classes: frozenset[str]) -> Style:
        """The style of an element. As in CSS, a rule with more classes wins, then the later rule."""
        fitting = [one for one in self.rules if one[0] in ("", tag) and one[1] <= classes]
        found: dict[str, str] = {}
        for _, _, body in sorted(fitting, key=lambda one: (len(one[1]), bool(one[0]))):
            found |= body
        return found


def _declarations(body: str) -> dict[str, str]:
    pairs = (one.partition(":") for one in body.split(";") if ":" in one)
    return {name.strip(): value.strip() for name, _, value in pairs}


# --- elements ---------------------------------------------------------------------------------


class _Painter:
    """Puts the elements of an SVG on axes whose units are those of its viewBox, later elements on top."""

    def __init__(self, axes: Axes, sheet: _StyleSheet, font: float) -> None:
        self._axes, self._sheet, self._font, self._count = axes, sheet, font, 0
        self._clips: dict[str, ElementTree.Element] = {}

    def paint(self, element: ElementTree.Element, where: Transform, clip: ElementTree.Element | None = None) -> None:
        for child in element:
            tag = child.tag.rpartition("}")[2]
            if tag == "clipPath":
                self._clips[f"url(#{child.get('id')})"] = child[0]
            elif tag == "g":
                self.paint(child, where, self._clips.get(child.get("clip-path", "")))
            elif tag == "svg":
                moved = Affine2D().translate(float(child.get("x", 0)), float(child.get("y", 0)))
                self.paint(child, moved + where)
            elif tag not in ("style", "title"):
                self._lay(tag, child, where, clip)

    def _lay(self, tag: str, element: ElementTree.Element, where: Transform, clip: ElementTree.Element | None) -> None:
        style = self._sheet.of(tag, frozenset(element.get("class", "").split()))
        if tag == "text":
            self._write(element, style, where)
            return
        for artist in _artists(tag, element, style):
            artist.set_transform(where)
            artist.set_clip_on(False)
            self._add(artist)
            if clip is not None:
                artist.set_clip_on(True)
                frame = _rectangle(clip)
                frame.set_transform(where)
                artist.set_clip_path(frame)

    def _add(self, artist: Artist) -> None:
        self._count += 1
        artist.set_zorder(self._count)
        self._axes.add_artist(artist)

    def _write(self, element: ElementTree.Element, style: Style, where: Transform) -> None:
        self._count += 1
        size = 15.0 if element.get("class") == "title" else self._font
        self._axes.text(
            float(element.get("x")), float(element.get("y")), (element.text or "").replace("$", r"\$"),
            ha=_ANCHORS[element.get("text-anchor", "start")], va="baseline", transform=where, clip_on=False,
            fontsize=size * _POINT, color=style.get("fill", "black"), zorder=self._count,
            fontweight="bold" if style.get("font-weight") == "600" else "normal", path_effects=_halo(style),
        )  # fmt: skip


def _artists(tag: str, element: ElementTree.Element, style: Style) -> Iterator[Artist]:
    fill, opacity = style.get("fill", "black"), float(style.get("opacity", 1))
    stroke, dashes = style.get("stroke", "none"), style.get("stroke-dasharray", "none")
    width = float(element.get("stroke-width", style.get("stroke-width", 1))) * _POINT
    pattern = "-" if dashes == "none" else (0, [float(one) * _POINT / width for one in dashes.split()])
    if tag in ("line", "polyline", "path"):
        if stroke != "none":
            yield Line2D(*zip(*_points(tag, element), strict=True), color=stroke, linewidth=width, linestyle=pattern,
                         alpha=opacity, solid_capstyle="butt", dash_capstyle="butt")  # fmt: skip
        return
    if fill == "transparent":
        return
    look = {"facecolor": fill, "edgecolor": stroke, "linewidth": width if stroke != "none" else 0, "alpha": opacity}
    if tag == "circle":
        yield Circle((float(element.get("cx")), float(element.get("cy"))), float(element.get("r")), **look)
    elif tag == "rect":
        yield _rectangle(element, **look)
    elif tag == "polygon":
        yield Polygon(_points(tag, element), **look)


def _halo(style: Style) -> list[withStroke]:
    """A border around text that separates it from the lines behind."""
    if style.get("paint-order") != "stroke":
        return []
    width = float(style["stroke-width"].removesuffix("px")) * _POINT
    return [withStroke(linewidth=width, foreground=style["stroke"])]


def _rectangle(element: ElementTree.Element, **look: object) -> Rectangle:
    x, y, width, height = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
    return Rectangle((x, y), width, height, **look)


def _points(tag: str, element: ElementTree.Element) -> list[tuple[float, float]]:
    if tag == "line":
        return [(float(element.get(f"x{end}")), float(element.get(f"y{end}"))) for end in (1, 2)]
    if tag == "path":
        return list(_corners(element.get("d")))
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def _corners(path: str) -> Iterator[tuple[float, float]]:
    """The points of a path that has only M, H and V."""
    x = y = 0.0
    for command, values in re.findall(r"([MHV])([^MHV]*)", path):
        if command == "M":
            x, y = map(float, values.split(","))
        elif command == "H":
            x = float(values)
        else:
            y = float(values)
        yield x, y
