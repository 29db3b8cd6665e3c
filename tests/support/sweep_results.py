"""Reports of sweeps as they are after the last trial, with losses that were made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from factories import make_record
from raystage.reports.build import build_report
from raystage.results.record import Prefix, StageRecord
from raystage.results.sweep_report import SweepReport, TrialRow
from raystage.sweeps.reports.build import TrialOutcome, build_sweep_report, needed_of
from raystage.sweeps.reports.importance import importance
from raystage.sweeps.trials import SweepPlan


def trained(plan: SweepPlan, loss_of: Callable[[str], float]) -> dict[str, StageRecord]:
    """The records of all stages of a sweep that shared what it could. loss_of: by a stage's key."""
    found: dict[str, StageRecord] = {}
    for key, node in plan.tree.nodes.items():
        found[key] = replace(make_record(node.stage, loss_of(key)), trained_for=f"{plan.sweep.name}-{node.trials[0]}")
        if node.prefix_key:
            shorter = plan.tree.nodes[node.prefix_key].stage
            found[key] = replace(found[key], prefix=Prefix(shorter.key, shorter.duration, shorter.flops, 1.0))
    return found


def swept(plan: SweepPlan, outcomes: Sequence[TrialOutcome], saved: Mapping[int, float] | None = None) -> SweepReport:
    """The sweep's report. saved: by trial its compute saved against a baseline that cost 1e9 FLOPs."""
    ends = {plan.trials[one.number].plan.staged.stages[-1].key: one.eval_loss or 3.0 for one in outcomes}
    records = trained(plan, lambda key: ends.get(key, 2.5))
    reports = {one.number: build_report(plan.trials[one.number].plan, records, {}) for one in outcomes}
    for number, share in (saved or {}).items():
        savings = replace(
            reports[number].savings, compute_saved=share, flops_baseline=1e9, flops_staged=1e9 * (1 - share)
        )
        reports[number] = replace(reports[number], savings=savings)
    runs = {number: needed_of(report) for number, report in reports.items()}
    report = build_sweep_report(plan, outcomes, runs, records, "FINISHED", 754.0)
    shares = importance(report.trials, report.objective[0], plan.sweep.points.dimensions)
    best = report.best and replace(report.best, schedule=plan.trials[report.best.number].content)
    return replace(report, importance=shares, best=best)


def make_row(number: int, **changes: object) -> TrialRow:
    """A row of a report: a trial that has finished, without stages and figures."""
    row = TrialRow(
        number=number, name=f"search-{number}", state="FINISHED", error=None, config={}, stages=(), eval_loss=None,
        flops=None, objectives={}, compute_saved=None,
    )  # fmt: skip
    return replace(row, **changes)


def finished(plan: SweepPlan, *losses: float, **objectives: Sequence[float | None]) -> list[TrialOutcome]:
    """All trials of a plan at their end. objectives: by metric the trials' figures, beside the loss."""
    return [
        TrialOutcome(
            number,
            plan.trials[number].config,
            eval_loss=loss,
            flops=plan.trials[number].plan.staged.flops,
            objectives={"eval_loss": loss} | {metric: values[number] for metric, values in objectives.items()},
        )
        for number, loss in enumerate(losses)
    ]
