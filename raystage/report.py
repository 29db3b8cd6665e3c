"""What came out of a run, as one JSON object and as a page of Markdown.

`build_report` lays the records of finished stages beside the plan. It works at any time: a stage
that is not finished is listed with its state and nulls, and the savings say what they wait for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raystage import rates, report_tables
from raystage.attempts import Rejection
from raystage.ledger import measure_ledger, net_cost
from raystage.plan import Plan, RunPlan, StagePlan
from raystage.record import Evaluation, StageRecord, TrainPoint, where_it_begins
from raystage.report_tables import Table
from raystage.savings import FinishedRun, Savings, compare, format_share, no_figure

DONE = ("FINISHED", "REUSED")

# What adds up along a chain of stages.
_SUMMED = ("tokens", "steps", "flops", "seconds", "worker_seconds", "evaluation_seconds", "evaluation_flops")
# A rate that ends above a tenth of its peak is not decayed; a tenth is Chinchilla's (2203.15556, section 3.1).
_DECAYED_RATIO = 0.1
# Protocol: fewer budgets leave too much to the interpolation.
_ENOUGH_BUDGETS = 3
# Below compute-optimal training the gains of growing are largest (Chinchilla's 20; 2605.13405).
_OPTIMAL_TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True)
class GivenUp:
    """What a run tried and went back on: what was not accepted, and the finished stages that led to it."""

    tried: tuple[Rejection, ...] = ()
    stages: tuple[StagePlan, ...] = ()


def build_report(
    plan: Plan,
    records: Mapping[str, StageRecord],
    states: Mapping[str, str],
    environment: Mapping[str, Any] | None = None,
    given_up: GivenUp = GivenUp(),
) -> dict[str, Any]:
    """The report: plain values, strictly JSON (what is not finite becomes null).

    records, states: by stage key. A stage without a state is FINISHED if it has a record, else SCHEDULING.
    """
    stages = [stage for run in plan.runs() for stage in run.stages]
    overall = _joint_state([_state(stage, records, states) for stage in stages])
    return _strict(
        {
            "name": plan.name,
            "state": "FINISHED" if overall in DONE else overall,
            "stages": [_stage_row(plan.staged, stage, records, states) for stage in plan.staged.stages],
            "attempts": [asdict(one) for one in given_up.tried],
            "given_up": [_stage_row(RunPlan("", (stage,)), stage, records, states) for stage in given_up.stages],
            "baseline": {"runs": [_baseline_row(run, records, states) for run in plan.baselines]},
            "tokens_per_parameter": tokens_per_parameter(plan.staged),
            "savings": asdict(measure_savings(plan, records, given_up.stages)),
            "ledger": asdict(measure_ledger(plan, records, states, _finished(given_up.stages, records))),
            "warnings": list(doubts(plan, records)),
            "environment": dict(environment or {}),
        }
    )


def curve(run: RunPlan, records: Mapping[str, StageRecord]) -> tuple[Evaluation, ...]:
    """The evaluations of a chain of stages, as far as they are finished; tokens and flops from the run's start."""
    return tuple(point for record in _finished(run.stages, records) for point in record.evaluations)


def tokens_per_parameter(run: RunPlan) -> float:
    """Training tokens of the whole run per parameter of its last model."""
    return run.tokens / run.stages[-1].num_params


# --- savings ----------------------------------------------------------------------------------


def measure_savings(plan: Plan, records: Mapping[str, StageRecord], given_up: Sequence[StagePlan] = ()) -> Savings:
    """The staged run against the baselines, once all are finished; tokens per parameter stand beside the figure.

    What was given up on the way was spent all the same, and counts.
    """
    staged = _with_given_up(_finished_run(plan.staged, records), plan.staged, records, given_up)
    if not plan.baselines:
        return no_figure("no saving to report: the schedule has no baseline to compare with", staged)
    baselines = [_finished_run(run, records) for run in plan.baselines]
    if staged is None or None in baselines:
        return no_figure(f"no saving to report yet: {_unfinished(plan, records)}", staged)
    savings = compare(staged, baselines)
    if not savings.equal_loss_reached:
        return savings
    beside = f"{savings.verdict}, at {tokens_per_parameter(plan.staged):.3g} tokens per parameter"
    return Savings(**{**asdict(savings), "verdict": beside})


