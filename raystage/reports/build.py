"""The report of a run, built from its plan and the records of its finished stages.

It works at any time: an unfinished stage is listed with its state and without figures, and the savings say what they
wait for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.files.typed_json import finite
from raystage.plans.gates import Rejection
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.branches.family import delivered_family
from raystage.results.branches.members import members_of_ensembles
from raystage.results.comparison import finished, length_per_parameter, measure_savings, measure_seeds, seed_pairs
from raystage.results.data.data_use import data_rows
from raystage.results.data.mixtures import losses_by_name
from raystage.results.differences import baseline_reads, is_staged
from raystage.results.doubts import doubts
from raystage.results.endings import AverageRecord
from raystage.results.ledger import measure_ledger
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, perplexity, where_it_begins
from raystage.results.report import (
    AverageRow,
    BaselinePart,
    BudgetRow,
    CertificateRow,
    EvaluationPoint,
    GrowthRow,
    RunReport,
    SavingsPart,
    SeedRow,
    StageRow,
    TrainingPoint,
)
from raystage.results.savings import Savings, compare
from raystage.results.seeds import OverSeeds
from raystage.results.tuning import compared, measure_tuning

DONE = ("FINISHED", "REUSED")

# Fields that add up along a chain of stages.
_SUMMED = ("duration", "steps", "flops", "seconds", "worker_seconds", "evaluation_seconds", "evaluation_flops")


@dataclass(frozen=True)
class GivenUp:
    """What a run tried without success: the rejected attempts, and the finished stages that led to them."""

    tried: tuple[Rejection, ...] = ()
    stages: tuple[StagePlan, ...] = ()


def build_report(
    plan: Plan,
    records: Mapping[str, StageRecord],
    states: Mapping[str, str],
    environment: Mapping[str, Any] | None = None,
    given_up: GivenUp = GivenUp(),
) -> RunReport:
    """The report. A figure that is not finite becomes None.

    If values were tuned, stages and baselines are those of the best values, as soon as these are known. records,
    states: by stage key. A stage without a state is FINISHED if it has a record, else SCHEDULING.
    """
    stages = [stage for run in plan.runs() for stage in run.stages]
    overall = _joint_state([_state(stage, records, states) for stage in stages])
    savings = measure_savings(plan, records, given_up.stages)
    best = compared(plan, records)
    report = RunReport(
        name=plan.name,
        state="FINISHED" if overall in DONE else overall,
        stages=tuple(_stage_row(best.staged, stage, records, states) for stage in best.staged.stages),
        attempts=given_up.tried,
        given_up=tuple(_stage_row(RunPlan("", (stage,)), stage, records, states) for stage in given_up.stages),
        baseline=BaselinePart(tuple(_budget_row(run, records, states) for run in best.baselines), baseline_reads(plan)),
        tuning=measure_tuning(plan, records),
        seeds=_seed_rows(plan, records),
        length_per_parameter=length_per_parameter(plan.staged),
        savings=_savings(savings, measure_seeds(plan, records)),
        ledger=measure_ledger(plan, records, states, given_up.stages),
        delivered=delivered_family(plan, records),
        members=members_of_ensembles(plan, records),
        warnings=doubts(plan, records, savings, given_up.stages),
        data=data_rows(best.staged, records),
        environment={**environment, **_trained_on(records)} if environment else {},
        unit=plan.staged.unit,
    )
    return finite(report)


def _trained_on(records: Mapping[str, StageRecord]) -> dict[str, list[str]]:
    """Where the finished stages were trained: hosts and devices, which may differ from the driver's."""
    found = (one.environment for one in records.values())
    places = {f"{one['host']}: {one['device']}" for one in found if one.get("host") and one.get("device")}
    return {"trained_on": sorted(places)} if places else {}


def _savings(savings: Savings, over: OverSeeds | None) -> SavingsPart:
    own = vars(savings)
    return SavingsPart(**own) if over is None else SavingsPart(**{**own, "verdict": over.verdict}, seeds=over)


def curve(run: RunPlan, records: Mapping[str, StageRecord]) -> tuple[Evaluation, ...]:
    """The evaluations of the finished stages of a chain; positions and FLOPs are counted from the start of the run."""
    return tuple(point for record in finished(run.stages, records) for point in record.evaluations)


# --- rows -------------------------------------------------------------------------------------


def _stage_row(
    run: RunPlan, stage: StagePlan, records: Mapping[str, StageRecord], states: Mapping[str, str]
) -> StageRow:
    record = records.get(stage.key)
    begun = where_it_begins(stage, records.get(stage.parent_key))
    starts = _start_seconds(run, records)
    return StageRow(
        **_row(RunPlan(stage.name, (stage,)), records, states, starts),
        growth=_growth(record.growth) if record and record.growth else None,
        start=begun.start,
        start_flops=begun.start_flops,
        start_seconds=starts[stage.key],
        stopped_by=record.stopped_by if record else None,
        trained_for=record.trained_for if record else None,
        prefix=record.prefix if record else None,
        scoring=record.scoring if record else None,
    )


