"""When a stage ends on what its training shows: `until`, decided from what was seen so far.

`planning.length` decides what is known before training. Nothing here knows a clock, a file or a model, so every worker
and every restart reaches the same decision from the same evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raystage.config.conditions import Plateau, Slope, Until
from raystage.results.record import Evaluation

SLOPE_WINDOW = 5  # evaluations in the running mean
SLOPE_SPIKE = 0.01  # a loss that is higher than the one before by more than this share is left out


@dataclass(frozen=True)
class Seen:
    """The position within a stage, counted from its start. progress: in tokens or samples. seconds: of training.

    evaluations: all of the stage's. The first is taken before the first step: it shows the model that the stage was
    given, so it ends no stage. The rest (`own`) show what the stage made of it.
    """

    progress: int
    steps: int
    flops: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def own(self) -> tuple[Evaluation, ...]:
        return self.evaluations[1:]


def fired(until: Until, seen: Seen) -> str | None:
    """Why the stage ends here, in one sentence with the figures; None where it does not end.

    Where several conditions hold at once, the most informative one: what the training showed comes before counts.
    """
    if until.mixing is not None:
        raise ValueError("a mixing time is not resolved yet: expected until as placed_mixing returns it")
    reasons = (
        _target_reached(until.eval_loss, seen),
        _plateau(until.plateau, seen),
        _slope(until.slope, seen),
        *(fired(part, seen) for part in until.any or ()),
        _all_fired(until.all, seen),
        _spent("seconds", until.seconds, round(seen.seconds, 1)),
        _spent("tokens", until.tokens, seen.progress),
        _spent("samples", until.samples, seen.progress),
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
    if target is None or not seen.own or not seen.own[-1].loss <= target:  # False for NaN
        return None
    return f"eval_loss: the held-out loss is {seen.own[-1].loss:.4f}, at or below {target:g}"


def _plateau(rule: Plateau | None, seen: Seen) -> str | None:
    """No gain of min_delta: the best of the last `patience` evaluations compared with the best before them.

    The best, because a single low evaluation must not make the next ones look like a plateau, and a single high one
    must not look like a gain. The evaluation before the first step is left out: the model of an exact growth starts
    with a loss that its first steps may not keep, and after a jump in loss any later value would look like a gain. A
    loss that is NaN or infinite is no gain.
    """
    if rule is None or len(seen.own) <= rule.patience:
        return None
    losses = [point.loss if math.isfinite(point.loss) else math.inf for point in seen.own]
    before, last = min(losses[: -rule.patience]), min(losses[-rule.patience :])
    if before - last >= rule.min_delta:  # inf - inf is NaN: no gain
        return None
    window = "the last held-out loss" if rule.patience == 1 else f"the best of the last {rule.patience} held-out losses"
    return f"plateau: {window}, {last:.4f}, is not {rule.min_delta:g} below {before:.4f}, the best before"


def _slope(rule: Slope | None, seen: Seen) -> str | None:
    if rule is None:
        return None
    slopes = loss_slopes(seen.own)
    last = slopes[-rule.hits :]
    # The slope must have been below tau before: during a warm-up it starts above tau, and that ends no stage.
    if not slopes or min(last) <= rule.tau or min(slopes) > rule.tau:
        return None
    shown = ", ".join(f"{slope:.4f}" for slope in last)
    times = "is" if rule.hits == 1 else f"was {rule.hits} times in a row"
    return f"slope: that of log10 loss over log10 FLOPs {times} above {rule.tau:g} ({shown})"


def loss_slopes(evaluations: Sequence[Evaluation]) -> tuple[float, ...]:
    """d log10 loss / d log10 C along a curve, the oldest first; C are the FLOPs since the start of the run.

    The method is that of the notebook (remove_oracle) published with Shen et al. (2203.06211). A loss more than 1 %
    above the last one kept is a spike and is left out. log10 loss is averaged over five neighbours. Each slope is the
    difference of two averages in a row, divided by the difference of log10 C at the middles of their windows.

    Two things differ. The notebook looks back on a whole curve; this sees only the past, so it uses full windows alone:
    a slope is known two evaluations after its place, and six evaluations are the fewest for one slope. And C counts all
    stages of a run, while the curve holds one stage: the paper leaves that open. Points without a finite loss above 0,
    or without FLOPs before them, are left out.
    """
    kept = _without_spikes(evaluations)
    compute = [math.log10(point.flops) for point in kept]
    losses = [math.log10(point.loss) for point in kept]
    half = SLOPE_WINDOW // 2
    return tuple(
        # Two windows in a row differ by the point that enters and the point that leaves.
        (losses[middle + half + 1] - losses[middle - half]) / SLOPE_WINDOW / (compute[middle + 1] - compute[middle])
        for middle in range(half, len(kept) - half - 1)
    )


def _without_spikes(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    kept: list[Evaluation] = []
    for point in evaluations:
        if not (math.isfinite(point.loss) and point.loss > 0 and point.flops > (kept[-1].flops if kept else 0)):
            continue
        if not kept or point.loss <= kept[-1].loss * (1 + SLOPE_SPIKE):
            kept.append(point)
    return kept
