"""When a stage ends: what `until` means, as functions of what has been seen so far.

What is fixed (tokens, steps, FLOPs, a mixing time) is known when the schedule is planned: `cap_steps`. What depends on
the training (`is_open`) may end the stage before: `fired`. Nothing here knows a clock, a file or a model, so that every
worker and every restart decides alike from the same evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from raystage.config.conditions import Accept, Mixing, Plateau, Slope, Until
from raystage.errors import InputError
from raystage.plan.steps import Course, TokenCost

FIXED = ("tokens", "steps", "flops", "mixing")
CLOCK = "seconds"
ON_TRAINING = ("eval_loss", "plateau", "slope", CLOCK)

SLOPE_WINDOW = 5  # evaluations in the running mean
SLOPE_SPIKE = 0.01  # a loss that much above the one before is left out
LATEST_MIXING_SHARE = (4, 5)  # of the run: a growth that comes later has too little left of it


class Evaluated(Protocol):
    """An evaluation: mean held-out loss in nats per token; tokens and FLOPs counted from the run's start."""

    @property
    def tokens(self) -> int: ...

    @property
    def flops(self) -> int: ...

    @property
    def loss(self) -> float: ...


@dataclass(frozen=True)
class Seen:
    """Where a stage stands, counted from its own start; seconds are of training.

    evaluations: all of the stage's. The first is taken on entering it, before any step: it shows the model that the
    stage was given and so ends no stage. The rest (`own`) shows what the stage made of it.
    """

    tokens: int
    steps: int
    flops: int
    seconds: float
    evaluations: tuple[Evaluated, ...] = ()

    @property
    def own(self) -> tuple[Evaluated, ...]:
        return self.evaluations[1:]


# --- what can be said before training ---------------------------------------------------------


def is_open(until: Until) -> bool:
    """Whether the stage may end before its cap, on what is known only while it trains."""
    return _has(until, ON_TRAINING)


def waits_for_evaluations(until: Until | None, accept: Accept | None) -> bool:
    """Whether what ends a stage early, or lets it be accepted, is seen in a row of evaluations."""
    return (until is not None and is_open(until)) or (accept is not None and accept.overfitting is not None)


def reads_clock(until: Until) -> bool:
    """Whether it depends on how long training took, which no two runs agree on."""
    return _has(until, (CLOCK,))


def _has(until: Until, keys: Sequence[str]) -> bool:
    inside = (*(until.any or ()), *(until.all or ()))
    return any(key in until.given for key in keys) or any(_has(part, keys) for part in inside)


# From the tokens of a whole run to the position where its rate begins to decay; None where it has no stable phase.
DecayStart = Callable[[int], int | None]


def cap_steps(until: Until, course: Course, cost: TokenCost, start_tokens: int, decay_start: DecayStart) -> int:
    """Whole optimizer steps after which the stage ends at the latest: with the first that reaches what is fixed.

    course, cost: how large its steps are, and what a token costs in them. start_tokens: where the stage begins in its
    run. Of several fixed ones the smallest counts, in `all` the largest. Raises InputError, with `until` or a key below
    it, where the stage has no cap though it may go on for ever, or where a mixing time has no place.
    """
    if is_open(until) and not any(key in until.given for key in FIXED):
        beside = " and ".join(key for key in until.given)
        raise InputError(f"missing a cap; expected tokens, steps or flops beside {beside}", key="until")
    placed = placed_mixing(until, start_tokens, decay_start)
    return _cap(placed, course, cost)


def _cap(until: Until, course: Course, cost: TokenCost) -> float:
    """Steps, a whole number; infinite where nothing fixed ends the stage."""
    ends: list[float] = [math.inf]
    if until.tokens is not None:
        ends.append(course.steps_for(until.tokens))
    if until.steps is not None:
        ends.append(until.steps)
    if until.flops is not None:
        ends.append(course.steps_for_flops(until.flops, cost))
    ends += [_cap(part, course, cost) for part in until.any or ()]
    if until.all is not None:
        ends.append(max(_cap(part, course, cost) for part in until.all))
    return min(ends)


