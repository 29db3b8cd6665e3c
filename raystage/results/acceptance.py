"""Whether a finished stage is accepted, and whether its growth stayed within its limits.

`judge` compares a stage's record with the schedule's `accept`. `check_growth` compares a growth's certificate with
`grow.require`. Both use one comparison: a figure that was not measured, or is not a number, never satisfies a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from raystage.config.conditions import OF_GROWTH, Accept, Overfitting
from raystage.config.stage import Require
from raystage.errors import GrowthRejected
from raystage.growth.checks import changed_positions
from raystage.plans.stage import StagePlan
from raystage.results.record import Certificate, GrowthRecord, StageRecord, TrainPoint

_NOT_MEASURED = "it was not measured"
NO_SOURCES: Mapping[str, str] = MappingProxyType({})
_OTHER_HEAD = "the model got another head, and what two heads say cannot be compared"
# Why a certificate may lack a figure.
_WHY_NONE = {
    "loss_increase_below": _OTHER_HEAD,
    "max_logit_difference_below": _OTHER_HEAD,
    "gradient_error_below": "the operator predicts no gradient exactly",
    "twin_distance_above": "the growth made no copies, or the stage ended before they were compared",
}


def judge(accept: Accept, record: StageRecord, sources: Mapping[str, str] = NO_SOURCES) -> tuple[str, ...]:
    """Why a finished stage is rejected: one sentence for each condition that does not hold. Empty: it is accepted.

    sources: of mixtures, by name their contents (`contents_of`).
    """
    return tuple(reason for reason in (*_reasons(accept, record), _forgets(accept, record, sources)) if reason)


def reasons_against(stage: StagePlan, record: StageRecord) -> tuple[str, ...]:
    """Why the stage's own `accept` rejects its record; empty where it has none, or accepts it."""
    return judge(stage.accept, record, contents_of(stage)) if stage.accept else ()


def contents_of(stage: StagePlan) -> dict[str, str]:
    """By name the content of every source up to this stage, as the latest stage has it."""
    texts = (*(one.data for one in stage.earlier), stage.data)
    return {part.name: part.data.content for data in texts for part in data.parts if part.name}


def check_growth(stage: StagePlan, growth: GrowthRecord | None) -> None:
    """Raises GrowthRejected where the certificate of a stage's growth is outside of the limits of `grow.require`."""
    if stage.growth is None or growth is None:
        return
    found = unmet(stage.growth.require, growth.certificate)
    if found:
        raise GrowthRejected(
            f"stage {stage.name}: growing by {growth.operator} is outside of grow.require: {'; '.join(found)}. "
            f"The stage before it is kept. Try {_alternative(stage, growth.certificate)}, or relax grow.require"
        )


def unmet(limits: Accept | Require, certificate: Certificate) -> list[str]:
    """The limits on a growth that its certificate does not satisfy, each as a sentence with both figures."""
    figures = {
        "loss_increase_below": certificate.loss_increase,
        "max_logit_difference_below": certificate.max_logit_difference,
        "gradient_error_below": certificate.gradient_error,
        "twin_distance_above": certificate.twin_distance,
    }
    reasons = (
        _compare(name, getattr(limits, name, None), figures[name], _WHY_NONE.get(name, _NOT_MEASURED))
        for name in OF_GROWTH
    )
    return [reason for reason in reasons if reason]


def _reasons(accept: Accept, record: StageRecord) -> Iterator[str | None]:
    end = record.evaluations[-1] if record.evaluations else None
    yield _compare("eval_loss_below", accept.eval_loss_below, record.eval_loss)
    yield _compare("accuracy_above", accept.accuracy_above, end.accuracy if end else None)
    if record.growth:
        yield from unmet(accept, record.growth.certificate)
    else:
        yield from (f"{name}: found none, the stage has no certificate of a growth" for name in accept.of_growth)
    yield _overfits(accept.overfitting, record)
    # A stage that was trained before its schedule named a metric has no value for it.
    values = end.metrics if end else {}
    for name, bounds in (accept.metrics or {}).items():
        yield _compare(f"metrics.{name}.above", bounds.above, values.get(name))
        yield _compare(f"metrics.{name}.below", bounds.below, values.get(name))


