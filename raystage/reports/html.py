"""Reports as one HTML page that needs nothing else: no network and no script; the pictures are part of it.

This module decides what is shown; `templates/` decides how it looks. The template engine escapes all text except the
pictures, which escape their own text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raystage.growth.operators import in_short
from raystage.reports import tables as report_tables
from raystage.reports.figures import Panel, comparison_legend, comparison_panels, run_legend, run_panels
from raystage.reports.formats import KEY_DIGITS, Table, format_loss, over_seeds, speed_up
from raystage.reports.markdown import sentence
from raystage.reports.svg import symbol
from raystage.results.report import GrowthRow, RunReport, StageRow
from raystage.units import format_count, format_flops

# Cells of up to so many characters stay on one line.
_BRIEF = 28

STATES = {
    "SCHEDULING": "It has not begun.",
    "RUNNING": "It was not finished when this was written: what follows is as far as it has come.",
    "RESTARTING": "Its workers were being started again when this was written: what follows is as far as it has come.",
    "ERRORED": "It ended with an error: what follows is as far as it has come.",
    "ABORTED": "It was stopped: what follows is as far as it has come.",
}


@dataclass
class LineageNode:
    """A stage in the lineage, with the stages that were trained from it. ends: the runs that end with it."""

    name: str
    key: str
    state: str
    growth: str | None
    ends: list[str] = field(default_factory=list)
    children: list[LineageNode] = field(default_factory=list)


@dataclass(frozen=True)
class CurvesPicture:
    """Panels over several units; the page shows one at a time. legend: classes and text."""

    identity: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class RunView:
    """All that the page shows of one run. facts: (name, value) in large type. Empty parts are left out."""

    identity: str
    name: str
    state: str
    trouble: str | None
    verdict: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    picture: CurvesPicture
    tables: Sequence[Table]
    origin: str
    lineage: Sequence[LineageNode]
    configuration: str | None
    environment: Sequence[tuple[str, str]]


def page(runs: Sequence[tuple[RunReport, Mapping[str, Any] | None]]) -> str:
    """The page of one run, or of several side by side.

    runs: for each run its report and the content of its run.json, None if that is missing.
    """
    reports = [report for report, _ in runs]
    views = [_view(number, report, run) for number, (report, run) in enumerate(runs, 1)]
    several = len(views) > 1
    return (
        templates()
        .get_template("report.html")
        .render(
            title=f"raystage: {', '.join(view.name for view in views)}",
            runs=views,
            comparison=report_tables.comparison_table(reports) if several else None,
            picture=_comparison_picture(reports) if several else None,
        )
    )


def templates() -> Environment:
    made = Environment(
        loader=PackageLoader("raystage.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "drawing": Markup,
        "symbol": symbol,
        "number": _is_number,
        "brief": _is_brief,
        "short": lambda key: key[:KEY_DIGITS],
    }
    return made


def _view(number: int, report: RunReport, run: Mapping[str, Any] | None) -> RunView:
    identity = f"run-{number}"
    picture = CurvesPicture(identity, "Curves", run_panels(report, identity), run_legend(report))
    schedule = run.get("schedule_as_set") if run else None
    return RunView(
        identity=identity,
        name=report.name,
        state=report.state,
        trouble=STATES.get(report.state),
        verdict=sentence(report.savings.verdict),
        facts=_facts(report),
        warnings=report.warnings,
        picture=picture,
        tables=report_tables.tables(report),
        origin=_origin(schedule),
        lineage=lineage(run["stages"], report.stages) if run else (),
        configuration=configuration(schedule) if schedule else None,
        environment=report_tables.environment_rows(report),
    )


def _comparison_picture(reports: Sequence[RunReport]) -> CurvesPicture:
    return CurvesPicture("all", "Curves", comparison_panels(reports, "all"), comparison_legend(reports))


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """The figures that readers look for first, as far as they are known."""
    savings, last = report.savings, report.stages[-1]
    figures = (
        ("compute saved", over_seeds(savings, "compute_saved"), str),
        ("speed-up in compute", speed_up(savings), str),
        ("time saved", over_seeds(savings, "time_saved"), str),
        (f"{report.unit} saved", over_seeds(savings, "duration_saved"), str),
        (
            "loss difference at equal FLOPs",
            over_seeds(savings, "loss_difference_at_equal_flops", "{:+.3f}".format),
            str,
        ),
        ("held-out loss", savings.at_eval_loss, format_loss),
        ("FLOPs, staged run", savings.flops_staged, format_flops),
        ("FLOPs, baseline", savings.flops_baseline, format_flops),
        ("parameters at the end", last.num_params, format_count),
        (f"{report.unit} per parameter", report.length_per_parameter, "{:.3g}".format),
    )
    return [(name, as_text(value)) for name, value, as_text in figures if value is not None]


def _is_number(cells: Iterable[str]) -> bool:
    """Whether a column is aligned at the right: numbers, perhaps with a unit, but no ranges."""
    return all(
        cell == "-" or (cell.lstrip("-")[:1].isdigit() and " to " not in cell and " -> " not in cell) for cell in cells
    )


def _is_brief(cells: Iterable[str]) -> bool:
    """Whether the cells of a column stay on one line. A table that is too wide scrolls."""
    return all(len(cell) <= _BRIEF for cell in cells)


# --- configuration ----------------------------------------------------------------------------


def configuration(schedule: Mapping[str, Any]) -> str:
    """The schedule as YAML that `raystage run` accepts: exactly what its file and --set gave.

    A null within a section has a meaning (the value follows from others). Sections that are null or empty have none.
    """
    given = {**_without_empty(schedule), "stages": [_without_empty(stage) for stage in schedule["stages"]]}
    return yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _without_empty(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sections.items() if value not in (None, {}, [])}


# --- lineage ----------------------------------------------------------------------------------


def lineage(stages: Iterable[Mapping[str, str]], rows: Iterable[StageRow]) -> list[LineageNode]:
    """The stages of all runs as trees. A stage that several runs share is there once.

    stages: as in run.json, in the order of each run. rows: the stages of the report, which say how they were grown.
    """
    growths = {row.key: _how(row.growth) for row in rows if row.growth}
    roots: list[LineageNode] = []
    last: dict[str, LineageNode] = {}
    for stage in stages:
        before = last.get(stage["run"])
        siblings = before.children if before else roots
        node = next((one for one in siblings if one.key == stage["key"]), None)
        if node is None:
            node = LineageNode(stage["name"], stage["key"], stage["state"], growths.get(stage["key"]))
            siblings.append(node)
        last[stage["run"]] = node
    for run, node in last.items():
        node.ends.append(run)
    return roots


def _how(growth: GrowthRow) -> str:
    return f"grown by {in_short(growth.operator)}, moments: {growth.optimizer_state}"


def _origin(schedule: Mapping[str, Any] | None) -> str:
    """What the first stage of the staged run starts from."""
    start = (schedule or {}).get("init")
    return f"The first stage of the staged run starts from {start['from']}." if start else ""
