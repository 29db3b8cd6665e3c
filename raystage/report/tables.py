"""A report's tables as text, the same in Markdown and in HTML: stages, growths, baselines, compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.growth.operators import in_short
from raystage.results.data_use import format_number_of_passes
from raystage.results.savings import format_flops, format_share
from raystage.units import format_bytes, format_count, format_seconds

_HALVES = " They are chosen by the first half of the held-out text and compared by the other; the losses are of both."
_QUALITY = ("eval loss", "perplexity", "accuracy")


@dataclass(frozen=True)
class Table:
    """Every row has a cell for every column; the first column names the row.

    note: how to read it. totals: how many rows at the end are sums.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    totals: int = 0


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All that this report has; `report` as `build_report` made it, or a version before the ledger."""
    return [table for table in (make(report) for make in _TABLES) if table.rows]


def stage_table(report: Mapping[str, Any]) -> Table:
    columns = (
        "stage", "state", "layers", "parameters", "tokens", "FLOPs", "time", *_QUALITY, "loss at growth",
    )  # fmt: skip
    note = (
        "Time is wall-clock: growing, training and saving, without evaluation. "
        "Loss is held out, in nats per token; perplexity is e to it, accuracy the share of tokens that got the most "
        "probability."
    )
    return Table("Stages", columns, [_stage_cells(row) for row in report["stages"]], note)


def data_table(report: Mapping[str, Any]) -> Table:
    """Of a version that counted no data there is none."""
    columns = ("text", "stages", "documents", "tokens", "held out", "of it also trained on", "tokens read", "passes")
    note = (
        "Documents and tokens are of the training text. Held-out text counts as trained on, too, where 64 tokens of it "
        "in a row stand word for word in the training text."
    )
    return Table("Data", columns, [_data_cells(one) for one in report.get("data", ())], note)


def _data_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    about = "about " if one["tokens_are_estimated"] else ""
    return (
        ", ".join(one["path"]) or one["source"],
        ", ".join(one["stages"]),
        format_count(one["documents"]),
        f"{about}{format_count(one['tokens'])}",
        f"{about}{format_count(one['held_out_tokens'])}",
        "-" if one["repeated_share"] is None else format_share(one["repeated_share"]),
        format_count(one["read_tokens"]),
        format_number_of_passes(one["passes"]),
    )


def layout_table(report: Mapping[str, Any]) -> Table:
    """What there was no room for beside the stages' figures: how they were carried out."""
    columns = ("stage", "steps", "workers", "ZeRO", "memory of a worker", "grown by")
    note = "Memory is the most that a worker held."
    return Table("How the stages ran", columns, [_layout_cells(row) for row in report["stages"]], note)


def environment_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """When, where and with what the report was made, a line for each fact; those of before have fewer."""
    as_text = {"memory_bytes": format_bytes, "gpus": lambda names: ", ".join(names) or "none", "trained_on": ", ".join}
    names = {
        "memory_bytes": "memory", "cpu_cores": "CPU cores", "cpu": "CPU", "gpus": "GPUs", "trained_on": "trained on",
    }  # fmt: skip
    return [
        (names.get(name, name), as_text.get(name, str)(value))
        for name, value in report["environment"].items()
        if value is not None
    ]


def growth_table(report: Mapping[str, Any]) -> Table:
    columns = (
        "stage", "grown by", "exact", "loss before", "loss after", "logits differ by (mean)", "gradient error",
        "twins' distance", "time",
    )  # fmt: skip
    note = "Certificates: the grown model against the one it grew from, on held-out text and on fixed inputs."
    rows = [_growth_cells(row) for row in report["stages"] if row["growth"]]
    return Table("What growing did", columns, rows, note)


def attempts_table(report: Mapping[str, Any]) -> Table:
    """Of a version before gates there is none."""
    spent = {row["key"]: row for row in report.get("given_up", ())}
    rows = [_attempt_cells(one, spent.get(one["key"])) for one in report.get("attempts", ())]
    note = "What was given up was spent all the same: the saving counts it."
    return Table("Not accepted", ("stage", "why", "answer", "eval loss", "FLOPs"), rows, note)


def ends_table(report: Mapping[str, Any]) -> Table:
    """Of stages that ended on something other than their length."""
    rows = [
        (row["name"], row["stopped_by"])
        for row in report["stages"]
        if row.get("stopped_by") and not row["stopped_by"].startswith("steps: ")
    ]
    return Table("Why stages ended", ("stage", "ended by"), rows)


