"""What came out of a sweep: its trials with their ranks, what was trained for them, the best of them.

`flops_claimed` is what the trials would have cost apart. `flops_spent` is what was trained for them, each stage once.
What was in the store before counts for the first and not for the second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from raystage.errors import RaystageError
from raystage.results.record import StageRecord
from raystage.results.report import RunReport, SavingsPart
from raystage.results.sweep_report import BestTrial, ObjectiveRow, SearchCost, SweepReport, TrialRow, TrialStage
from raystage.storage.store import Store
from raystage.sweeps.config import METRICS, Objective
from raystage.sweeps.space import Config
from raystage.sweeps.trials import SweepPlan


@dataclass(frozen=True)
class TrialRun:
    """What a sweep's report takes from the report of a trial's run: its stages without their curves, its savings."""

    stages: tuple[TrialStage, ...]
    savings: SavingsPart


@dataclass(frozen=True)
class TrialOutcome:
    """What Tune knows of a trial. error: why it failed. is_stopped: whether it was stopped before its end.

    eval_loss, flops: at its last evaluation; FLOPs are counted from the start of its run. objectives: only of a
    finished trial.
    """

    number: int
    config: Config
    error: str | None = None
    is_stopped: bool = False
    is_running: bool = False
    eval_loss: float | None = None
    flops: int | None = None
    objectives: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def state(self) -> str:
        if self.error is not None:
            return "ERRORED"
        if self.is_running:
            return "RUNNING"
        return "ABORTED" if self.is_stopped else "FINISHED"


def build_sweep_report(
    plan: SweepPlan,
    outcomes: Sequence[TrialOutcome],
    runs: Mapping[int, TrialRun],
    records: Mapping[str, StageRecord],
    state: str,
    seconds: float,
) -> SweepReport:
    """The report, without the importance of paths and the best schedule.

    runs: by number what the report of a trial's run says, as far as it came. records: the finished stages of all
    trials, and those that they continued, by key. seconds: wall-clock since the sweep was first started.
    """
    names = {f"{plan.sweep.name}-{one.number}" for one in outcomes}
    rows = [_trial_row(plan, one, runs.get(one.number)) for one in sorted(outcomes, key=lambda one: one.number)]
    rows = _ranked(rows, plan.sweep.objective)
    search = measure_search(rows, runs, records, names, seconds)
    first = next((row for row in rows if row.rank == 1), None)
    return SweepReport(
        name=plan.sweep.name,
        state=state,
        objective=tuple(ObjectiveRow(**one.model_dump()) for one in plan.sweep.objective),
        trials=tuple(rows),
        search=search,
        best=first
        and BestTrial(number=first.number, name=first.name, config=first.config, objectives=first.objectives),
        pays_for_itself_after=_pays_after(first, runs, search),
    )


def needed_of(report: RunReport) -> TrialRun:
    names = [one.name for one in fields(TrialStage)]
    stages = (TrialStage(**{name: getattr(row, name) for name in names}) for row in report.stages)
    return TrialRun(tuple(stages), report.savings)


def _trial_row(plan: SweepPlan, outcome: TrialOutcome, run: TrialRun | None) -> TrialRow:
    return TrialRow(
        number=outcome.number,
        name=f"{plan.sweep.name}-{outcome.number}",
        state=outcome.state,
        error=outcome.error,
        config=outcome.config,
        stages=run.stages if run else (),
        eval_loss=outcome.eval_loss,
        flops=outcome.flops,
        objectives={metric: _finite(value) for metric, value in outcome.objectives.items()},
        compute_saved=run.savings.share if run else None,
        interval=run.savings.interval if run else None,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# --- ranks ------------------------------------------------------------------------------------


def _ranked(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> list[TrialRow]:
    """The rows with the finished trials numbered from 1, by the first objective and then the next. Marked are those
    that no other trial beats in all objectives."""
    ends = sorted((_costs(row, objectives), row.number) for row in rows if row.state == "FINISHED")
    front: list[tuple[float, ...]] = []
    places: dict[int, tuple[int, bool]] = {}
    for rank, (costs, number) in enumerate(ends, start=1):
        # A trial that beats this one comes before it; if that one is not in `front`, another that beats both is.
        is_pareto = not any(dominates(other, costs) for other in front)
        front += [costs] if is_pareto else []
        places[number] = rank, is_pareto
    unranked = None, False
    return [
        replace(row, rank=rank, is_pareto=is_pareto)
        for row in rows
        for rank, is_pareto in [places.get(row.number, unranked)]
    ]


def _costs(row: TrialRow, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The objectives as numbers, lower is better. What was not reached is infinite."""
    found = [(row.objectives.get(one.name), METRICS[one.metric]) for one in objectives]
    return tuple(math.inf if value is None else value if mode == "min" else -value for value, mode in found)


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the first is nowhere worse, and somewhere better."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


