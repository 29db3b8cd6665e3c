"""Which of the values that were tried are compared: the best of either side, by the held-out loss at its end.

The baseline's are judged at its largest budget, and one value counts for all of its budgets, as one who trained it
would choose. Where two are equal, the first counts, and the schedule's own come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raystage.planned import Choice, Plan, RunPlan, Variant
from raystage.record import StageRecord
from raystage.variants import Values

Records = Mapping[str, StageRecord]

# Of fewer values none can have been seen to be worse on both sides of the best one.
ENOUGH_VALUES = 3


def choose(plan: Plan, records: Records) -> Choice | None:
    """The best values of either side; None as long as a run of the written seed is not finished."""
    if any(final_loss(run, records) is None for run in plan.pilots()):
        return None
    staged, baseline = _best(plan, records)
    return Choice(staged.staged_values, baseline.baseline_values)


def compared(plan: Plan, records: Records) -> Plan:
    """The plan with the best of either side in the place of what the schedule says, and that among the variants.

    The same plan where nothing is tuned, or not all of it is finished.
    """
    if not plan.variants or choose(plan, records) is None:
        return plan
    staged, baseline = _best(plan, records)
    rest = zip(
        [one for one in plan.candidates if one is not staged],
        [one for one in plan.candidates if one is not baseline],
        strict=True,
    )
    return replace(
        plan,
        staged=staged.staged,
        baselines=baseline.baselines,
        variants=tuple(
            Variant(plan.seed, one.staged_values, other.baseline_values, one.staged, other.baselines)
            for one, other in rest
        ),
    )


def _best(plan: Plan, records: Records) -> tuple[Variant, Variant]:
    """Of the staged run and of the baseline."""

    def best(run_of: Callable[[Variant], RunPlan]) -> Variant:
        return min(candidates, key=lambda one: _rank(final_loss(run_of(one), records)))

    candidates = plan.candidates
    return best(lambda one: one.staged), best(largest) if plan.baselines else candidates[0]


def largest(variant: Variant) -> RunPlan:
    """The baseline of the largest budget."""
    return max(variant.baselines, key=lambda run: run.tokens)


def final_loss(run: RunPlan, records: Records) -> float | None:
    """The held-out loss at a run's end; None where it is not finished."""
    record = records.get(run.stages[-1].key)
    return None if record is None else record.eval_loss


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
    staged = [_row(one.staged_values, choice and choice.staged, [one.staged], records) for one in ordered]
    baseline = [_row(one.baseline_values, choice and choice.baseline, one.baselines, records) for one in ordered]
    return {
        "staged": {"rows": staged, "at_edge": bool(choice and edges(plan, choice.staged))},
        "baseline": {"rows": baseline, "at_edge": bool(choice and edges(plan, choice.baseline))},
    }


def _row(values: Values, best: Values | None, runs: Sequence[RunPlan], records: Records) -> dict[str, Any]:
    losses = [{"budget_tokens": run.tokens, "eval_loss": final_loss(run, records)} for run in runs]
    return {"values": dict(values), "eval_losses": losses, "is_best": None if best is None else values == best}


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
