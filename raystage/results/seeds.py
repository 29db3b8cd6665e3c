"""The savings over several seeds: means with their 95 % intervals, and whether they show anything.

Seeds are compared in pairs, the staged run of a seed with the baselines of the same seed, so that what a seed does to
both sides cancels out. The interval is Student's: mean +- t * s / sqrt(n) with n - 1 degrees of freedom. It takes the
figures of the pairs as independent and about normal. A pair without a figure is never left out of a mean silently,
because that would favour one side. An interval covers only what differs from seed to seed (`COVERED`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, mean, stdev

from raystage.files.typed_json import unit_key
from raystage.results.savings import FinishedRun, Savings, compare, room
from raystage.units import format_difference, format_share

# Student's t, 97.5 %, at 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# What the interval covers, for readers of the report.
COVERED = (
    "The interval covers what differs from seed to seed: first weights and the order of the text. It does not cover "
    "other text for training or evaluation, nor the choice of tuned values, which was made once, nor what lies "
    "between two budgets of the baseline, where the figure is the lowest possible one."
)
# Nobody would train more.
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class SeedPair:
    """The staged run of a seed and its baselines, fully decayed; None and empty where they are missing."""

    seed: int
    staged: FinishedRun | None
    baselines: tuple[FinishedRun, ...]


@dataclass(frozen=True)
class Interval:
    """A mean over `num_seeds` with its 95 % interval from `low` to `high`; a single seed has none."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    @property
    def spans_zero(self) -> bool:
        return self.low is not None and self.low <= 0 <= self.high


@dataclass(frozen=True)
class OverSeeds:
    """The fields of `Savings` over all seeds that have a pair; None where one of them has no figure.

    left_out: sentences on the seeds without a pair. seeds_needed: how many seeds would be enough, where the interval of
    compute_saved spans zero; None where that is more than 1,000.
    """

    seeds: tuple[int, ...]
    left_out: tuple[str, ...]
    compute_saved: Interval | None
    time_saved: Interval | None
    duration_saved: Interval | None = field(metadata=unit_key("{}_saved"))
    loss_difference_at_equal_flops: Interval | None
    seeds_needed: int | None
    verdict: str
    compute_saved_at_most: Interval | None = None
    loss_difference_at_equal_flops_at_most: Interval | None = None
    covers: str = COVERED


def over_seeds(pairs: Sequence[SeedPair]) -> OverSeeds:
    """The savings of all pairs together, in any order."""
    ordered = sorted(pairs, key=lambda pair: pair.seed)
    whole = [pair for pair in ordered if pair.staged is not None and pair.baselines]
    savings = {pair.seed: compare(pair.staged, pair.baselines) for pair in whole}
    left_out = tuple(_missing(pair) for pair in ordered if pair.seed not in savings)
    compute_saved = _interval(savings, lambda one: one.compute_saved)
    most = _interval(savings, lambda one: one.compute_saved_at_most)
    difference = _interval(savings, lambda one: one.loss_difference_at_equal_flops)
    needed = _seeds_needed([one.compute_saved for one in savings.values()]) if _is_open(compute_saved) else None
    return OverSeeds(
        seeds=tuple(savings),
        left_out=left_out,
        compute_saved=compute_saved,
        time_saved=_interval(savings, lambda one: one.time_saved),
        duration_saved=_interval(savings, lambda one: one.duration_saved),
        loss_difference_at_equal_flops=difference,
        seeds_needed=needed,
        verdict="; ".join((_verdict(savings, compute_saved, most, difference, needed), *left_out)),
        compute_saved_at_most=most,
        loss_difference_at_equal_flops_at_most=_interval(
            savings, lambda one: one.loss_difference_at_equal_flops_at_most
        ),
    )


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value or more, with Student's 95 % interval."""
    if len(values) < 2:
        return Interval(values[0], None, None, 1)
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half, len(values))


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to three decimal places.

    Beyond the table by the expansion of Abramowitz and Stegun, 26.7.5, of which two terms are enough there.
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _interval(savings: dict[int, Savings], figure: Callable[[Savings], float | None]) -> Interval | None:
    values = [figure(one) for one in savings.values()]
    return interval(values) if values and None not in values else None


def _is_open(found: Interval | None) -> bool:
    return found is not None and found.spans_zero


def _seeds_needed(values: Sequence[float]) -> int | None:
    """The fewest seeds whose interval would not span zero if mean and spread stay the same: `n > (t * s / mean)^2`.

    t depends on n, so the formula is tried for each n in turn (NIST/SEMATECH e-Handbook, 7.2.2.2).
    """
    average, spread = mean(values), stdev(values)
    enough = (n for n in range(2, _MOST_SEEDS + 1) if student_t(n - 1) * spread / math.sqrt(n) < abs(average))
    return next(enough, None)


# --- words ------------------------------------------------------------------------------------


def _missing(pair: SeedPair) -> str:
    sides = [name for name, found in (("staged run", pair.staged), ("baseline", pair.baselines)) if not found]
    return f"seed {pair.seed} is left out, which has no {' and no '.join(sides)}"


def _verdict(
    savings: dict[int, Savings],
    saved: Interval | None,
    most: Interval | None,
    difference: Interval | None,
    needed: int | None,
) -> str:
    if not savings:
        return "no saving to report: no seed has both a staged run and a baseline"
    if saved is None:
        return "; ".join(part for part in (_no_mean(savings), _at_equal_flops(difference)) if part)
    if saved.low is None:
        return f"{next(iter(savings.values())).verdict}, of one seed"
    if saved.spans_zero:
        return f"no saving shown: the interval spans zero ({_span(saved)}); {_takes(needed)}"
    if saved.high < 0:
        outcome = f"saved nothing: cost {format_share(-saved.mean)} more compute"
    else:
        outcome = f"saved {format_share(saved.mean)} of the compute"
    return f"{outcome} at equal held-out loss, mean of {_span(saved)}{room(saved.mean, most.mean)}"


def _no_mean(savings: dict[int, Savings]) -> str:
    without = {seed: one for seed, one in savings.items() if one.compute_saved is None}
    seed, first = next(iter(without.items()))
    which = f"seed {seed} has" if len(without) == 1 else f"seeds {', '.join(map(str, without))} have"
    why = f"(seed {seed}: {first.verdict.removeprefix('no saving to report: ')})"
    return f"no saving to report: {which} no figure, and a mean of the others would favour one side {why}"


def _at_equal_flops(difference: Interval | None) -> str | None:
    if difference is None or difference.low is None:
        return None
    between = f"{difference.num_seeds} seeds, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.spans_zero:
        return f"at equal FLOPs no difference of the losses is shown ({between})"
    compared = format_difference(difference.mean)
    return f"at equal FLOPs the staged run's held-out loss is {compared} the baseline's (mean of {between})"


def _span(found: Interval) -> str:
    return f"{found.num_seeds} seeds, 95 % interval {format_share(found.low)} to {format_share(found.high)}"


def _takes(needed: int | None) -> str:
    if needed is None:
        return f"with this spread more than {_MOST_SEEDS} seeds would not tell"
    return f"with this mean and spread it would take {needed} seeds to tell"
