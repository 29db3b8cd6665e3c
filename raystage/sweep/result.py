"""What came out of a sweep, for people: a table, a page of Markdown, the best schedule as a file that runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from raystage.config.schedule import parse
from raystage.plain_text import in_markdown
from raystage.report.columns import FirstThatFits, WholeTable, name_column, number_column, table
from raystage.report.plan_tables import STATE_STYLES
from raystage.results.savings import format_flops
from raystage.storage.store import Store
from raystage.sweep.figures import write_sweep
from raystage.sweep.html import caveats, importance_caveats, sweep_page, verdict
from raystage.sweep.space import describe, format_value
from raystage.sweep.trials import SweepPlan

BEST_FILE = "best.yaml"
MARKDOWN_FILE = "report.md"
PAGE_FILE = "report.html"
FIGURE_FILE = "sweep.png"


def sweep_result_table(report: Mapping[str, Any]) -> RenderableType:
    """The trials, the best first, and what the search cost. `report` is what `build_sweep_report` returns."""
    rows = sorted(report["trials"], key=lambda row: (row["rank"] is None, row["rank"] or row["number"]))
    metrics = [one["metric"] for one in report["objective"]]
    paths = list(dict.fromkeys(path for row in rows for path in row["config"]))
    apart = _table(report["name"], metrics, [number_column(path.replace(".", "\n.")) for path in paths])
    for row in rows:
        apart.add_row(*_cells(row, metrics, [format_value(row["config"].get(path, "-")) for path in paths]))
    together = WholeTable(
        report["name"],
        (*_columns(metrics, []), name_column("config")),
        [[*_cells(row, metrics, []), describe(row["config"])] for row in rows],
    )
    return Group(FirstThatFits((apart, together)), "", *(Text(line) for line in summary(report)))


def summary(report: Mapping[str, Any]) -> list[str]:
    """What to know of it, a sentence a line."""
    search, best = report["search"], report["best"]
    lines = [
        f"Trained {format_flops(search['flops_spent'])} FLOPs for trials that cost "
        f"{format_flops(search['flops_claimed'])} apart"
        + (f": a sharing factor of {search['sharing_factor']:.2f}." if search["sharing_factor"] else ".")
    ]
    lines += _what_mattered(report)
    if report["pays_for_itself_after"] is not None:
        lines.append(
            f"The search pays for itself after {report['pays_for_itself_after']:.1f} runs of the best schedule."
        )
    if best is not None:
        figures = ", ".join(f"{metric} {_figure(value)}" for metric, value in best["objectives"].items())
        lines.append(f"Best: trial {best['number']} ({describe(best['config'])}), {figures}.")
        lines += caveats(report)
    return lines


def _what_mattered(report: Mapping[str, Any]) -> list[str]:
    parts = ", ".join(f"{path} {share:.0%}" for path, share in report["importance"].items())
    if not parts:
        return []
    return [
        " ".join([f"What sets the better half of the trials apart (PED-ANOVA): {parts}.", *importance_caveats(report)])
    ]


def failure(report: Mapping[str, Any]) -> str | None:
    """What went wrong, in a line: that trials failed, or that none came to its end. None where nothing did."""
    rows = report["trials"]
    failed = [row for row in rows if row["state"] == "ERRORED"]
    if any(row["state"] == "FINISHED" for row in rows):
        if not failed:
            return None
        first = f"trial {failed[0]['number']}: {failed[0]['error']}"
        return f"sweep {report['name']}: {len(failed)} of its {len(rows)} trials failed, the first of them {first}"
    why = failed[0]["error"] if failed else "all were stopped"
    return f"sweep {report['name']}: none of its {len(rows)} trials came to its end: {why}"


def markdown(report: Mapping[str, Any]) -> str:
    """A page of Markdown: the result in words, what mattered, the trials by rank."""
    metrics = [one["metric"] for one in report["objective"]]
    head = ["rank", "trial", "config", *(one for one in metrics if one != "eval_loss"), "eval loss", "FLOPs", "state"]
    rows = sorted(report["trials"], key=lambda row: (row["rank"] is None, row["rank"] or row["number"]))
    cells = [_cells(row, metrics, [describe(row["config"])]) for row in rows]
    lines = [head, ["---"] * len(head), *[[str(cell) for cell in line] for line in cells]]
    body = "\n".join(f"| {' | '.join(map(in_markdown, line))} |" for line in lines)
    words = map(in_markdown, (report["name"], verdict(report), *_what_mattered(report)))
    return "\n\n".join([f"# {next(words)}", *words, body]) + "\n"


def write_papers(store: Store, plan: SweepPlan, report: Mapping[str, Any]) -> None:
    """The report as Markdown, as a page and as its figure, and the best schedule, beside the report itself."""
    folder = store.run_folder(report["name"])
    folder.write_whole(MARKDOWN_FILE, markdown(report).encode())
    folder.write_whole(PAGE_FILE, sweep_page(report).encode())
    with tempfile.TemporaryDirectory() as work:
        for figure in write_sweep(report, Path(work, FIGURE_FILE)):
            folder.write_whole(figure.name, figure.read_bytes())
    best = report["best"]
    if best is not None and best["schedule"] is not None:
        folder.write_whole(BEST_FILE, best_schedule(plan, best).encode())


def best_schedule(plan: SweepPlan, best: Mapping[str, Any]) -> str:
    """The schedule of the best trial as a file, its paths made absolute, so that it runs from anywhere."""
    schedule = parse(best["schedule"], plan.sweep.schedule_file.parent)
    figures = ", ".join(f"{metric} {_figure(value)}" for metric, value in best["objectives"].items())
    head = f"# Trial {best['number']} of sweep {plan.sweep.name}: {describe(best['config'])}; {figures}.\n"
    return head + yaml.safe_dump(schedule.content(), sort_keys=False, allow_unicode=True)


def _table(title: str, metrics: Sequence[str], config: Sequence[Column]) -> Any:
    return table(title, _columns(metrics, config))


def _columns(metrics: Sequence[str], config: Sequence[Column]) -> list[Column]:
    figures = [number_column(metric.replace("_", " ")) for metric in metrics if metric != "eval_loss"]
    ends = [number_column("eval loss"), number_column("FLOPs"), Column("state", no_wrap=True)]
    return [number_column("rank"), number_column("trial"), *config, *figures, *ends]


def _cells(row: Mapping[str, Any], metrics: Sequence[str], config: Sequence[str]) -> list[Text]:
    rank = "-" if row["rank"] is None else f"{row['rank']}{'*' if len(metrics) > 1 and row['is_pareto'] else ''}"
    figures = [_figure(row["objectives"].get(metric)) for metric in metrics if metric != "eval_loss"]
    flops = "-" if row["flops"] is None else format_flops(row["flops"])
    texts = [rank, str(row["number"]), *config, *figures, _figure(row["eval_loss"]), flops]
    return [*map(Text, texts), Text(row["state"], style=STATE_STYLES.get(row["state"], ""))]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
