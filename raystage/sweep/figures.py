"""The pictures of a sweep as image files: its stage tree, its trials across the space, the front of two objectives.

Drawn like those of runs (raystage.report.figures); what they show and where is decided in `sweep_layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from raystage.report.figures import BASELINE, FAINT, SAVING, STAGED, WIDTH_INCHES, balanced, write_figure
from raystage.sweep.layout import (
    MOST_LEAVES,
    CoordinateAxis,
    CoordinateLine,
    Front,
    StageNode,
    coordinate_axes,
    coordinate_lines,
    front,
    stage_tree,
)
from raystage.sweep.summary import verdict

_FIFTHS = {1: STAGED, 2: "#4d86bd", 3: "#86a7c6", 4: "#b3c1cf", 5: FAINT}
_ROW_INCHES, _AXIS_INCHES, _FRONT_INCHES = 0.34, 0.62, 4.0
_LABEL_CHARACTERS = 110  # of a tree's labels, over all its columns


def write_sweep(report: Mapping[str, Any], png: Path) -> tuple[Path, Path]:
    """Draw `report` (as `build_sweep_report` made it) into `png` and an SVG beside it; returns both paths."""
    return write_figure(lambda: draw(report), png)


def draw(report: Mapping[str, Any]) -> Figure:
    """A panel below the other for each picture that there is something for, and the verdict above them."""
    nodes, axes = stage_tree(report), coordinate_axes(report)
    lines, found = coordinate_lines(report, axes), front(report)
    heights = [
        _ROW_INCHES * (max((node.row for node in nodes), default=0) + 2) if nodes else 0,
        _AXIS_INCHES * (len(axes) + 0.5) if lines else 0,
        _FRONT_INCHES if found else 0,
    ]
    shown = [height for height in heights if height] or [1.0]
    figure = Figure(figsize=(WIDTH_INCHES, sum(shown) + 0.8), layout="constrained")
    figure.suptitle(balanced(f"{report['name']}: {verdict(report)}"), x=0.012, ha="left", fontsize=10.5)
    panels = iter(figure.subplots(len(shown), 1, height_ratios=shown, squeeze=False).flat)
    if not any(heights):
        panel = next(panels)
        panel.set_axis_off()
        panel.text(0.5, 0.5, "nothing was trained yet", transform=panel.transAxes, ha="center", color="#555555")
    if nodes:
        _draw_tree(next(panels), report, nodes)
    if lines:
        _draw_coordinates(next(panels), axes, lines)
    if found:
        _draw_front(next(panels), found)
    return figure


def _draw_tree(panel: Axes, report: Mapping[str, Any], nodes: Sequence[StageNode]) -> None:
    best = report["best"]["number"] if report["best"] else None
    at = {node.key: node for node in nodes}
    columns = max(node.column for node in nodes) + 1
    for node in nodes:
        colour = SAVING if best in node.trials else BASELINE
        if node.parent:
            parent, breadth = at[node.parent], min(1 + 0.4 * (len(node.trials) - 1), 4)
            across = [parent.column, node.column - 0.08, node.column - 0.08, node.column]
            panel.plot(across, [parent.row, parent.row, node.row, node.row], color=colour, linewidth=breadth,
                       zorder=1.5 if colour == SAVING else 1)  # fmt: skip
        if node.prefix:
            panel.plot([node.column] * 2, [at[node.prefix].row, node.row], color=BASELINE, linestyle=":", zorder=1)
        _draw_node(panel, node, best, _LABEL_CHARACTERS // columns)
    panel.set_xlim(-0.1, columns - 0.05)
    panel.set_ylim(max(node.row for node in nodes) + 0.8, -0.8)
    panel.set_axis_off()
    shown, known = len({number for node in nodes for number in node.trials}), len(report["trials"])
    title = "stages, each once; a disc is shared by as many trials as it says"
    panel.set_title(title + (f"; the best {MOST_LEAVES} of {known} trials" if shown < known else ""), loc="left")


def _draw_node(panel: Axes, node: StageNode, best: int | None, most: int) -> None:
    colour = SAVING if best in node.trials else STAGED
    face, size = (colour, 14) if node.is_shared else ("white", 7)
    panel.plot(node.column, node.row, marker="o", markersize=size, color=colour, markerfacecolor=face, zorder=2)
    if node.is_shared:
        panel.text(node.column, node.row, str(len(node.trials)), color="white", ha="center", va="center", fontsize=8)
    loss = "-" if node.loss is None else f"{node.loss:.4f}"
    ends = f"  trial {node.ends[0]}" if node.ends else ""
    label = node.label if len(node.label) <= most else f"{node.label[: most - 1]}…"
    for words, offset, where in ((loss + ends, (9, 3), "bottom"), (label, (9, -3), "top")):
        panel.annotate(words, (node.column, node.row), offset, textcoords="offset points", va=where, fontsize=8,
                       color=SAVING if best in node.ends else "#333333", zorder=3,
                       bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2})  # fmt: skip


def _draw_coordinates(panel: Axes, axes: Sequence[CoordinateAxis], lines: Sequence[CoordinateLine]) -> None:
    levels = range(len(axes))
    for line in lines:
        is_best = line.rank == 1
        panel.plot(line.places, levels, color=SAVING if is_best else _FIFTHS[line.fifth],
                   linewidth=2.6 if is_best else 1.1, zorder=2)  # fmt: skip
    for level, axis in zip(levels, axes, strict=True):
        panel.axhline(level, color="#555555", linewidth=0.8, zorder=1)
        for place, word in axis.ticks:
            panel.annotate(word, (place, level), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, zorder=3)  # fmt: skip
    panel.set_yticks(levels, [axis.title for axis in axes])
    panel.set_xticks([])
    panel.set_ylim(len(axes) - 0.5, -0.5)
    panel.set_frame_on(False)
    panel.tick_params(length=0)
    panel.set_title("trials across the space; the best fifth strongest, the last faintest, the best of all in orange",
                    loc="left")  # fmt: skip


def _draw_front(panel: Axes, found: Front) -> None:
    for is_best, colour, label in ((False, BASELINE, "trials"), (True, SAVING, "that no other one beats")):
        points = [(x, y) for x, y, _, best in found.points if best is is_best]
        panel.plot([x for x, _ in points], [y for _, y in points], linestyle="none", marker="o", markersize=5,
                   color=colour, label=label, zorder=2)  # fmt: skip
    panel.plot([x for x, _ in found.line], [y for _, y in found.line], color=SAVING, linewidth=1, linestyle="--")
    panel.set_xlabel(found.x_title)
    panel.set_ylabel(found.y_title)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: found.x.format(value)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: found.y.format(value)))
    panel.grid(axis="y", color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
