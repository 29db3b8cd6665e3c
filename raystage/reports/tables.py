"""A report's tables as text, the same in Markdown and in HTML: stages, growths, baselines."""

from __future__ import annotations

from collections.abc import Sequence

from raystage.growth.operators import in_short
from raystage.plans.gates import Rejection
from raystage.reports.cost_tables import cost_table, ledger_table, seed_table, tuning_table
from raystage.reports.formats import (
    Table,
    format_jump,
    format_length,
    format_loss,
    format_perplexity,
    known,
    length_name,
    over_seeds,
    speed_up,
)
from raystage.reports.model_tables import adapter_table, average_table, delivered_table, ensemble_table, member_table
from raystage.results.data.data_use import DataRow, format_number_of_passes
from raystage.results.differences import IN_WORDS
from raystage.results.report import (
    BudgetRow,
    CertificateRow,
    ResultRow,
    RunReport,
    StageRow,
    TaskResult,
)
from raystage.units import SAMPLES, TOKENS, format_bytes, format_count, format_flops, format_seconds, format_share

_QUALITY = ("eval loss", "perplexity", "accuracy")


def tables(report: RunReport) -> list[Table]:
    """All tables that have rows. A report of an older version has fewer."""
    return [table for table in (make(report) for make in _TABLES) if table.rows]


def stage_table(report: RunReport) -> Table:
    title = length_name(row.unit for row in report.stages)
    columns = (
        "stage", "state", "layers", "parameters", title, "FLOPs", "time", *_QUALITY, "loss at growth",
    )  # fmt: skip
    note = (
        "Time is wall-clock: growing, training and saving, without evaluation. "
        f"Loss is held out{_in_loss_units(report.stages)}; perplexity is e to it, accuracy the share of "
        f"{'tokens' if report.unit == TOKENS else report.unit} that got the most probability."
    )
    return Table("Stages", columns, [_stage_cells(row, title) for row in report.stages], note)


def _in_loss_units(rows: Sequence[ResultRow]) -> str:
    """', in nats per token', where all are in one unit."""
    units = {row.loss_unit for row in rows}
    return f", in {units.pop()}" if len(units) == 1 else ""


def data_table(report: RunReport) -> Table:
    """Empty for reports of versions that did not count data."""
    units = {one.unit for one in report.data}
    unit = units.pop() if len(units) == 1 else "tokens or samples"
    columns = ("text", "stages", "documents", unit, "held out", "of it also trained on", f"{unit} read", "passes")
    note = (
        "Documents and tokens are of the training text. Held-out text counts as trained on, too, where 64 tokens of it "
        "in a row stand word for word in the training text."
    )
    if unit == SAMPLES:
        note = "Documents are the samples to train on. No sample is on both sides, whatever its class."
    return Table("Data", columns, [_data_cells(one) for one in report.data], note)


def _data_cells(one: DataRow) -> tuple[str, ...]:
    about = "about " if one.tokens_are_estimated else ""
    return (
        ", ".join(one.path) or one.source,
        ", ".join(one.stages),
        format_count(one.documents),
        f"{about}{format_count(one.amount)}",
        f"{about}{format_count(one.held_out)}",
        "-" if one.repeated_share is None else format_share(one.repeated_share),
        format_count(one.read),
        format_number_of_passes(one.passes),
    )


def layout_table(report: RunReport) -> Table:
    """How the stages ran: what does not fit beside the figures of the stages."""
    columns = ("stage", "steps", "workers", "ZeRO", "memory of a worker", "grown by")
    note = "Memory is the most that a worker held."
    return Table("How the stages ran", columns, [_layout_cells(row) for row in report.stages], note)


def environment_rows(report: RunReport) -> list[tuple[str, str]]:
    """When, where and with what the report was made, a row for each fact."""
    as_text = {"memory_bytes": format_bytes, "gpus": lambda names: ", ".join(names) or "none", "trained_on": ", ".join}
    names = {
        "memory_bytes": "memory", "cpu_cores": "CPU cores", "cpu": "CPU", "gpus": "GPUs", "trained_on": "trained on",
    }  # fmt: skip
    return [
        (names.get(name, name), as_text.get(name, str)(value))
        for name, value in report.environment.items()
        if value is not None
    ]