def _compare(name: str, limit: float | None, found: float | None, why_none: str = _NOT_MEASURED) -> str | None:
    """None where `found` is on the right side of `limit`, which the end of `name` tells: "below" or "above"."""
    is_below = name.endswith("below")
    # NaN is neither below nor above anything.
    if limit is None or (found is not None and (found < limit if is_below else found > limit)):
        return None
    figure = f"none ({why_none})" if found is None else f"{found:.5g}"
    return f"{name}: expected {'less' if is_below else 'more'} than {limit:g}, found {figure}"


def _forgets(accept: Accept, record: StageRecord, sources: Mapping[str, str]) -> str | None:
    """Whether the loss on a source rose by more than `forgetting_below` allows, from the stage's start to its end."""
    rule = accept.forgetting_below
    if rule is None:
        return None
    content = sources.get(rule.source, "")
    first, last = (record.evaluations[end].sources.get(content) if record.evaluations else None for end in (0, -1))
    if first is None or last is None:
        return f"forgetting_below: expected the loss on {rule.source!r}, found none ({_NOT_MEASURED})"
    if last - first <= rule.by:  # not where one of them is no number
        return None
    return (
        f"forgetting_below: expected the loss on {rule.source!r} to rise by at most {rule.by:g}, found "
        f"{last - first:.5g} (from {first:.4f} to {last:.4f})"
    )


def _overfits(rule: Overfitting | None, record: StageRecord) -> str | None:
    """Whether over each of the last k evaluations the held-out loss rose while the training loss fell.

    The training loss of an evaluation is the mean over the tokens since the evaluation before it. The first evaluation
    of a stage has none, so k falls take k + 2 evaluations.
    """
    if rule is None:
        return None
    times, held_out = rule.evaluations, record.evaluations[-rule.evaluations - 2 :]
    if len(held_out) < times + 2:
        problem = f"expected at least {times + 2} evaluations, found {len(held_out)}"
        return f"overfitting: {problem}; evaluate more often, or remove it"
    losses = [point.loss for point in held_out[1:]]
    borders, start = [point.position for point in held_out], record.evaluations[0].position
    training = [_mean_between(record.train, start, *pair) for pair in pairwise(borders)]
    if not (_rises(losses) and _rises(training[::-1])):
        return None
    return (
        f"overfitting: over the last {times} evaluations the held-out loss rose each time, from {losses[0]:.4f} to "
        f"{losses[-1]:.4f}, while the training loss fell, from {training[0]:.4f} to {training[-1]:.4f}"
    )


def _mean_between(train: Sequence[TrainPoint], start: int, left: int, right: int) -> float:
    """Mean training loss per token between two positions of a stage that began at `start`; NaN without points there.

    Training makes a point at every evaluation, so every point lies wholly on one side of an evaluation.
    """
    begins = [start, *(point.position for point in train)]
    inside = [
        (point.position - begin, point.loss)
        for begin, point in zip(begins, train, strict=False)
        if left < point.position <= right
    ]
    tokens = sum(weight for weight, _ in inside)
    return sum(weight * loss for weight, loss in inside) / tokens if tokens else math.nan


def _rises(values: Sequence[float]) -> bool:
    return all(after > before for before, after in pairwise(values))


def _alternative(stage: StagePlan, certificate: Certificate) -> str:
    """What to try instead. Where an operator that claims to be exact fails, only the precision is left."""
    changed = changed_positions(stage.parent_shape, stage.shape)
    if changed:
        return f"a smaller change of model.{changed[0]}"
    if certificate.exact:
        return "fp32 if this is bf16"
    return "an operator that is exact (identity for depth, duplicate or zero_pad for width)"
