"""Which of the tuned values are compared: the best of the staged run, and the best of the baseline at each of its
budgets.

Values are chosen by the loss on one half of the held-out text and compared by the loss on the other half, because the
best of several looks too good on the text where it was found. Older records do not have the two halves; where one of
them takes part, the whole text is used. Of equal values the first counts, and the written ones come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raystage.config.variants import Values
from raystage.files.typed_json import unit_key
from raystage.plans.plan import Choice, Plan, RunPlan, Variant
from raystage.results.record import StageRecord

Records = Mapping[str, StageRecord]

# With fewer values the best one cannot have a worse one on both of its sides.
ENOUGH_VALUES = 3


def choose(plan: Plan, records: Records) -> Choice | None:
    """The best values of each side; None until all runs of the written seed are finished."""
    if any(final_loss(run, records) is None for run in plan.pilots()):
        return None
    staged, baselines = _best(plan, plan.candidates, records)
    return Choice(staged.staged_values, tuple(one.staged_values for one in baselines))


def compared(plan: Plan, records: Records) -> Plan:
    """The plan with the best values in place of the written ones, and the written ones among the variants.

    The plan itself where nothing is tuned, or where not everything is finished.
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
    """The baseline of the smallest budget from the first variant, of the next budget from the second, and so on."""
    return tuple(one.baselines[budget] for budget, one in enumerate(variants))


def _best(plan: Plan, candidates: Sequence[Variant], records: Records) -> tuple[Variant, tuple[Variant, ...]]:
    """The best candidate for the staged run, and the best for the baseline at each budget."""
    loss_of = choosing_loss if _tell_halves(plan.pilots(), records) else final_loss

    def best(run_of: Callable[[Variant], RunPlan]) -> Variant:
        return min(candidates, key=lambda one: _rank(loss_of(run_of(one), records)))

    budgets = range(len(plan.baselines))
    return best(lambda one: one.staged), tuple(best(lambda one, at=at: one.baselines[at]) for at in budgets)


def final_loss(run: RunPlan, records: Records) -> float | None:
    """The held-out loss at the end of a run; None where it is not finished."""
    record = records.get(run.stages[-1].key)
    return None if record is None else record.eval_loss


def choosing_loss(run: RunPlan, records: Records) -> float | None:
    """The same on the half of the text that chooses values."""
    return records[run.stages[-1].key].end.choosing_loss


def is_judged_on_half(plan: Plan, records: Records) -> bool:
    """Whether values are chosen on one half of the held-out text and compared on the other.

    The choice depends on the written seed only: further seeds must not change it.
    """
    return bool(plan.variants) and _tell_halves(plan.compared_runs(), records)


def _tell_halves(runs: Sequence[RunPlan], records: Records) -> bool:
    """Whether all finished runs have the losses of both halves at their ends."""
    ends = [records[run.stages[-1].key] for run in runs if run.stages[-1].key in records]
    return all(end.evaluations and end.end.judging_loss is not None for end in ends)


def tried_with(plan: Plan, name: str) -> str:
    """The tuned values of the run of that name: 'training.optimizer.lr 0.004'; '' where it has the written ones."""
    variant = plan.variant_of(name)
    if not any(variant is one for one in plan.variants):
        return ""
    return ", ".join(f"{path} {value}" for path, value in variant.staged_values)


def _rank(loss: float) -> float:
    """A run that diverged ranks last."""
    return loss if math.isfinite(loss) else math.inf


# --- for the report ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TunedLoss:
    """The held-out loss at the end of a run of some values. is_best: whether these are the best values at this budget;
    None until that is known."""

    budget: int = field(metadata=unit_key("budget_{}"))
    eval_loss: float | None
    is_best: bool | None


@dataclass(frozen=True)
class TunedValues:
    """Values that were tried, by path. is_best: whether they are the best at any budget."""

    values: Mapping[str, Any]
    eval_losses: tuple[TunedLoss, ...]
    is_best: bool | None


@dataclass(frozen=True)
class TunedSide:
    """at_edge: whether a best value is the smallest or the largest one that was tried."""

    rows: tuple[TunedValues, ...]
    at_edge: bool


@dataclass(frozen=True)
class Tuning:
    """What was tried, by side. chosen_on_half: whether one half of the held-out text chose the values."""

    staged: TunedSide
    baseline: TunedSide
    chosen_on_half: bool = False


def measure_tuning(plan: Plan, records: Records) -> Tuning | None:
    """None where nothing is tuned. plan: as the schedule has it, not a `compared` one."""
    if not plan.variants:
        return None
    choice = choose(plan, records)
    ordered = sorted(plan.candidates, key=lambda one: _in_order(one.staged_values))
    staged = [_row(one, [one.staged], choice and (choice.staged,), records) for one in ordered]
    baseline = [_row(one, one.baselines, choice and choice.baseline, records) for one in ordered]
    at_edge = bool(choice and any(edges(plan, values) for values in choice.baseline))
    return Tuning(
        TunedSide(tuple(staged), bool(choice and edges(plan, choice.staged))),
        TunedSide(tuple(baseline), at_edge),
        _tell_halves(plan.pilots(), records),
    )


def _row(variant: Variant, runs: Sequence[RunPlan], best: Sequence[Values] | None, records: Records) -> TunedValues:
    """best: the best values by budget."""
    values = variant.staged_values
    marks = [None if best is None else one == values for one in best or [None] * len(runs)]
    losses = (TunedLoss(run.duration, final_loss(run, records), mark) for run, mark in zip(runs, marks, strict=True))
    return TunedValues(dict(values), tuple(losses), None if best is None else any(marks))


def _in_order(values: Values) -> list[tuple[bool, Any]]:
    """Numbers by size; other values keep the order in which they were written."""
    return [(True, value) if _is_number(value) else (False, 0) for _, value in values]


def edges(plan: Plan, values: Values) -> list[str]:
    """The paths at which `values` has the smallest or the largest number that was tried."""
    return [path for path, value in values if _is_number(value) and _is_at_edge(value, tried(plan, path))]


def _is_at_edge(value: float, values: Sequence[float]) -> bool:
    """No tuned value can be below 0, so there is nothing beyond 0."""
    return len(values) > 1 and (value == max(values) or (value == min(values) and value > 0))


def tried(plan: Plan, path: str) -> list[Any]:
    """Every value of a path, once."""
    found: list[Any] = []
    for one in plan.candidates:
        for tuned, value in one.staged_values:
            if tuned == path and value not in found:
                found.append(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
