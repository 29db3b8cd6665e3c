"""The picture of a report: held-out loss over compute and over tokens, the staged run against its baseline.

Drawn with matplotlib's Figure directly: no pyplot, no window, no state that outlives the call. The
same report gives the same picture, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from raystage.report.curves import (
    Point,
    Run,
    Stage,
    baseline_curves,
    loss_range,
    saving_words,
    stage_curves,
    staged_points,
)
from raystage.units import format_count, format_flops

STAGED, BASELINE, SAVING, FAINT = "#0059a8", "#8a8a8a", "#c8500a", "#d5d5d5"
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "svg.hashsalt": "raystage",
}
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 11.0, 5.2, 160

_LABEL_CHARACTER = 0.0135  # width of a letter of a stage's label, in widths of a panel
_TITLE_CHARACTERS = 135  # to the figure's width


def write_curves(report: Mapping[str, Any], png: Path) -> tuple[Path, Path]:
    """Draw `report` (as `build_report` made it) into `png` and an SVG beside it; returns both paths."""
    return write_figure(lambda: draw(report), png)


def write_figure(drawn: Callable[[], Figure], png: Path) -> tuple[Path, Path]:
    """What `drawn` draws in raystage's style, as a PNG and an SVG beside it, the same bytes each time; both paths."""
    svg = png.with_suffix(".svg")
    with rc_context(STYLE):
        figure = drawn()
        figure.savefig(png, dpi=DOTS_PER_INCH, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def draw(report: Mapping[str, Any]) -> Figure:
    """Both panels, their legend below and the verdict above them."""
    stages, baselines = stage_curves(report), baseline_curves(report)
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.03)
    over_flops, over_tokens = figure.subplots(1, 2, sharey=True, width_ratios=(1.3, 1))
    for axes, unit in ((over_flops, "flops"), (over_tokens, "tokens")):
        _draw_staged(axes, unit, stages)
        _draw_baselines(axes, unit, baselines)
    _set_axes(over_flops, over_tokens, stages, baselines)
    _draw_interpolation(over_flops, baselines)
    _draw_labels(over_flops, "flops", stages)
    _draw_labels(over_tokens, "tokens", stages)
    _draw_equal_loss((over_flops, over_tokens), report["savings"])
    _draw_saving(over_flops, report["savings"])
    _write_around(figure, (over_flops, over_tokens), report)
    return figure


# --- the curves -------------------------------------------------------------------------------


def _draw_baselines(axes: Axes, unit: str, baselines: Sequence[Run]) -> None:
    for index, run in enumerate(baselines):
        label = "baseline from scratch" if index == 0 else None
        _line(axes, unit, run.points, color=BASELINE, linewidth=1.5, label=label, zorder=2)
    ends = [run.end for run in baselines if run.end]
    if ends:
        axes.plot(
            [getattr(end, unit) for end in ends], [end.loss for end in ends], linestyle="none", marker="s",
            markersize=6, markerfacecolor="white", markeredgecolor="#555555", markeredgewidth=1.5,
            label="end of each budget's run", zorder=4,
        )  # fmt: skip


def _draw_interpolation(over_flops: Axes, baselines: Sequence[Run]) -> None:
    """Between the decayed ends the loss lies below straight lines over log FLOPs."""
    ends = [run.end for run in baselines if run.end]
    if len(ends) > 1:
        over_flops.plot([end.flops for end in ends], [end.loss for end in ends], color="#555555", linewidth=1.2,
                        linestyle=(0, (1, 1.5)), label="at most: linear in log FLOPs", zorder=3)  # fmt: skip


def _draw_staged(axes: Axes, unit: str, stages: Sequence[Stage]) -> None:
    if not stages:
        return
    _line(axes, unit, staged_points(stages), color=STAGED, linewidth=2.2, label="staged run", zorder=5)
    for index, stage in enumerate(stages[1:]):
        label = "stage border" if index == 0 else None
        axes.axvline(getattr(stage.points[0], unit), color=STAGED, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.6,
                     label=label, zorder=1)  # fmt: skip
    end = stages[-1].points[-1]
    axes.plot(getattr(end, unit), end.loss, marker="o", markersize=7, color=STAGED, zorder=6)


def _line(axes: Axes, unit: str, points: Iterable[Point], **style: Any) -> None:
    """On a logarithmic axis there is no place for what came before the first token."""
    shown = [point for point in points if getattr(point, unit) > 0]
    axes.plot([getattr(point, unit) for point in shown], [point.loss for point in shown], **style)