def tuning_table(report: Mapping[str, Any]) -> Table:
    """Of a version before tuning, and where nothing is tuned, there is none."""
    tuning = report.get("tuning")
    if not tuning:
        return Table("Tuning", (), ())
    budgets = [loss["budget_tokens"] for loss in tuning["baseline"]["rows"][0]["eval_losses"]]
    columns = ("value", "staged run", *(f"baseline, {format_count(budget)} tokens" for budget in budgets))
    sides = zip(tuning["staged"]["rows"], tuning["baseline"]["rows"], strict=True)
    note = (
        "Held-out loss at the end of every run, on the schedule's own seed. The best of the staged run and the best of "
        "the baseline at each of its budgets are compared."
    ) + (_HALVES if tuning.get("chosen_on_half") else "")
    return Table("Tuning", columns, [_tuning_cells(staged, baseline) for staged, baseline in sides], note)


def _tuning_cells(staged: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    value = ", ".join(f"{path.rpartition('.')[2]} {_tuned(value)}" for path, value in staged["values"].items())
    return [value, *_side_cells(staged), *_side_cells(baseline)]


def _side_cells(side: Mapping[str, Any]) -> list[str]:
    """Reports of before have one best value for all budgets, by the last of them."""
    losses = side["eval_losses"]
    marks = [loss.get("is_best", side["is_best"] and loss is losses[-1]) for loss in losses]
    return [_marked(shown(loss["eval_loss"], format_loss), mark) for loss, mark in zip(losses, marks, strict=True)]


def _tuned(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _marked(cell: str, is_best: bool | None) -> str:
    return f"{cell} (best)" if is_best else cell


def seed_table(report: Mapping[str, Any]) -> Table:
    """Every seed alone, then their mean with its 95 % interval; the mean alone says nothing where that spans zero."""
    columns = ("seed", "staged run's loss", "compute saved", "loss difference at equal FLOPs")
    rows = [
        [
            str(row["seed"]),
            shown(row["staged_eval_loss"], format_loss),
            shown(row["compute_saved"], format_share),
            shown(row["loss_difference_at_equal_flops"], "{:+.3f}".format),
        ]
        for row in report.get("seeds", ())
    ]
    over = report["savings"].get("seeds")
    if not over:
        return Table("Seeds", columns, rows)
    difference = shown(over["loss_difference_at_equal_flops"], lambda found: format_interval(found, "{:+.3f}".format))
    rows.append(["mean (95 % interval)", "-", shown(over["compute_saved"], format_interval), difference])
    return Table(
        "Seeds",
        columns,
        rows,
        f"Each seed's staged run against its own baselines. {over.get('covers', '')}".strip(),
        totals=1,
    )


def format_interval(found: Mapping[str, Any], as_text: Callable[[float], str] = format_share) -> str:
    """'27.0 % (20.1 % to 33.9 %)'; only the interval where it spans zero. found: an `Interval` as plain values."""
    if found["low"] is None:
        return as_text(found["mean"])
    between = f"{as_text(found['low'])} to {as_text(found['high'])}"
    return f"not shown ({between})" if found["low"] <= 0 <= found["high"] else f"{as_text(found['mean'])} ({between})"


def over_seeds(savings: Mapping[str, Any], figure: str, as_text: Callable[[float], str] = format_share) -> str | None:
    """A figure of a report's savings as text: over several seeds with its interval, of one seed with the room that the
    baseline's curve has between its budgets. None where there is none."""
    over = savings.get("seeds")
    value = over[figure] if over else savings.get(figure)
    if value is None:
        return None
    if over:
        return format_interval(value, as_text)
    most = savings.get(f"{figure}_at_most")
    if most is None or as_text(value) == as_text(most):
        return as_text(value)
    between = f"{as_text(value)} to {as_text(most)}"
    return f"not shown ({between})" if value < 0 < most else between


def baseline_table(report: Mapping[str, Any]) -> Table:
    columns = ("budget (tokens)", "state", "tokens per parameter", "steps", "FLOPs", "time", *_QUALITY)
    rows = [_baseline_cells(row) for row in report["baseline"]["runs"]]
    note = "Each budget is trained to the end of its own decay, and counts what it would cost alone."
    return Table("Baseline: the last stage's model from scratch", columns, rows, note)


def metric_table(report: Mapping[str, Any]) -> Table:
    """The schedule's own metrics at the end of every stage and baseline; reports of before have none."""
    rows = [row for row in (*report["stages"], *report["baseline"]["runs"]) if row.get("metrics")]
    names = sorted({name for row in rows for name in row["metrics"]})
    cells = [[name, *(shown(row["metrics"].get(name), "{:.4g}".format) for row in rows)] for name in names]
    note = "On held-out text, where a stage or a baseline ends; - where it was not measured, or nothing was counted."
    return Table("Metrics", ("metric", *(row["name"] for row in rows)), cells, note)


def downstream_table(report: Mapping[str, Any]) -> Table:
    """What `raystage evaluate` found, stage by stage; a report as a run leaves it has none yet."""
    found = report.get("downstream", {})
    rows = sorted({(task, metric) for one in found.values() for task, its in one["tasks"].items()
                   for metric in its["metrics"]})  # fmt: skip
    cells = [[f"{task}: {metric}", *(_task_cell(one["tasks"].get(task), metric) for one in found.values())]
             for task, metric in rows]  # fmt: skip
    note = "By lm-eval, each with its standard error and the number of examples."
    return Table("Downstream tasks", ("task", *found), cells, note)


def _task_cell(task: Mapping[str, Any] | None, metric: str) -> str:
    if task is None or metric not in task["metrics"]:
        return "-"
    figure = task["metrics"][metric]
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.2g}"
    return f"{figure['value']:.4g}{error} ({task['num_examples']})"


def ledger_table(report: Mapping[str, Any]) -> Table:
    """Where the compute went; `spent` is a bill, what the saving counts another sum."""
    title = "Compute"
    note = (
        "Each stage counts once, however many runs share it. The saving counts the staged run alone, as if nothing had "
        "been there before; what was found in the store cost this run nothing."
    )
    columns = ("work", "FLOPs", "of which reused", "worker-time", "counted in the saving")
    ledger = report.get("ledger")
    if ledger is None:
        return Table(title, columns, ())
    rows = [_ledger_cells(entry) for entry in ledger["entries"] if entry["worker_seconds"] or entry["flops"]]
    worker_seconds = sum(entry["worker_seconds"] for entry in ledger["entries"])
    reused = sum(entry["flops_reused"] for entry in ledger["entries"])
    totals = [
        ["computed and reused", _flops(ledger["flops_spent"] + reused), _flops(reused),
         format_seconds(worker_seconds), _flops(ledger["flops_claimed"])],
        ["spent by this run", _flops(ledger["flops_spent"]), "-", "-", "-"],
    ]  # fmt: skip
    return Table(title, columns, [*rows, *totals] if rows else (), note, len(totals))


def cost_table(report: Mapping[str, Any]) -> Table:
    """Hours, energy and money, where there is more to say than the worker-time that the compute's table has."""
    title = "Costs"
    columns = ("work", "worker-time", "GPU-hours", "energy", "CO2", "money")
    note = (
        "Energy is what the GPUs' own counters measured, never an estimate; CO2 and money follow from the grid "
        "intensity and the price that the schedule states. Claimed is what the saving counts; billed is all but what "
        "was found in the store. The start of the workers is in none of it."
    )
    ledger = report.get("ledger")
    if ledger is None or "billed" not in ledger or not _has_costs(ledger["claimed"], ledger["billed"]):
        return Table(title, columns, ())
    rows = [(entry["what"], entry) for entry in ledger["entries"] if entry["worker_seconds"]]
    totals = [("claimed", ledger["claimed"]), ("billed", ledger["billed"])]
    cells = [_cost_cells(what, cost, ledger["currency"]) for what, cost in (*rows, *totals)]
    return Table(title, columns, cells if rows else (), note, len(totals))


def _has_costs(*totals: Mapping[str, Any]) -> bool:
    return any(cost["gpu_hours"] or cost["energy_kwh"] or cost["money"] is not None for cost in totals)


def _cost_cells(what: str, cost: Mapping[str, Any], currency: str | None) -> list[str]:
    return [
        what,
        format_seconds(cost["worker_seconds"]),
        f"{cost['gpu_hours']:.3g}",
        "not measured" if cost["energy_kwh"] is None else f"{cost['energy_kwh']:.3g} kWh",
        shown(cost["co2_kg"], "{:.3g} kg".format),
        shown(cost["money"], lambda money: f"{money:.2f} {currency}"),
    ]


def comparison_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Several runs, a line each."""
    columns = (
        "run", "state", "compute saved", "speed-up", "time saved", "tokens saved", "at eval loss", "FLOPs",
        "baseline's FLOPs", "loss difference at equal FLOPs", "tokens per parameter",
    )  # fmt: skip
    note = (
        "Each run against its own baseline at equal held-out loss; at equal FLOPs the baseline's loss less the run's, "
        "above 0 where the run is the better model."
    )
    return Table("Side by side", columns, [_comparison_cells(report) for report in reports], note)


_TABLES = (
    stage_table, layout_table, data_table, metric_table, downstream_table, growth_table, ends_table, attempts_table,
    baseline_table,
    tuning_table, seed_table, ledger_table, cost_table,
)  # fmt: skip


def _stage_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        row["state"],
        str(row["num_layers"]),
        format_count(row["num_params"]),
        shown(row["tokens"], format_count),
        shown(row["flops"], format_flops),
        shown(row["seconds"], format_seconds),
        *_quality_cells(row),
        shown(row["growth"], lambda growth: _jump(growth["certificate"])),
    ]


def _layout_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        shown(row["steps"], str),
        str(row["num_workers"]),
        str(row["zero_stage"]),
        shown(row["peak_memory_bytes"], format_bytes),
        shown(row["growth"], lambda growth: f"{in_short(growth['operator'])}, moments: {growth['optimizer_state']}"),
    ]


def _growth_cells(row: Mapping[str, Any]) -> list[str]:
    growth, certificate = row["growth"], row["growth"]["certificate"]
    return [
        row["name"],
        in_short(growth["operator"]),
        shown(certificate["exact"], lambda exact: "yes" if exact else "no"),
        shown(certificate["eval_loss_before"], format_loss),
        shown(certificate["eval_loss_after"], format_loss),
        f"{shown(certificate['max_logit_difference'], _figure)} "
        f"({shown(certificate['mean_logit_difference'], _figure)})",
        _gradient_cell(certificate),
        shown(certificate["twin_distance"], lambda distance: f"{distance:.2g} at {certificate['twin_steps']} steps"),
        f"{growth['seconds']:.1f} s",
    ]


def _attempt_cells(one: Mapping[str, Any], row: Mapping[str, Any] | None) -> list[str]:
    changes = ", ".join(f"{key} {value}" for key, value in one["changes"])
    where = f" to {one['target']}" if one["action"] == "rewind" else ""
    number = f" {one['number']} of {one['of']}" if one["number"] else ""
    return [
        one["stage"],
        "; ".join(one["reasons"]),
        one["action"] + where + number + (f": {changes}" if changes else ""),
        shown(row["eval_loss"] if row else None, format_loss),
        shown(row["flops"] if row else None, format_flops),
    ]


def _gradient_cell(certificate: Mapping[str, Any]) -> str:
    """Of the predictions that claim to be exact; where there are none, of the estimates."""
    if certificate["gradient_error"] is not None:
        return _figure(certificate["gradient_error"])
    return shown(certificate["gradient_error_estimated"], lambda error: f"{error:.2g} (estimated)")


def _baseline_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        format_count(row["budget_tokens"]),
        row["state"],
        f"{row['tokens_per_parameter']:.3g}",
        shown(row["steps"], str),
        shown(row["flops"], format_flops),
        shown(row["seconds"], format_seconds),
        *_quality_cells(row),
    ]


def _quality_cells(row: Mapping[str, Any]) -> list[str]:
    """How good a model is where a row ends; reports of before say the loss alone."""
    return [
        shown(row["eval_loss"], format_loss),
        shown(row.get("perplexity"), format_perplexity),
        shown(row.get("accuracy"), format_share),
    ]


def _ledger_cells(entry: Mapping[str, Any]) -> list[str]:
    return [
        entry["what"],
        _flops(entry["flops"]),
        _flops(entry["flops_reused"]),
        format_seconds(entry["worker_seconds"]),
        "yes" if entry["is_claimed"] else "no",
    ]


def _comparison_cells(report: Mapping[str, Any]) -> list[str]:
    savings = report["savings"]
    return [
        report["name"],
        report["state"],
        over_seeds(savings, "compute_saved") or "-",
        "-" if savings.get("seeds") else shown(savings["speedup"], format_share),
        over_seeds(savings, "time_saved") or "-",
        over_seeds(savings, "tokens_saved") or "-",
        shown(savings["at_eval_loss"], format_loss),
        shown(savings["flops_staged"], format_flops),
        shown(savings["flops_baseline"], format_flops),
        over_seeds(savings, "loss_difference_at_equal_flops", "{:+.3f}".format) or "-",
        f"{report['tokens_per_parameter']:.3g}",
    ]


def _flops(flops: float) -> str:
    return format_flops(flops) if flops else "0"


def _jump(certificate: Mapping[str, float | None]) -> str:
    before, after = certificate["eval_loss_before"], certificate["eval_loss_after"]
    if before is None or after is None:
        return f"{shown(before, format_loss)} to {shown(after, format_loss)}"
    return f"{before:.3f} to {after:.3f} ({after - before:+.3f})"


def _figure(value: float) -> str:
    return f"{value:.2g}"


def format_loss(loss: float) -> str:
    return f"{loss:.3f}"


def format_perplexity(value: float) -> str:
    """Four digits, as the loss has."""
    return f"{value:.4g}"


def shown(value: Any, as_text: Callable[[Any], str]) -> str:
    """A cell; what is not known yet is a dash."""
    return "-" if value is None else as_text(value)