def _finished_run(run: RunPlan, records: Mapping[str, StageRecord]) -> FinishedRun | None:
    chain = _finished(run.stages, records)
    if len(chain) < len(run.stages):
        return None
    return FinishedRun(chain[-1].eval_loss, sum(one.flops for one in chain), sum(one.seconds for one in chain))


def _with_given_up(
    run: FinishedRun | None, staged: RunPlan, records: Mapping[str, StageRecord], given_up: Sequence[StagePlan]
) -> FinishedRun | None:
    """The staged run with all that was tried for it; what one stage took over from another of these counts once."""
    if run is None or not given_up:
        return run
    flops, seconds = net_cost(_finished((*staged.stages, *given_up), records))
    return FinishedRun(run.eval_loss, flops, seconds)


def _finished(stages: Iterable[StagePlan], records: Mapping[str, StageRecord]) -> list[StageRecord]:
    return [records[stage.key] for stage in stages if stage.key in records]


def _unfinished(plan: Plan, records: Mapping[str, StageRecord]) -> str:
    waiting = [run.name for run in plan.runs() if len(_finished(run.stages, records)) < len(run.stages)]
    return f"{len(waiting)} of {len(plan.runs())} runs not finished ({', '.join(waiting)})"


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
        "donor": asdict(record.donor) if record and record.donor else None,
    }


def _baseline_row(run: RunPlan, records: Mapping[str, StageRecord], states: Mapping[str, str]) -> dict[str, Any]:
    """One budget. Stages shared with other budgets count in full: each run is what it would cost alone."""
    return {
        **_row(run, records, states, _start_seconds(run, records)),
        "growth": None,
        "budget_tokens": run.tokens,
        "tokens_per_parameter": tokens_per_parameter(run),
    }


def _start_seconds(run: RunPlan, records: Mapping[str, StageRecord]) -> dict[str, float | None]:
    """By stage key the seconds of the run before it began; None where an earlier stage is not finished."""
    starts: dict[str, float | None] = {}
    total: float | None = 0.0
    for stage in run.stages:
        starts[stage.key], record = total, records.get(stage.key)
        total = None if total is None or record is None else total + record.seconds
    return starts


def _row(
    run: RunPlan, records: Mapping[str, StageRecord], states: Mapping[str, str], starts: Mapping[str, float | None]
) -> dict[str, Any]:
    """What a stage and a chain of stages have in common. Totals are null until every stage is finished."""
    last, chain = run.stages[-1], _finished(run.stages, records)
    done = len(chain) == len(run.stages)
    return {
        "name": run.name,
        "key": last.key,
        "state": _joint_state([_state(stage, records, states) for stage in run.stages]),
        "num_params": last.num_params,
        "num_layers": last.shape.num_layers,
        "num_workers": chain[-1].num_workers if done else last.training.workers,
        "resizes": sum(record.resizes for record in chain) if done else None,
        "zero_stage": last.training.zero_stage,
        **{field: sum(getattr(record, field) for record in chain) if done else None for field in _SUMMED},
        "peak_memory_bytes": max(record.peak_memory_bytes for record in chain) if done else None,
        "eval_loss": chain[-1].eval_loss if done else None,
        "evaluations": [_point(point, starts[record.key]) for record in chain for point in record.evaluations],
        "train": [_point(point, starts[record.key]) for record in chain for point in record.train],
    }


def _point(point: Evaluation | TrainPoint, start_seconds: float | None) -> dict[str, Any]:
    """run_seconds: since the run began, where `seconds` counts from the stage's beginning."""
    return {**asdict(point), "run_seconds": None if start_seconds is None else start_seconds + point.seconds}


def _state(stage: StagePlan, records: Mapping[str, StageRecord], states: Mapping[str, str]) -> str:
    return states.get(stage.key, "FINISHED" if stage.key in records else "SCHEDULING")


def _joint_state(states: Sequence[str]) -> str:
    """One state for several stages: trouble first, REUSED only where nothing had to be trained."""
    for state in ("ERRORED", "ABORTED", "RESTARTING"):
        if state in states:
            return state
    for state in ("SCHEDULING", "REUSED"):
        if all(one == state for one in states):
            return state
    return "FINISHED" if all(one in DONE for one in states) else "RUNNING"


