"""What growing saves over the length of training: the figures of finished runs, and their picture.

    raystage sweep jobs/sweeps/saving_over_length.yaml
    python benchmarks/saving_over_length/figure.py --store .raystage --runs 'saving_over_length-*'
    python benchmarks/saving_over_length/figure.py

The first form keeps the figures of runs of a store in saving_over_length.json, the second makes the picture of what is
kept there. README.md says what was fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby, pairwise
from pathlib import Path

from raystage.files.filesystem import open_folder
from raystage.files.typed_json import from_json, to_json
from raystage.reports.svg import WIDE, Chart, ChartAxis, Level, Line, Mark, draw, sheet
from raystage.results.report import RunReport
from raystage.results.seeds import Interval, interval
from raystage.storage.store import Store
from raystage.units import format_share

HERE = Path(__file__).parent
KEPT = HERE / "saving_over_length.json"
PICTURE = HERE / "saving_over_length.svg"
TITLE = "Compute saved by growing 1 -> 6 layers late, at equal held-out loss"
# The seeds that were fixed before the first run; the others were added later.
FIRST_SEEDS = 3
# How far apart two arms of one length are drawn, as a factor on the axis.
_BESIDE = 1.04


@dataclass(frozen=True)
class Budget:
    """A budget of the baseline on the first seed, in tokens, with the values that were best for it."""

    tokens: int
    eval_loss: float
    values: dict[str, float]


@dataclass(frozen=True)
class Point:
    """A length and a way to grow. layers: of the stages. tokens_per_parameter: of the whole staged run, by the
    parameters of its last model. compute_saved: the mean over the seeds with its 95 % interval; at_most: the mean that
    straight lines between the budgets would give. by_seed: the shares of single seeds. eval_loss, flops, values: of the
    staged run on the first seed, whose baseline has `budgets`. staged_at_edge, baseline_at_edge: whether a best value
    is the smallest or the largest one that was tried; of the baseline at the two budgets around the staged run's loss,
    between which its compute is read off."""

    layers: tuple[int, ...]
    tokens_per_parameter: float
    num_params: int
    compute_saved: Interval | None
    at_most: float | None
    by_seed: tuple[float | None, ...]
    eval_loss: float
    flops: int
    values: dict[str, float]
    budgets: tuple[Budget, ...]
    staged_at_edge: bool
    baseline_at_edge: bool
    verdict: str

    @property
    def arm(self) -> str:
        """'1 -> 3 -> 6 layers', each number once."""
        return f"{' -> '.join(str(count) for count, _ in groupby(self.layers))} layers"


@dataclass(frozen=True)
class Kept:
    """The points, the shortest length first."""

    points: tuple[Point, ...]


# --- figures ----------------------------------------------------------------------------------


def point_of(report: RunReport) -> Point:
    """A finished run with tuned values. With one seed its saving has no interval."""
    savings, last = report.savings, report.stages[-1]
    rows = report.tuning.baseline.rows
    best = [
        Budget(one.budget, one.eval_loss, dict(row.values)) for row in rows for one in row.eval_losses if one.is_best
    ]
    budgets = tuple(sorted(best, key=lambda one: one.tokens))
    single = None if savings.compute_saved is None else interval([savings.compute_saved])
    most = savings.seeds.compute_saved_at_most.mean if savings.interval else savings.compute_saved_at_most
    return Point(
        layers=tuple(stage.num_layers for stage in report.stages),
        tokens_per_parameter=report.length_per_parameter,
        num_params=last.num_params,
        compute_saved=savings.interval if savings.seeds else single,
        at_most=most,
        by_seed=tuple(row.compute_saved for row in report.seeds) or (savings.compute_saved,),
        eval_loss=last.eval_loss,
        flops=sum(stage.flops for stage in report.stages),
        values=next(dict(row.values) for row in report.tuning.staged.rows if row.is_best),
        budgets=budgets,
        staged_at_edge=report.tuning.staged.at_edge,
        baseline_at_edge=is_at_edge(budgets, last.eval_loss, [row.values for row in rows]),
        verdict=savings.verdict,
    )


def is_at_edge(budgets: Sequence[Budget], eval_loss: float, tried: Sequence[Mapping[str, float]]) -> bool:
    """Whether one of the two budgets around this loss has its best value at the edge of what was tried."""
    reached = next((place for place, one in enumerate(budgets) if one.eval_loss <= eval_loss), len(budgets) - 1)
    around = budgets[max(0, reached - 1) : reached + 1]
    edges = {path: {min(one[path] for one in tried), max(one[path] for one in tried)} for path in tried[0]}
    return any(value in edges[path] for budget in around for path, value in budget.values.items())


def collect(store: Store, pattern: str) -> Kept:
    """The points of the finished runs of a store whose names match."""
    names = [name for name in store.run_names() if fnmatch(name, pattern)]
    reports = [store.run_report(name) for name in names]
    finished = [one for one in reports if isinstance(one, RunReport) and one.state == "FINISHED" and one.tuning]
    points = map(point_of, finished)
    return Kept(tuple(sorted(points, key=lambda one: (one.tokens_per_parameter, one.layers))))


def read(file: Path) -> Kept:
    return from_json(Kept, json.loads(file.read_text()))


def table(points: Iterable[Point]) -> str:
    """Markdown."""
    lines = [
        "| tokens per parameter | layers | first three seeds | all seeds | each seed | best rate, staged, seed 0 |",
        "|---|---|---|---|---|---|",
    ]
    for one in points:
        seeds = ", ".join("-" if share is None else format_share(share) for share in one.by_seed)
        rates = ", ".join(f"{value:g}" for value in one.values.values())
        first = _of_seeds(one.by_seed[:FIRST_SEEDS])
        found = f"{_with_ends(first)} | {_with_ends(one.compute_saved)}"
        lines.append(f"| {_length(one)} | {one.arm} | {found} | {seeds} | {rates} |")
    return "\n".join(lines)


def comparisons(points: Sequence[Point]) -> str:
    """Markdown: how much the saving differs between the shortest and the longest run, and between two ways to grow.
    Each seed is compared with itself."""
    arms = [[other for other in points if other.arm == arm] for arm in dict.fromkeys(one.arm for one in points)]
    lines = ["| from | to | compute saved changes by, points | 95 % interval |", "|---|---|---|---|"]
    lines += [_comparison(own[0], own[-1]) for own in arms if len(own) > 1]
    for first, second in pairwise(arms):
        lines += [_comparison(one, other) for one in first for other in second if _length(one) == _length(other)]
    return "\n".join(lines)


def _comparison(one: Point, other: Point) -> str:
    pairs = zip(one.by_seed, other.by_seed, strict=False)
    found = _of_seeds([None if None in pair else pair[1] - pair[0] for pair in pairs])
    words = " | ".join(f"{each.arm}, {_length(each)} tokens per parameter" for each in (one, other))
    mean = f"{100 * found.mean:+.1f}" if found else "-"
    ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}" if found and found.low is not None else "-"
    return f"| {words} | {mean} | {ends} |"


def _of_seeds(shares: Sequence[float | None]) -> Interval | None:
    return None if None in shares else interval(shares)


def _with_ends(found: Interval | None) -> str:
    """'52.6 % (41.1 % to 64.0 %)'."""
    if found is None:
        return "-"
    mean = format_share(found.mean)
    return mean if found.low is None else f"{mean} ({format_share(found.low)} to {format_share(found.high)})"


# --- the picture ------------------------------------------------------------------------------


def picture(points: Sequence[Point]) -> str:
    """A line for each way to grow, through the points of several seeds, with a bar for each interval."""
    shown = [one for one in points if one.compute_saved]
    arms = list(dict.fromkeys(one.arm for one in shown))
    lines, marks = [], []
    for number, arm in enumerate(arms):
        own = [(_place(one, number, len(arms)), one) for one in shown if one.arm == arm]
        style = f"run-{number + 1}"
        means = [(x, 100 * one.compute_saved.mean) for x, one in own if one.compute_saved.low is not None]
        lines.append(Line(means, f"curve {style}"))
        for x, one in own:
            found = one.compute_saved
            if found.low is not None:
                lines.append(Line([(x, 100 * found.low), (x, 100 * found.high)], "curve baseline"))
            marks.append(Mark(x, 100 * found.mean, f"dot {style}", _words(one)))
    low, high = _range(shown)
    lengths = sorted({round(one.tokens_per_parameter, 1) for one in shown})
    chart = Chart(
        summary=f"{TITLE}: {'; '.join(map(_words, shown))}",
        x=ChartAxis(
            "training tokens per parameter", lengths[0] / 1.3, lengths[-1] * 1.3,
            tuple((one, f"{one:g}") for one in lengths), is_log=True,
        ),
        y=ChartAxis("compute saved, %", low, high, tuple((float(one), str(one)) for one in range(low, high + 1, 10))),
        levels=(Level(0.0, "equal"),) if low <= 0 else (),
        lines=tuple(lines),
        marks=tuple(marks),
    )  # fmt: skip
    legend = [(f"curve run-{number + 1}", arm) for number, arm in enumerate(arms)]
    has_one = any(one.compute_saved.low is None for one in points)
    legend.append(("curve baseline", "95 % interval" + ("; a point without it has one seed" if has_one else "")))
    return sheet(TITLE, [draw(chart, WIDE, "saving")], legend)


def _place(point: Point, number: int, count: int) -> float:
    return point.tokens_per_parameter * _BESIDE ** (2 * number - count + 1)


def _length(point: Point) -> str:
    return f"{point.tokens_per_parameter:.3g}"


def _range(points: Sequence[Point]) -> tuple[int, int]:
    """Tens of per cent around all intervals, from 0 at the most."""
    found = [one.compute_saved for one in points]
    low = min(one.mean if one.low is None else one.low for one in found)
    high = max(one.mean if one.high is None else one.high for one in found)
    return min(0, int(10 * low // 1) * 10), int(10 * high // 1 + 1) * 10


def _words(point: Point) -> str:
    return f"{point.arm}, {_length(point)} tokens per parameter: {_with_ends(point.compute_saved)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="a store with finished runs, whose figures are kept")
    parser.add_argument("--runs", default="saving_over_length-*", help="names of the runs; * stands for anything")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    if arguments.store:
        found = collect(Store(open_folder(arguments.store)), arguments.runs)
        if not found.points:
            parser.error(f"{arguments.store}: found no finished run named {arguments.runs}; expected other --runs")
        arguments.kept.write_text(json.dumps(to_json(found), indent=1) + "\n")
    kept = read(arguments.kept)
    arguments.picture.write_text(picture(kept.points), encoding="utf-8")
    print(table(kept.points), comparisons(kept.points), sep="\n\n")


if __name__ == "__main__":
    main()