def placed_mixing(until: Until, start_tokens: int, decay_start: DecayStart, key: str = "until") -> Until:
    """The same with every mixing time as the tokens from the stage's start that it comes to; `fired` takes no other.

    Raises InputError, at `key` or below, where a mixing time has no place.
    """
    changes: dict[str, object] = {}
    if until.mixing is not None:
        position = _mixing_position(until.mixing, decay_start, f"{key}.mixing")
        tokens = position - start_tokens
        if tokens <= 0:
            found = f"found a growth at {position} tokens of the run, where the stage begins at {start_tokens}"
            problem = f"{found}; expected a later one: a shorter mixing time, or shorter stages before"
            raise InputError(problem, key=f"{key}.mixing")
        changes = {"mixing": None, "tokens": min(tokens, until.tokens or tokens)}
    for name in ("any", "all"):
        parts = getattr(until, name)
        if parts is not None:
            changes[name] = tuple(
                placed_mixing(part, start_tokens, decay_start, f"{key}.{name}[{index}]")
                for index, part in enumerate(parts)
            )
    return until.model_copy(update=changes)


def _mixing_position(mixing: Mixing, decay_start: DecayStart, key: str) -> int:
    """Where in the run to grow: the mixing time before its rate decays, at most 0.8 of it (Bu, 2511.04981)."""
    stable_end = decay_start(mixing.of)
    if stable_end is None:
        problem = "found with a rate that has no stable phase; expected lr_schedule.kind: wsd or constant"
        raise InputError(problem, key=key)
    numerator, denominator = LATEST_MIXING_SHARE
    return min(stable_end - mixing.tokens, mixing.of * numerator // denominator)


# --- what training shows ----------------------------------------------------------------------


def fired(until: Until, seen: Seen) -> str | None:
    """Why the stage ends here, in one sentence with the figures; None where it does not.

    Where several things end it at once, the one that says most: what the training showed, before what was fixed.
    """
    if until.mixing is not None:
        raise ValueError("a mixing time has no place yet: expected until as placed_mixing returns it")
    reasons = (
        _target_reached(until.eval_loss, seen),
        _plateau(until.plateau, seen),
        _slope(until.slope, seen),
        *(fired(part, seen) for part in until.any or ()),
        _all_fired(until.all, seen),
        _spent("seconds", until.seconds, round(seen.seconds, 1)),
        _spent("tokens", until.tokens, seen.tokens),
        _spent("steps", until.steps, seen.steps),
        _spent("flops", until.flops, seen.flops),
    )
    return next((reason for reason in reasons if reason), None)


def _all_fired(parts: tuple[Until, ...] | None, seen: Seen) -> str | None:
    reasons = [fired(part, seen) for part in parts or ()]
    return "; and ".join(map(str, reasons)) if reasons and all(reasons) else None


def _spent(name: str, limit: float | None, spent: float) -> str | None:
    if limit is None or spent < limit:
        return None
    return f"{name}: the stage has had {spent:,.10g} of {limit:,.10g}"


def _target_reached(target: float | None, seen: Seen) -> str | None:
    if target is None or not seen.own or not seen.own[-1].loss <= target:  # NaN is at or below nothing
        return None
    return f"eval_loss: the held-out loss is {seen.own[-1].loss:.4f}, at or below {target:g}"


def _plateau(rule: Plateau | None, seen: Seen) -> str | None:
    """No gain of min_delta: the best of the last `patience` evaluations against the best before them.

    The best, since one lucky evaluation must not look like a plateau after it, nor an unlucky one like a gain. The one
    on entering the stage does not count: an exact growth is entered with a loss that the steps after it may not
    keep, and one that jumped would only delay. What is no number is no gain.
    """
    if rule is None or len(seen.own) <= rule.patience:
        return None
    losses = [point.loss if math.isfinite(point.loss) else math.inf for point in seen.own]
    before, last = min(losses[: -rule.patience]), min(losses[-rule.patience :])
    if before - last >= rule.min_delta:  # of infinite losses NaN: no gain
        return None
    window = "the last held-out loss" if rule.patience == 1 else f"the best of the last {rule.patience} held-out losses"
    return f"plateau: {window}, {last:.4f}, is no {rule.min_delta:g} below {before:.4f}, the best before"


def _slope(rule: Slope | None, seen: Seen) -> str | None:
    if rule is None:
        return None
    slopes = loss_slopes(seen.own)
    last = slopes[-rule.hits :]
    # It has to rise above tau: the slope of a warm-up, which begins above it, ends no stage.
    if not slopes or min(last) <= rule.tau or min(slopes) > rule.tau:
        return None
    shown = ", ".join(f"{slope:.4f}" for slope in last)
    times = "is" if rule.hits == 1 else f"was {rule.hits} times in a row"
    return f"slope: that of log10 loss over log10 FLOPs {times} above {rule.tau:g} ({shown})"


def loss_slopes(evaluations: Sequence[Evaluated]) -> tuple[float, ...]:
    """d log10 loss / d log10 C along a curve, the oldest first; C are the FLOPs since the start of the run.

    As in the notebook (remove_oracle) that came with Shen et al. (2203.06211): a loss more than 1 % above the one kept
    before it is a spike and left out; log10 loss is averaged over five neighbours; each slope is the difference of two
    averages in a row over that of log10 C at the middles of their windows. Where that looks back on a whole curve,
    this sees only its past: it uses full windows alone, so that a slope is known two evaluations after its place and
    six are the fewest for one. That C counts all of a run's stages, and a curve only its own stage, is our reading,
    too. Points without a finite loss above 0, or without FLOPs before them, are left out.
    """
    kept = _without_spikes(evaluations)
    compute = [math.log10(point.flops) for point in kept]
    losses = [math.log10(point.loss) for point in kept]
    half = SLOPE_WINDOW // 2
    return tuple(
        # Two windows in a row differ by the point that comes in and the one that goes out.
        (losses[middle + half + 1] - losses[middle - half]) / SLOPE_WINDOW / (compute[middle + 1] - compute[middle])
        for middle in range(half, len(kept) - half - 1)
    )


def _without_spikes(evaluations: Sequence[Evaluated]) -> list[Evaluated]:
    kept: list[Evaluated] = []
    for point in evaluations:
        if not (math.isfinite(point.loss) and point.loss > 0 and point.flops > (kept[-1].flops if kept else 0)):
            continue
        if not kept or point.loss <= kept[-1].loss * (1 + SLOPE_SPIKE):
            kept.append(point)
    return kept


# --- pilots -----------------------------------------------------------------------------------


def mixing_tokens(grown: Sequence[Evaluated], scratch: Sequence[Evaluated], within: float = 0.005) -> int | None:
    """How many tokens after its growth a run has caught up with one from scratch for good: Bu's t_mix (2511.04981).

    grown: its evaluations from the growth on, the first on entering the grown stage; scratch: those of the model of
    the same size from the start, whose loss between two of them is on a straight line over tokens. Caught up: no more
    than `within` (a share) above; a grown run that is better has mixed as well. Evaluations outside of scratch's range
    say nothing. None where the last one that says something is above, or none does.
    """
    mixed: int | None = None
    for point in grown:
        loss = _loss_at(scratch, point.tokens)
        if loss is None:
            continue
        if not point.loss <= loss * (1 + within):  # NaN has not caught up
            mixed = None
        elif mixed is None:
            mixed = point.tokens - grown[0].tokens
    return mixed


def _loss_at(curve: Sequence[Evaluated], tokens: int) -> float | None:
    """On the straight line between the neighbours of a position; None outside of the curve."""
    for point in curve:
        if point.tokens == tokens:
            return point.loss
    for left, right in pairwise(curve):
        if left.tokens < tokens < right.tokens:
            share = (tokens - left.tokens) / (right.tokens - left.tokens)
            return left.loss + (right.loss - left.loss) * share
    return None
