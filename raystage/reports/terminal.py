"""What a terminal is shown of the result of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from raystage.reports.columns import STATE_STYLES, WholeTable, name_column, number_column
from raystage.reports.cost_tables import seed_table, tuning_table
from raystage.reports.formats import (
    Table,
    format_jump,
    format_length,
    format_loss,
    format_perplexity,
    known,
    length_name,
)
from raystage.reports.model_tables import delivered_table, ensemble_table, member_table, table_of_ensembles
from raystage.reports.tables import downstream_table, environment_rows, metric_table, source_table
from raystage.results.data.data_use import data_lines
from raystage.results.differences import IN_WORDS
from raystage.results.report import Ensemble, ResultRow, RunReport
from raystage.units import format_count, format_flops, format_seconds, format_share

# --- the end of a run -------------------------------------------------------------------------


def _growth_cell(row: ResultRow) -> str:
    """The loss before and after the growth at the start of a stage."""
    if row.growth is None:
        return "-"
    certificate = row.growth.certificate
    return format_jump(certificate.eval_loss_before, certificate.eval_loss_after)


def final_table(report: RunReport) -> RenderableType:
    """The stages, the baselines, the doubts about the figure and, as the last line, the verdict."""
    parts = [_report_table("stage", report.name, report.stages), ""]
    if report.baseline.runs:
        parts += [_report_table("baseline", None, report.baseline.runs), ""]
    if reads := IN_WORDS.get(report.baseline.data):
        parts += [Text(f"The baselines read {reads}."), ""]
    more = (
        source_table,
        metric_table,
        downstream_table,
        member_table,
        ensemble_table,
        delivered_table,
        tuning_table,
        seed_table,
    )
    for table in more:
        if (written := table(report)).rows:
            parts += [_as_written(written), ""]
    if report.data:
        parts += [*map(Text, data_lines(report.data)), ""]
    if report.savings.equal_loss_reached:
        parts += [Text(f"- {warning}", style="dim") for warning in report.warnings]
    return Group(*parts, *_environment(report), Text(report.savings.verdict, style="bold"))


def ensemble_view(made: Ensemble) -> RenderableType:
    """What `raystage ensemble` found."""
    return _as_written(table_of_ensembles([made]))


def _environment(report: RunReport) -> list[RenderableType]:
    """When, where and with what the run was made, in one paragraph."""
    rows = environment_rows(report)
    facts = "; ".join(f"{name} {value}" for name, value in rows)
    return [Text(facts, style="dim"), ""] if rows else []


def _as_written(written: Table) -> WholeTable:
    """A table of the report, as a table for the terminal."""
    first, *others = written.columns
    return WholeTable(written.title.lower(), (name_column(first), *map(number_column, others)), written.rows)


@dataclass(frozen=True)
class _ReportColumn:
    header: str
    cell: Callable[[ResultRow], str | Text]
    is_number: bool = True


_WHAT = (
    _ReportColumn("layers", lambda row: str(row.num_layers)),
    _ReportColumn("params", lambda row: format_count(row.num_params)),
)


_OUTCOME = (
    _ReportColumn("FLOPs", lambda row: known(row.flops, format_flops)),
    _ReportColumn("eval\nloss", lambda row: known(row.eval_loss, format_loss)),
)


_PERPLEXITY = (_ReportColumn("perplexity", lambda row: known(row.perplexity, format_perplexity)),)
_ACCURACY = (_ReportColumn("accuracy", lambda row: known(row.accuracy, format_share)),)


_GROWTH = (_ReportColumn("loss at growth", _growth_cell, is_number=False),)


_END = (
    _ReportColumn("time", lambda row: known(row.seconds, format_seconds)),
    _ReportColumn("state", lambda row: Text(row.state, style=STATE_STYLES.get(row.state, "")), is_number=False),
)


def _length_column(rows: Sequence[ResultRow]) -> _ReportColumn:
    title = length_name(row.unit for row in rows)
    return _ReportColumn(title, lambda row: known(row.duration, lambda length: format_length(length, row.unit, title)))


def _report_table(what: str, title: str | None, rows: Sequence[ResultRow]) -> RenderableType:
    name = (_ReportColumn(what, lambda row: row.name, is_number=False),)
    growth = _GROWTH if any(row.growth for row in rows) else ()
    # Only models of language have one.
    perplexity = _PERPLEXITY if any(row.perplexity is not None or row.eval_loss is None for row in rows) else ()
    columns = (*name, *_WHAT, _length_column(rows), *_OUTCOME, *perplexity, *_ACCURACY, *growth, *_END)
    headers = tuple(number_column(one.header) if one.is_number else name_column(one.header) for one in columns)
    return WholeTable(title, headers, [[column.cell(row) for column in columns] for row in rows])
