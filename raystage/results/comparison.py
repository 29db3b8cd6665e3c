"""What a plan's finished runs saved: the staged run compared with the baselines, by their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.differences import differences, is_staged, nothing_staged
from raystage.results.ledger import net_cost
from raystage.results.record import StageRecord
from raystage.results.savings import FinishedRun, Savings, compare, no_figure
from raystage.results.seeds import OverSeeds, SeedPair, over_seeds
from raystage.results.tuning import compared, is_judged_on_half
from raystage.units import format_flops

# The most names of unfinished runs in a sentence.
_MOST_NAMES = 4


def length_per_parameter(run: RunPlan) -> float:
    """Training tokens, or samples, of the whole run per parameter of its last model."""
    return run.duration / run.stages[-1].num_params


def measure_savings(plan: Plan, records: Mapping[str, StageRecord], given_up: Sequence[StagePlan] = ()) -> Savings:
    """The staged run compared with the baselines on the written seed, each with its best values, once all runs are
    finished.

    Tokens or samples per parameter stand beside the figure. What rejected attempts cost was spent too, and counts; so
    do the members of ensembles that the staged run learns from.
    """
    on_half = is_judged_on_half(plan, records)
    plan = compared(plan, records)
    further = (*given_up, *(stage for run in plan.teaching(plan.staged) for stage in run.stages))
    staged = _with_further(finished_run(plan.staged, records, on_half), plan.staged, records, further)
    if not plan.baselines:
        return no_figure("no saving to report: the schedule has no baseline to compare with", staged)
    if _unfinished(plan, records):
        return no_figure(f"no saving to report yet: {_waiting(plan, records)}", staged)
    savings = compare(staged, _finished_runs(plan.baselines, records, on_half))
    savings = replace(savings, is_judged_on_half=on_half)
    if not is_staged(plan):
        return no_figure(_nothing_staged(plan, savings), staged)
    if not savings.equal_loss_reached:
        return savings
    return replace(savings, verdict=f"{savings.verdict}, {_beside(plan)}")


def measure_seeds(plan: Plan, records: Mapping[str, StageRecord]) -> OverSeeds | None:
    """The savings over all seeds, once all runs are finished. None with one seed, or where nothing is staged."""
    if not plan.further_seeds or _unfinished(plan, records) or not is_staged(plan):
        return None
    found = over_seeds(seed_pairs(plan, records))
    if found.compute_saved is None:
        return found
    return replace(found, verdict=f"{found.verdict}; {_beside(plan)}")


def _beside(plan: Plan) -> str:
    """The context that every figure has to be read with."""
    length = f"at {length_per_parameter(plan.staged):.3g} {plan.staged.unit} per parameter"
    if count := len(plan.teaching(plan.staged)):
        length = f"{length}, and with the cost of {count} further member{'s' if count > 1 else ''} that it learns from"
    if plan.staged.stages[0].init is None:
        return length
    return f"{length}, and without what it cost to train the model in init"


def _nothing_staged(plan: Plan, savings: Savings) -> str:
    """The verdict where all stages train one model on the text of the baselines: no saving comes from staging."""
    why = f"no saving to report: nothing is staged, all stages {nothing_staged(plan)}"
    found = differences(plan)
    besides = f"the two sides differ in {'; '.join(found)}" if found else "the two sides are trained alike"
    if savings.flops_baseline is None:
        return f"{why}; {besides}"
    flops = f"{format_flops(savings.flops_staged)} FLOPs against {format_flops(savings.flops_baseline)}"
    return f"{why}; at equal held-out loss {savings.at_eval_loss:.3f} it is {flops}, and {besides}"


def seed_pairs(plan: Plan, records: Mapping[str, StageRecord]) -> list[SeedPair]:
    """The finished runs of every seed: of the written seed the best ones, of the others all."""
    on_half = is_judged_on_half(plan, records)
    return [
        SeedPair(one.seed, finished_run(one.staged, records, on_half), _finished_runs(one.baselines, records, on_half))
        for one in (compared(plan, records).candidates[0], *plan.further_seeds)
    ]


def _finished_runs(
    runs: Iterable[RunPlan], records: Mapping[str, StageRecord], on_half: bool
) -> tuple[FinishedRun, ...]:
    return tuple(found for run in runs if (found := finished_run(run, records, on_half)))


def finished_run(run: RunPlan, records: Mapping[str, StageRecord], on_half: bool = False) -> FinishedRun | None:
    """A run as one point of the comparison; None until its last stage is finished. Its loss is that at its end.

    on_half: take the loss on the half of the held-out text that chose no value.
    """
    chain = finished(run.stages, records)
    if len(chain) < len(run.stages):
        return None
    return FinishedRun(
        eval_loss=chain[-1].end.judging_loss if on_half else chain[-1].eval_loss,
        flops=sum(one.flops for one in chain),
        seconds=sum(one.seconds for one in chain),
        duration=sum(one.duration for one in chain),
    )


def _with_further(
    run: FinishedRun | None, staged: RunPlan, records: Mapping[str, StageRecord], further: Sequence[StagePlan]
) -> FinishedRun | None:
    """The staged run with the cost of further stages. What one stage took over from another one counts once."""
    if run is None or not further:
        return run
    return FinishedRun(run.eval_loss, *net_cost(finished((*staged.stages, *further), records)))


def finished(stages: Iterable[StagePlan], records: Mapping[str, StageRecord]) -> list[StageRecord]:
    return [records[stage.key] for stage in stages if stage.key in records]


def _unfinished(plan: Plan, records: Mapping[str, StageRecord]) -> list[str]:
    return [run.name for run in _waited_for(plan) if len(finished(run.stages, records)) < len(run.stages)]


def _waited_for(plan: Plan) -> tuple[RunPlan, ...]:
    """The runs whose cost or loss is in the savings."""
    return (*plan.teaching(plan.staged), *plan.compared_runs())


def _waiting(plan: Plan, records: Mapping[str, StageRecord]) -> str:
    waiting = _unfinished(plan, records)
    names = waiting if len(waiting) <= _MOST_NAMES else [*waiting[:_MOST_NAMES], "..."]
    return f"{len(waiting)} of {len(_waited_for(plan))} runs not finished ({', '.join(names)})"
