"""Which of the values that were tried are compared: the best of the staged run, and at each of its budgets the best of
the baseline, as whoever trained it at that budget would have chosen.

Values are chosen by the loss on one half of the held-out text, and what was chosen is compared by the loss on the
other: the best of several looks better than it is where it was found. Records of versions before do not tell the halves
apart; where there is one among them, all of the text is used. Where two values are equal, the first counts, and the
schedule's own come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raystage.config.variants import Values
from raystage.plan.plan import Choice, Plan, RunPlan, Variant
from raystage.results.record import StageRecord

Records = Mapping[str, StageRecord]

# Of fewer values none can have been seen to be worse on both sides of the best one.
ENOUGH_VALUES = 3


def choose(plan: Plan, records: Records) -> Choice | None:
    """The best values of either side; None as long as a run of the written seed is not finished."""
    if any(final_loss(run, records) is None for run in plan.pilots()):
        return None
    staged, baselines = _best(plan, plan.candidates, records)
    return Choice(staged.staged_values, tuple(one.staged_values for one in baselines))


def compared(plan: Plan, records: Records) -> Plan:
    """The plan with the best of either side in the place of what the schedule says, and that among the variants.

    The same plan where nothing is tuned, or not all of it is finished.
    """
    if not plan.variants or choose(plan, records) is None:
        return plan
    candidates = plan.candidates
    best, at_budgets = _best(plan, candidates, records)
    staged = [one for one in candidates if one is not best]
    others = [[one for one in candidates if one is not chosen] for chosen in at_budgets]
    return replace(
        plan,
        staged=best.staged,
        baselines=_at_each(at_budgets),
        variants=tuple(
            Variant(plan.seed, one.staged_values, tuple(at.staged_values for at in rest), one.staged, _at_each(rest))
            for one, *rest in zip(staged, *others, strict=True)
        ),
    )


def _at_each(variants: Sequence[Variant]) -> tuple[RunPlan, ...]:
    """Of the first variant the baseline of the smallest budget, of the second that of the next, and so on."""
    return tuple(one.baselines[budget] for budget, one in enumerate(variants))


def _best(plan: Plan, candidates: Sequence[Variant], records: Records) -> tuple[Variant, tuple[Variant, ...]]:
    """Of the candidates that for the staged run, and that for the baseline at each budget."""
    loss_of = choosing_loss if _tell_halves(plan.pilots(), records) else final_loss

    def best(run_of: Callable[[Variant], RunPlan]) -> Variant:
        return min(candidates, key=lambda one: _rank(loss_of(run_of(one), records)))

    budgets = range(len(plan.baselines))
    return best(lambda one: one.staged), tuple(best(lambda one, at=at: one.baselines[at]) for at in budgets)


def final_loss(run: RunPlan, records: Records) -> float | None:
    """The held-out loss at a run's end; None where it is not finished."""
    record = records.get(run.stages[-1].key)
    return None if record is None else record.eval_loss


def choosing_loss(run: RunPlan, records: Records) -> float | None:
    """The same on the half of the text by which values are chosen."""
    return records[run.stages[-1].key].end.choosing_loss


def is_judged_on_half(plan: Plan, records: Records) -> bool:
    """Whether values are chosen on one half of the held-out text and compared on the other.

    The choice is that of the written seed alone: what further seeds come to must not change it.
    """
    return bool(plan.variants) and _tell_halves(plan.runs(), records)


def _tell_halves(runs: Sequence[RunPlan], records: Records) -> bool:
    """Whether the ends of all runs that are finished tell the halves of the held-out text apart."""
    ends = [records[run.stages[-1].key] for run in runs if run.stages[-1].key in records]
    return all(end.evaluations and end.end.judging_loss is not None for end in ends)


def tried_with(plan: Plan, name: str) -> str:
    """What `baseline.tune` has the run of that name try: 'training.optimizer.lr 0.004'; '' where it tries nothing."""
    variant = plan.variant_of(name)
    if not any(variant is one for one in plan.variants):
        return ""
    return ", ".join(f"{path} {value}" for path, value in variant.staged_values)


def _rank(loss: float) -> float:
    """A run that diverged is the worst of all."""
    return loss if math.isfinite(loss) else math.inf


# --- for the report ---------------------------------------------------------------------------


def tuning_rows(plan: Plan, records: Records) -> dict[str, Any] | None:
    """What was tried, by side: values, held-out loss at the end (of every budget), which is best, and whether it lies
    at an edge of what was tried. None where nothing is tuned. Of a plan as the schedule has it, not a `compared` one.
    """
    if not plan.variants:
        return None
    choice = choose(plan, records)
    ordered = sorted(plan.candidates, key=lambda one: _in_order(one.staged_values))
    staged = [_row(one, [one.staged], choice and (choice.staged,), records) for one in ordered]
    baseline = [_row(one, one.baselines, choice and choice.baseline, records) for one in ordered]
    return {
        "staged": {"rows": staged, "at_edge": bool(choice and edges(plan, choice.staged))},
        "baseline": {
            "rows": baseline,
            "at_edge": bool(choice and any(edges(plan, values) for values in choice.baseline)),
        },
        "chosen_on_half": _tell_halves(plan.pilots(), records),
    }


def _row(variant: Variant, runs: Sequence[RunPlan], best: Sequence[Values] | None, records: Records) -> dict[str, Any]:
    """best: by budget. is_best: whether the values are it at any of them."""
    values = variant.staged_values
    marks = [None if best is None else one == values for one in best or [None] * len(runs)]
    losses = [
        {"budget_tokens": run.tokens, "eval_loss": final_loss(run, records), "is_best": mark}
        for run, mark in zip(runs, marks, strict=True)
    ]
    return {"values": dict(values), "eval_losses": losses, "is_best": None if best is None else any(marks)}


def _in_order(values: Values) -> list[tuple[bool, Any]]:
    """Numbers by size; what is none stays in the order in which it was written."""
    return [(True, value) if _is_number(value) else (False, 0) for _, value in values]


def edges(plan: Plan, values: Values) -> list[str]:
    """The paths of which `values` has the smallest or the largest number that was tried."""
    return [path for path, value in values if _is_number(value) and _is_at_edge(value, tried(plan, path))]


def _is_at_edge(value: float, values: Sequence[float]) -> bool:
    """None of what is tuned can be below 0: there is nothing beyond it."""
    return len(values) > 1 and (value == max(values) or (value == min(values) and value > 0))


def tried(plan: Plan, path: str) -> list[Any]:
    """Every value of a path once."""
    found: list[Any] = []
    for one in plan.candidates:
        for tuned, value in one.staged_values:
            if tuned == path and value not in found:
                found.append(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