def _strict(value: Any) -> Any:
    """The same value without NaN and infinity, for which JSON has no words."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- warnings ---------------------------------------------------------------------------------


def doubts(plan: Plan, records: Mapping[str, StageRecord]) -> tuple[str, ...]:
    """Sentences on what leaves the comparison open to doubt; none where nothing is compared."""
    if not plan.baselines:
        return ()
    found = (
        *_tuning_doubts(plan),
        _decay_doubt("staged run", plan.staged),
        *(_decay_doubt("baseline", run) for run in plan.baselines),
        _budgets_doubt(plan),
        _length_doubt(plan),
        _data_doubt(plan),
        _workers_doubt(plan, records),
        _order_doubt(plan, records),
    )
    return tuple(dict.fromkeys(doubt for doubt in found if doubt))


def _tuning_doubts(plan: Plan) -> tuple[str, str]:
    last = plan.baselines[-1].stages[-1]
    return (
        f"One seed ({last.seed}): how far the figure moves from seed to seed is not known; "
        f"three seeds or more give an interval.",
        f"One learning rate ({last.training.optimizer.lr:g}): the baseline's rate is not tuned, "
        f"and a baseline at the wrong rate makes the saving look larger.",
    )


def _decay_doubt(side: str, run: RunPlan) -> str | None:
    last = run.stages[-1]
    peak = max(max(piece.start_lr, piece.end_lr) for piece in last.rate)
    ratio = rates.rate_at(last.rate, last.end_tokens) / peak
    if ratio <= _DECAYED_RATIO * (1 + 1e-9):
        return None
    return (
        f"The {side}'s rate is not decayed: it ends at {ratio:.0%} of its peak under the "
        f"{last.training.lr_schedule.kind} schedule, so its final loss is not what its budget can reach."
    )


def _budgets_doubt(plan: Plan) -> str | None:
    count = len(plan.baselines)
    if count >= _ENOUGH_BUDGETS:
        return None
    return (
        f"Only {count} baseline budget{'s' if count > 1 else ''}: equal loss is interpolated between "
        f"decayed runs, and fewer than {_ENOUGH_BUDGETS} leave it coarse."
    )


def _length_doubt(plan: Plan) -> str | None:
    ratio = tokens_per_parameter(plan.staged)
    if ratio >= _OPTIMAL_TOKENS_PER_PARAMETER:
        return None
    return (
        f"Short training, {ratio:.3g} tokens per parameter: below {_OPTIMAL_TOKENS_PER_PARAMETER} the gains of "
        f"growing are at their largest, and longer training is likely to save less."
    )


def _data_doubt(plan: Plan) -> str | None:
    texts = {stage.data.fingerprint for run in plan.runs() for stage in run.stages}
    if len(texts) == 1:
        return None
    return "Not the same text: the staged run's stages read other data than the baseline, so more than growing differs."


def _workers_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    stages = [stage for run in plan.runs() for stage in run.stages]
    counts = sorted({records[stage.key].num_workers for stage in stages if stage.key in records})
    if any(records[stage.key].resizes for stage in stages if stage.key in records):
        return "Workers came and went within a stage: time_saved compares wall-clock, not worker-seconds."
    if len(counts) == 1:
        return None
    return (
        f"Not the same machines throughout ({' and '.join(map(str, counts))} workers): "
        f"time_saved compares wall-clock, not worker-seconds."
    )


def _order_doubt(plan: Plan, records: Mapping[str, StageRecord]) -> str | None:
    runs = [_finished_run(run, records) for run in plan.baselines]
    losses = [run.eval_loss for run in runs if run is not None]
    if losses == sorted(losses, reverse=True):
        return None
    return (
        "The baseline's loss does not fall with every larger budget: noise is as large as the difference "
        "between budgets, and the cheapest budget that reaches the loss counts."
    )


# --- Markdown ---------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """A short page: the verdict, the stages, what growing did, the baseline, what is open to doubt."""
    tables = [_table(table) for table in report_tables.tables(report)]
    doubts = ["## Open to doubt", "\n".join(f"- {warning}" for warning in report["warnings"])]
    blocks = [f"**{sentence(report['savings']['verdict'])}**", _about(report), *tables]
    return "\n\n".join(blocks + (doubts if report["warnings"] else [])) + "\n"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _about(report: Mapping[str, Any]) -> str:
    time_saved = report["savings"]["time_saved"]
    about = f"Run `{report['name']}`: {report['state']}, {report['tokens_per_parameter']:.3g} tokens per parameter."
    return about if time_saved is None else f"{about} Wall-clock time saved: {format_share(time_saved)}."


def _table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join([f"## {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])
