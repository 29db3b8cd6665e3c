"""Tables of what a run tried and what it cost: tuning, seeds, compute, money; and what a fault may cost."""

from __future__ import annotations

from typing import Any

from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.formats import Table, format_interval, format_loss, known
from raystage.results.costs import Cost
from raystage.results.ledger import LedgerEntry
from raystage.results.report import RunReport
from raystage.results.tuning import TunedValues
from raystage.units import format_count, format_flops, format_seconds, format_share

_HALVES = " They are chosen by the first half of the held-out text and compared by the other; the losses are of both."


def tuning_table(report: RunReport) -> Table:
    """Empty if nothing was tuned."""
    tuning = report.tuning
    if not tuning:
        return Table("Tuning", (), ())
    budgets = [loss.budget for loss in tuning.baseline.rows[0].eval_losses]
    columns = ("value", "staged run", *(f"baseline, {format_count(budget)} tokens" for budget in budgets))
    sides = zip(tuning.staged.rows, tuning.baseline.rows, strict=True)
    note = (
        "Held-out loss at the end of every run, on the schedule's own seed. The best of the staged run and the best of "
        "the baseline at each of its budgets are compared."
    ) + (_HALVES if tuning.chosen_on_half else "")
    return Table("Tuning", columns, [_tuning_cells(staged, baseline) for staged, baseline in sides], note)


def _tuning_cells(staged: TunedValues, baseline: TunedValues) -> list[str]:
    value = ", ".join(f"{path.rpartition('.')[2]} {_tuned(value)}" for path, value in staged.values.items())
    return [value, *_side_cells(staged), *_side_cells(baseline)]


def _side_cells(side: TunedValues) -> list[str]:
    return [_marked(known(loss.eval_loss, format_loss), loss.is_best) for loss in side.eval_losses]


def _tuned(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _marked(cell: str, is_best: bool | None) -> str:
    return f"{cell} (best)" if is_best else cell


def seed_table(report: RunReport) -> Table:
    """A row for every seed, then their mean with its 95 % interval. If that contains zero, the mean alone shows
    nothing."""
    columns = ("seed", "staged run's loss", "compute saved", "loss difference at equal FLOPs")
    rows = [
        [
            str(row.seed),
            known(row.staged_eval_loss, format_loss),
            known(row.compute_saved, format_share),
            known(row.loss_difference_at_equal_flops, "{:+.3f}".format),
        ]
        for row in report.seeds
    ]
    over = report.savings.seeds
    if not over:
        return Table("Seeds", columns, rows)
    difference = known(over.loss_difference_at_equal_flops, lambda found: format_interval(found, "{:+.3f}".format))
    rows.append(["mean (95 % interval)", "-", known(over.compute_saved, format_interval), difference])
    return Table(
        "Seeds",
        columns,
        rows,
        f"Each seed's staged run against its own baselines. {over.covers}".strip(),
        totals=1,
    )


def ledger_table(report: RunReport) -> Table:
    """Where the compute went. `spent` is what this run computed; what the saving counts is another sum."""
    title = "Compute"
    note = (
        "Each stage counts once, however many runs share it. The saving counts the staged run alone, as if nothing had "
        "been there before; what was found in the store cost this run nothing."
    )
    columns = ("work", "FLOPs", "of which reused", "worker-time", "counted in the saving")
    ledger = report.ledger
    if ledger is None:
        return Table(title, columns, ())
    rows = [_ledger_cells(entry) for entry in ledger.entries if entry.worker_seconds or entry.flops]
    worker_seconds = sum(entry.worker_seconds for entry in ledger.entries)
    reused = sum(entry.flops_reused for entry in ledger.entries)
    totals = [
        ["computed and reused", _flops(ledger.flops_spent + reused), _flops(reused),
         format_seconds(worker_seconds), _flops(ledger.flops_claimed)],
        ["spent by this run", _flops(ledger.flops_spent), "-", "-", "-"],
    ]  # fmt: skip
    return Table(title, columns, [*rows, *totals] if rows else (), note, len(totals))


def _ledger_cells(entry: LedgerEntry) -> list[str]:
    return [
        entry.what,
        _flops(entry.flops),
        _flops(entry.flops_reused),
        format_seconds(entry.worker_seconds),
        "yes" if entry.is_claimed else "no",
    ]


def _flops(flops: float) -> str:
    return format_flops(flops) if flops else "0"


def cost_table(report: RunReport) -> Table:
    """Hours, energy and money. Empty if there is nothing beyond the worker-time, which the table of compute has."""
    title = "Costs"
    columns = ("work", "worker-time", "GPU-hours", "energy", "CO2", "money")
    note = (
        "Energy is what the GPUs' own counters measured, never an estimate; CO2 and money follow from the grid "
        "intensity and the price that the schedule states. Claimed is what the saving counts; billed is all but what "
        "was found in the store. The start of the workers is in none of it."
    )
    ledger = report.ledger
    if ledger is None or not _has_costs(ledger.claimed, ledger.billed):
        return Table(title, columns, ())
    rows = [(entry.what, entry) for entry in ledger.entries if entry.worker_seconds]
    totals = [("claimed", ledger.claimed), ("billed", ledger.billed)]
    cells = [_cost_cells(what, cost, ledger.currency) for what, cost in (*rows, *totals)]
    return Table(title, columns, cells if rows else (), note, len(totals))


def _has_costs(*totals: Cost) -> bool:
    return any(cost.gpu_hours or cost.energy_kwh or cost.money is not None for cost in totals)


def _cost_cells(what: str, cost: Cost, currency: str | None) -> list[str]:
    return [
        what,
        format_seconds(cost.worker_seconds),
        f"{cost.gpu_hours:.3g}",
        "not measured" if cost.energy_kwh is None else f"{cost.energy_kwh:.3g} kWh",
        known(cost.co2_kg, "{:.3g} kg".format),
        known(cost.money, lambda money: f"{money:.2f} {currency}"),
    ]


# --- of a plan --------------------------------------------------------------------------------


def lost_work_line(plan: Plan) -> str:
    """'..., at most: small 100K tokens or 30:00, full 300K tokens or 30:00.'"""
    work = ", ".join(f"{one.name} {_repeated(one)}" for one in plan.staged.stages)
    return f"If workers die, they repeat what came after the last checkpoint, at most: {work}."


def _repeated(stage: StagePlan) -> str:
    time = format_seconds(stage.training.checkpoint.every_seconds)
    return f"{format_count(stage.most_repeated)} {stage.unit} or {time}"