# --- axes and words ---------------------------------------------------------------------------


def _set_axes(over_flops: Axes, over_tokens: Axes, stages: Sequence[Stage], baselines: Sequence[Run]) -> None:
    over_flops.set_xlabel("training compute (FLOPs)")
    over_tokens.set_xlabel("training tokens")
    over_flops.set_ylabel("held-out loss (nats per token)")
    over_flops.set_xscale("log")
    over_tokens.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    for axes in (over_flops, over_tokens):
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    curves = [curve for curve in (staged_points(stages), *(run.points for run in baselines)) if curve]
    if curves:
        low, high = loss_range(curves)
        over_flops.set_ylim(low, high)
        _set_flops_axis(over_flops, [point.flops for curve in curves for point in curve if point.loss <= high])
        over_tokens.set_xlim(0, 1.04 * max(curve[-1].tokens for curve in curves))


def _set_flops_axis(axes: Axes, flops: Sequence[float]) -> None:
    """From where a curve comes into view; ticks at 1, 2, 5 while there are few decades."""
    positive = [value for value in flops if value > 0]
    if not positive:
        return
    low, high = 0.9 * min(positive), 1.2 * max(positive)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_flops(value)))
    axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_labels(axes: Axes, unit: str, stages: Sequence[Stage]) -> None:
    """The stages' names above the panel; where the stretches are too narrow for them, their depths."""
    stretches = [tuple(_across(axes, getattr(stage.points[end], unit)) for end in (0, -1)) for stage in stages]
    full = [f"{one.name}\n{one.num_layers} layer{'s' if one.num_layers > 1 else ''}" for one in stages]
    fits = all(_fits(label, stretch) for label, stretch in zip(full, stretches, strict=True))
    labels = full if fits else [f"{stage.num_layers}L" for stage in stages]
    for label, stretch in zip(labels, stretches, strict=True):
        if _fits(label, stretch):
            axes.text(sum(stretch) / 2, 1.01, label, transform=axes.transAxes, ha="center", va="bottom",
                      color=STAGED, fontsize=9, linespacing=1.25)  # fmt: skip


def _fits(label: str, stretch: tuple[float, ...]) -> bool:
    return stretch[1] - stretch[0] >= _LABEL_CHARACTER * max(map(len, label.split("\n")))


def _across(axes: Axes, value: float) -> float:
    """Where `value` lies between the left (0) and the right (1) end of the panel."""
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log":
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _draw_equal_loss(panels: Iterable[Axes], savings: Mapping[str, Any]) -> None:
    if savings["equal_loss_reached"]:
        for axes in panels:
            axes.axhline(savings["at_eval_loss"], color=SAVING, linewidth=1, linestyle=(0, (5, 3)),
                         label="equal loss", zorder=3)  # fmt: skip


def _draw_saving(axes: Axes, savings: Mapping[str, Any]) -> None:
    """The way from the baseline to the staged run along the line of equal loss."""
    if not savings["equal_loss_reached"]:
        return
    loss, staged, baseline = savings["at_eval_loss"], savings["flops_staged"], savings["flops_baseline"]
    axes.plot(baseline, loss, marker="o", markersize=6, markerfacecolor="white", markeredgecolor=SAVING,
              markeredgewidth=1.8, zorder=8)  # fmt: skip
    axes.annotate(
        "", xy=(staged, loss), xytext=(baseline, loss), zorder=7,
        arrowprops={"arrowstyle": "-|>", "color": SAVING, "linewidth": 2, "shrinkA": 3, "shrinkB": 3.5},
    )  # fmt: skip
    axes.annotate(
        "\n".join(saving_words(savings)), xy=(max(staged, baseline), loss), xytext=(0, -8), textcoords="offset points",
        ha="right", va="top", color=SAVING, fontsize=9.5, fontweight="bold", linespacing=1.25, zorder=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _write_around(figure: Figure, panels: Sequence[Axes], report: Mapping[str, Any]) -> None:
    """The verdict above, the legend below; in place of empty panels a word."""
    figure.suptitle(balanced(f"{report['name']}: {report['savings']['verdict']}"), x=0.012, ha="left", fontsize=10.5)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(handles) / 2), columnspacing=4)
        return
    for axes in panels:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color="#555555")


def balanced(text: str) -> str:
    """Lines of about equal length, as few as fit the width."""
    lines = math.ceil(len(text) / _TITLE_CHARACTERS)
    return fill(text, math.ceil(len(text) / lines) + (10 if lines > 1 else 0))