# --- cost -------------------------------------------------------------------------------------


def measure_search(
    rows: Sequence[TrialRow],
    runs: Mapping[int, TrialRun],
    records: Mapping[str, StageRecord],
    names: Collection[str],
    seconds: float,
) -> SearchCost:
    """What the staged runs of all trials would have cost apart, and what was trained for them.

    Counted is what the runs `names` trained: every stage once, without the part taken over from a shorter version. A
    trial that was stopped counts as far as it came. If another trial has finished the stage since, the stage counts
    only there.
    """
    claimed, unfinished = 0, 0
    for row in rows:
        run = runs.get(row.number)
        finished, rest = _finished(row.name, run.stages if run else (), records)
        under_way = max((row.flops or 0) - finished, 0) if row.state != "FINISHED" else 0
        claimed += finished + under_way
        unfinished += 0 if rest and rest[0].key in records else under_way
    trained = [record for record in records.values() if record.trained_for in names]
    spent = sum(record.flops_spent for record in trained) + unfinished
    return SearchCost(
        flops_claimed=claimed,
        flops_spent=spent,
        sharing_factor=claimed / spent if spent else None,
        stages_trained=len(trained),
        stages_claimed=sum(len(row.stages) for row in rows),
        trials=len(rows),
        seconds=seconds,
    )


def _finished(
    name: str, stages: Sequence[TrialStage], records: Mapping[str, StageRecord]
) -> tuple[int, Sequence[TrialStage]]:
    """The FLOPs of a trial's stages up to the last one whose end it reported, or that was trained for it, and the
    stages after that one. Workers may have finished a stage after their trial was stopped."""
    flops, counted, whole = 0, 0, 0
    for place, stage in enumerate(stages, start=1):
        record = records.get(stage.key)
        if stage.flops is None and record is None:
            break
        whole += record.flops if stage.flops is None else stage.flops
        if stage.flops is not None or record.trained_for == name:
            flops, counted = whole, place
    return flops, stages[counted:]


def _pays_after(best: TrialRow | None, runs: Mapping[int, TrialRun], search: SearchCost) -> float | None:
    """The number of runs of the best schedule after which it has saved what the search cost. None if no saving is
    known."""
    run = runs.get(best.number) if best else None
    if run is None or not run.savings.compute_saved or run.savings.compute_saved <= 0:
        return None
    return search.flops_spent / (run.savings.flops_baseline - run.savings.flops_staged)


_logger = logging.getLogger(__name__)


class TrialReports:
    """The reports and records of the trials of sweep `name`, read from the store.

    A sweep that is continued is written again and again. Files that will not change, thousands after a while, are read
    once, and only what the sweep's report needs is kept of them.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._runs: dict[int, TrialRun] = {}
        self._records: dict[str, StageRecord] = {}

    def runs(self, outcomes: Sequence[TrialOutcome]) -> dict[int, TrialRun]:
        """What the reports of the trials' runs say, by number. That of a finished trial is read once."""
        read = {one.number: self._run(one.number) for one in outcomes}
        found = {number: run for number, run in read.items() if run is not None}
        ended = {one.number for one in outcomes if one.state == "FINISHED"}
        self._runs = {number: run for number, run in found.items() if number in ended}
        return found

    def _run(self, number: int) -> TrialRun | None:
        if number in self._runs:
            return self._runs[number]
        try:
            report = self._store.run_report(f"{self._name}-{number}")
        except RaystageError as error:
            _logger.warning("left out: %s", error)
            return None
        return None if report is None else needed_of(report)

    def records(self, runs: Iterable[TrialRun]) -> dict[str, StageRecord]:
        """The finished stages of all trials, by key, without their curves, and the stages that they continued. With
        LAG, those are in no report."""
        found: dict[str, StageRecord] = {}
        waiting = [stage.key for run in runs for stage in run.stages]
        while waiting:
            key = waiting.pop()
            if key not in found and (record := self._record(key)):
                found[key] = record
                waiting += [record.prefix.key] if record.prefix else []
        return found

    def _record(self, key: str) -> StageRecord | None:
        if key not in self._records and (record := self._store.readable_record(key)):
            self._records[key] = replace(record, train=(), evaluations=(), growth=None)
        return self._records.get(key)
