"""The result of a run as one JSON object.

`build_report` combines the plan with the records of finished stages. It works at any time: an unfinished stage is
listed with its state and nulls, and the savings say what they wait for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raystage.plans.gates import Rejection
from raystage.plans.plan import Plan, RunPlan, StagePlan
from raystage.results.comparison import finished, measure_savings, measure_seeds, seed_pairs, tokens_per_parameter
from raystage.results.data_use import data_json
from raystage.results.differences import is_staged
from raystage.results.doubts import doubts
from raystage.results.ledger import measure_ledger
from raystage.results.record import Evaluation, StageRecord, TrainPoint, perplexity, where_it_begins
from raystage.results.savings import Savings, compare
from raystage.results.seeds import OverSeeds
from raystage.results.tuning import compared, tuning_rows

DONE = ("FINISHED", "REUSED")

# Fields that add up along a chain of stages.
_SUMMED = ("tokens", "steps", "flops", "seconds", "worker_seconds", "evaluation_seconds", "evaluation_flops")


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
) -> dict[str, Any]:
    """The report: plain values, strictly JSON (a value that is not finite becomes null).

    If values were tuned, stages and baselines are those of the best values, as soon as these are known. records,
    states: by stage key. A stage without a state is FINISHED if it has a record, else SCHEDULING.
    """
    stages = [stage for run in plan.runs() for stage in run.stages]
    overall = _joint_state([_state(stage, records, states) for stage in stages])
    savings = measure_savings(plan, records, given_up.stages)
    best = compared(plan, records)
    return _strict(
        {
            "name": plan.name,
            "state": "FINISHED" if overall in DONE else overall,
            "stages": [_stage_row(best.staged, stage, records, states) for stage in best.staged.stages],
            "attempts": [asdict(one) for one in given_up.tried],
            "given_up": [_stage_row(RunPlan("", (stage,)), stage, records, states) for stage in given_up.stages],
            "baseline": {"runs": [_baseline_row(run, records, states) for run in best.baselines]},
            "tuning": tuning_rows(plan, records),
            "seeds": _seed_rows(plan, records),
            "tokens_per_parameter": tokens_per_parameter(plan.staged),
            "savings": _savings(savings, measure_seeds(plan, records)),
            "ledger": asdict(measure_ledger(plan, records, states, given_up.stages)),
            "warnings": list(doubts(plan, records, savings, given_up.stages)),
            "data": data_json(best.staged, records),
            "environment": {**(environment or {}), **_trained_on(records)} if environment else {},
        }
    )


def _trained_on(records: Mapping[str, StageRecord]) -> dict[str, list[str]]:
    """Where the finished stages were trained: hosts and devices, which may differ from the driver's."""
    found = (one.environment for one in records.values())
    places = {f"{one['host']}: {one['device']}" for one in found if one.get("host") and one.get("device")}
    return {"trained_on": sorted(places)} if places else {}


def _savings(savings: Savings, over: OverSeeds | None) -> dict[str, Any]:
    """The savings of the schedule's own seed. With several seeds, also those over all seeds, and their verdict."""
    if over is None:
        return asdict(savings)
    return {**asdict(savings), "verdict": over.verdict, "seeds": asdict(over)}


def curve(run: RunPlan, records: Mapping[str, StageRecord]) -> tuple[Evaluation, ...]:
    """The evaluations of the finished stages of a chain; tokens and FLOPs are counted from the start of the run."""
    return tuple(point for record in finished(run.stages, records) for point in record.evaluations)


# --- rows -------------------------------------------------------------------------------------


def _stage_row(
    run: RunPlan, stage: StagePlan, records: Mapping[str, StageRecord], states: Mapping[str, str]
) -> dict[str, Any]:
    record = records.get(stage.key)
    begun = where_it_begins(stage, records.get(stage.parent_key))
    starts = _start_seconds(run, records)
    return {
        **_row(RunPlan(stage.name, (stage,)), records, states, starts),
        "growth": asdict(record.growth) if record and record.growth else None,
        "start_tokens": begun.start_tokens,
        "start_flops": begun.start_flops,
        "start_seconds": starts[stage.key],
        "stopped_by": record.stopped_by if record else None,
        "trained_for": record.trained_for if record else None,
        "donor": asdict(record.prefix) if record and record.prefix else None,
    }


def _baseline_row(run: RunPlan, records: Mapping[str, StageRecord], states: Mapping[str, str]) -> dict[str, Any]:
    """One budget. Stages shared with other budgets count in full: each run is what it would cost alone."""
    return {
        **_row(run, records, states, _start_seconds(run, records)),
        "growth": None,
        "budget_tokens": run.tokens,
        "tokens_per_parameter": tokens_per_parameter(run),
    }


def _seed_rows(plan: Plan, records: Mapping[str, StageRecord]) -> list[dict[str, Any]]:
    """A row for each of several seeds, with the savings of that seed alone."""
    if not plan.further_seeds:
        return []
    rows = []
    for pair in seed_pairs(plan, records):
        is_whole = is_staged(plan) and pair.staged is not None and len(pair.baselines) == len(plan.baselines)
        alone = compare(pair.staged, pair.baselines) if is_whole else None
        rows.append(
            {
                "seed": pair.seed,
                "staged_eval_loss": pair.staged.eval_loss if pair.staged else None,
                "compute_saved": alone.compute_saved if alone else None,
                "loss_difference_at_equal_flops": alone.loss_difference_at_equal_flops if alone else None,
            }
        )
    return rows


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
    """The fields that a stage and a chain of stages share. Totals are null until every stage is finished."""
    last, chain = run.stages[-1], finished(run.stages, records)
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
        "perplexity": perplexity(chain[-1].eval_loss) if done else None,
        "accuracy": end.accuracy if end else None,
        "metrics": dict(end.metrics) if end else None,
        "evaluations": [_point(point, starts[record.key]) for record in chain for point in record.evaluations],
        "train": [_point(point, starts[record.key]) for record in chain for point in record.train],
    }


def _point(point: Evaluation | TrainPoint, start_seconds: float | None) -> dict[str, Any]:
    """run_seconds counts from the start of the run, `seconds` from the start of the stage."""
    return {**asdict(point), "run_seconds": None if start_seconds is None else start_seconds + point.seconds}


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


def _strict(value: Any) -> Any:
    """The same value without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