def growth_table(report: RunReport) -> Table:
    columns = (
        "stage", "grown by", "exact", "loss before", "loss after", "logits differ by (mean)", "gradient error",
        "duplicates' distance", "time",
    )  # fmt: skip
    note = "Certificates: the grown model against the one it grew from, on held-out text and on fixed inputs."
    rows = [_growth_cells(row) for row in report.stages if row.growth]
    return Table("What growing did", columns, rows, note)


def attempts_table(report: RunReport) -> Table:
    """Rejected attempts. Empty for versions without gates."""
    spent = {row.key: row for row in report.given_up}
    rows = [_attempt_cells(one, spent.get(one.key)) for one in report.attempts]
    note = "What was given up was spent all the same: the saving counts it."
    return Table("Not accepted", ("stage", "why", "answer", "eval loss", "FLOPs"), rows, note)


def ends_table(report: RunReport) -> Table:
    """The stages that ended by something other than their length."""
    rows = [
        (row.name, row.stopped_by)
        for row in report.stages
        if row.stopped_by and not row.stopped_by.startswith("steps: ")
    ]
    return Table("Why stages ended", ("stage", "ended by"), rows)


def baseline_table(report: RunReport) -> Table:
    columns = (f"budget ({report.unit})", "state", f"{report.unit} per parameter", "steps", "FLOPs", "time", *_QUALITY)
    rows = [_baseline_cells(row) for row in report.baseline.runs]
    note = "Each budget is trained to the end of its own decay, and counts what it would cost alone."
    reads = IN_WORDS.get(report.baseline.data)
    on = f", on {reads}" if reads else ""
    return Table(f"Baseline: the last stage's model from scratch{on}", columns, rows, note)


def metric_table(report: RunReport) -> Table:
    """The schedule's own metrics at the end of every stage and baseline."""
    rows = [row for row in (*report.stages, *report.baseline.runs) if row.metrics]
    names = sorted({name for row in rows for name in row.metrics})
    cells = [[name, *(known(row.metrics.get(name), "{:.4g}".format) for row in rows)] for name in names]
    note = "On held-out text, where a stage or a baseline ends; - where it was not measured, or nothing was counted."
    return Table("Metrics", ("metric", *(row.name for row in rows)), cells, note)


def source_table(report: RunReport) -> Table:
    """The losses on the sources of mixtures at the end of every stage and baseline.

    Empty for runs without a mixture.
    """
    ended = [row for row in (*report.stages, *report.baseline.runs) if row.duration is not None and row.evaluations]
    ends = [(row.name, sources) for row in ended if (sources := row.evaluations[-1].sources)]
    names = dict.fromkeys(name for _, sources in ends for name in sources)
    cells = [[name, *(known(sources.get(name), format_loss) for _, sources in ends)] for name in names]
    note = f"Held out{_in_loss_units(ended)}, where a stage or a baseline ends; - where the source was not evaluated."
    return Table("Loss by source", ("source", *(name for name, _ in ends)), cells, note)


def downstream_table(report: RunReport) -> Table:
    """What `raystage evaluate` found, stage by stage. The report that a run writes has none yet."""
    found = report.downstream
    rows = sorted({(task, metric) for one in found.values() for task, its in one.tasks.items()
                   for metric in its.metrics})  # fmt: skip
    cells = [[f"{task}: {metric}", *(_task_cell(one.tasks.get(task), metric) for one in found.values())]
             for task, metric in rows]  # fmt: skip
    note = "By lm-eval, each with its standard error and the number of examples."
    return Table("Downstream tasks", ("task", *found), cells, note)


def _task_cell(task: TaskResult | None, metric: str) -> str:
    if task is None or metric not in task.metrics:
        return "-"
    figure = task.metrics[metric]
    error = "" if figure.stderr is None else f" ± {figure.stderr:.2g}"
    return f"{figure.value:.4g}{error} ({task.num_examples})"


def comparison_table(reports: Sequence[RunReport]) -> Table:
    """Several runs, one row each."""
    units = {report.unit for report in reports}
    unit = units.pop() if len(units) == 1 else "tokens or samples"
    columns = (
        "run", "state", "compute saved", "speed-up", "time saved", f"{unit} saved", "at eval loss", "FLOPs",
        "baseline's FLOPs", "loss difference at equal FLOPs", f"{unit} per parameter",
    )  # fmt: skip
    note = (
        "Each run against its own baseline at equal held-out loss; at equal FLOPs the baseline's loss less the run's, "
        "above 0 where the run is the better model."
    )
    return Table("Side by side", columns, [_comparison_cells(report) for report in reports], note)