def _growth(growth: GrowthRecord) -> GrowthRow:
    return GrowthRow(**{**vars(growth), "certificate": CertificateRow(**vars(growth.certificate))})


def _average(average: AverageRecord) -> AverageRow:
    return AverageRow(**vars(average), gain=average.single_eval_loss - average.eval_loss)


def _budget_row(run: RunPlan, records: Mapping[str, StageRecord], states: Mapping[str, str]) -> BudgetRow:
    return BudgetRow(
        **_row(run, records, states, _start_seconds(run, records)),
        growth=None,
        budget=run.duration,
        length_per_parameter=length_per_parameter(run),
    )


def _seed_rows(plan: Plan, records: Mapping[str, StageRecord]) -> tuple[SeedRow, ...]:
    if not plan.further_seeds:
        return ()
    rows = []
    for pair in seed_pairs(plan, records):
        is_whole = is_staged(plan) and pair.staged is not None and len(pair.baselines) == len(plan.baselines)
        alone = compare(pair.staged, pair.baselines) if is_whole else None
        rows.append(
            SeedRow(
                seed=pair.seed,
                staged_eval_loss=pair.staged.eval_loss if pair.staged else None,
                compute_saved=alone.compute_saved if alone else None,
                loss_difference_at_equal_flops=alone.loss_difference_at_equal_flops if alone else None,
            )
        )
    return tuple(rows)


def _start_seconds(run: RunPlan, records: Mapping[str, StageRecord]) -> dict[str, float | None]:
    """The seconds of the run before each stage, by stage key; None if an earlier stage is not finished."""
    starts: dict[str, float | None] = {}
    total: float | None = 0.0
    for stage in run.stages:
        starts[stage.key], record = total, records.get(stage.key)
        total = None if total is None or record is None else total + record.seconds
    return starts


def _row(
    run: RunPlan, records: Mapping[str, StageRecord], states: Mapping[str, str], starts: Mapping[str, float | None]
) -> dict[str, Any]:
    """The fields of a `ResultRow` but its growth."""
    last, chain = run.stages[-1], finished(run.stages, records)
    judge = last.objective.judge
    done = len(chain) == len(run.stages)
    end = chain[-1].end if done and chain[-1].evaluations else None
    return {
        "name": run.name,
        "key": last.key,
        "state": _joint_state([_state(stage, records, states) for stage in run.stages]),
        "num_params": last.num_params,
        "num_layers": last.shape.num_layers,
        "num_workers": chain[-1].num_workers if done else last.training.workers.most,
        "resizes": sum(record.resizes for record in chain) if done else None,
        "zero_stage": last.training.zero_stage,
        **{field: sum(getattr(record, field) for record in chain) if done else None for field in _SUMMED},
        "peak_memory_bytes": max(record.peak_memory_bytes for record in chain) if done else None,
        "eval_loss": chain[-1].eval_loss if done else None,
        "perplexity": perplexity(chain[-1].eval_loss) if done and "perplexity" in judge.shows else None,
        "accuracy": end.accuracy if end else None,
        "metrics": dict(end.metrics) if end else None,
        "unit": last.unit,
        "loss_unit": judge.loss_unit,
        "adapter": chain[-1].adapter if done else None,
        "compiled_graphs": chain[-1].compiled_graphs if done else None,
        "average": _average(chain[-1].average) if done and chain[-1].average else None,
        "evaluations": tuple(
            EvaluationPoint(
                **{**vars(point), "sources": losses_by_name(point, run)},
                run_seconds=_in_run(point.seconds, starts[record.key]),
            )
            for record in chain
            for point in record.evaluations
        ),
        "train": tuple(
            TrainingPoint(**vars(point), run_seconds=_in_run(point.seconds, starts[record.key]))
            for record in chain
            for point in record.train
        ),
    }


def _in_run(seconds: float, start_seconds: float | None) -> float | None:
    return None if start_seconds is None else start_seconds + seconds


def _state(stage: StagePlan, records: Mapping[str, StageRecord], states: Mapping[str, str]) -> str:
    return states.get(stage.key, "FINISHED" if stage.key in records else "SCHEDULING")


def _joint_state(states: Sequence[str]) -> str:
    """One state for several stages: an error state first; REUSED only if nothing had to be trained."""
    for state in ("ERRORED", "ABORTED", "RESTARTING"):
        if state in states:
            return state
    for state in ("SCHEDULING", "REUSED"):
        if all(one == state for one in states):
            return state
    return "FINISHED" if all(one in DONE for one in states) else "RUNNING"