_TABLES = (
    stage_table, layout_table, data_table, source_table, metric_table, downstream_table, member_table, ensemble_table,
    growth_table, average_table, adapter_table, delivered_table, ends_table, attempts_table, baseline_table,
    tuning_table, seed_table, ledger_table, cost_table,
)  # fmt: skip


def _stage_cells(row: StageRow, length: str) -> list[str]:
    return [
        row.name,
        row.state,
        str(row.num_layers),
        format_count(row.num_params),
        known(row.duration, lambda found: format_length(found, row.unit, length)),
        known(row.flops, format_flops),
        known(row.seconds, format_seconds),
        *_quality_cells(row),
        known(row.growth, lambda growth: _jump_cell(growth.certificate)),
    ]


def _layout_cells(row: StageRow) -> list[str]:
    return [
        row.name,
        known(row.steps, str),
        str(row.num_workers),
        str(row.zero_stage),
        known(row.peak_memory_bytes, format_bytes),
        known(row.growth, lambda growth: f"{in_short(growth.operator)}, moments: {growth.optimizer_state}"),
    ]


def _growth_cells(row: StageRow) -> list[str]:
    growth, certificate = row.growth, row.growth.certificate
    return [
        row.name,
        in_short(growth.operator),
        known(certificate.exact, lambda exact: "yes" if exact else "no"),
        known(certificate.eval_loss_before, format_loss),
        known(certificate.eval_loss_after, format_loss),
        f"{known(certificate.max_logit_difference, _figure)} ({known(certificate.mean_logit_difference, _figure)})",
        _gradient_cell(certificate),
        known(certificate.twin_distance, lambda distance: f"{distance:.2g} at {certificate.twin_steps} steps"),
        f"{growth.seconds:.1f} s",
    ]


def _attempt_cells(one: Rejection, row: StageRow | None) -> list[str]:
    changes = ", ".join(f"{key} {value}" for key, value in one.changes)
    where = f" to {one.target}" if one.action == "rewind" else ""
    number = f" {one.number} of {one.of}" if one.number else ""
    return [
        one.stage,
        "; ".join(one.reasons),
        one.action + where + number + (f": {changes}" if changes else ""),
        known(row.eval_loss if row else None, format_loss),
        known(row.flops if row else None, format_flops),
    ]


def _gradient_cell(certificate: CertificateRow) -> str:
    """The error of the predictions that claim to be exact; if there are none, that of the estimates."""
    if certificate.gradient_error is not None:
        return _figure(certificate.gradient_error)
    return known(certificate.gradient_error_estimated, lambda error: f"{error:.2g} (estimated)")


def _baseline_cells(row: BudgetRow) -> list[str]:
    return [
        format_count(row.budget),
        row.state,
        f"{row.length_per_parameter:.3g}",
        known(row.steps, str),
        known(row.flops, format_flops),
        known(row.seconds, format_seconds),
        *_quality_cells(row),
    ]


def _quality_cells(row: ResultRow) -> list[str]:
    """The quality of the model at the end of a row."""
    return [
        known(row.eval_loss, format_loss),
        known(row.perplexity, format_perplexity),
        known(row.accuracy, format_share),
    ]


def _comparison_cells(report: RunReport) -> list[str]:
    savings = report.savings
    return [
        report.name,
        report.state,
        over_seeds(savings, "compute_saved") or "-",
        speed_up(savings) or "-",
        over_seeds(savings, "time_saved") or "-",
        over_seeds(savings, "duration_saved") or "-",
        known(savings.at_eval_loss, format_loss),
        known(savings.flops_staged, format_flops),
        known(savings.flops_baseline, format_flops),
        over_seeds(savings, "loss_difference_at_equal_flops", "{:+.3f}".format) or "-",
        f"{report.length_per_parameter:.3g}",
    ]


def _figure(value: float) -> str:
    return f"{value:.2g}"


def _jump_cell(certificate: CertificateRow) -> str:
    before, after = certificate.eval_loss_before, certificate.eval_loss_after
    difference = "" if before is None or after is None else f" ({after - before:+.3f})"
    return format_jump(before, after) + difference
