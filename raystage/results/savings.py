"""What growing saved: the staged run compared with its final model trained from scratch, at equal held-out loss.

    compute_saved = 1 - C_staged / C_baseline          speedup = C_baseline / C_staged - 1

C_baseline is the compute at which the baseline reaches the staged run's final loss. It is read off between baseline
runs that each had a budget of their own and a full decay, never off the undecayed curve of one long run. Between two of
them it has bounds (`interpolation`). The figure is the smallest compute at which the baseline may have reached the
loss; the largest, on a straight line over log FLOPs, stands beside it as `..._at_most`. Time and tokens are read off at
the same place, in their own logarithms. At equal FLOPs the figure is that of the lowest loss that the baseline may have
had.

Nothing is extrapolated, and nothing is read off between budgets that are too far apart: then there is no figure, and
the verdict says why. Every choice is made against the staged run. `seeds` has the savings over several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from raystage.files.typed_json import unit_key
from raystage.results.interpolation import Stretch, stretch, too_far_apart
from raystage.units import format_difference, format_flops, format_share


@dataclass(frozen=True)
class FinishedRun:
    """A run from its start to the end of its decay.

    eval_loss: in nats per token on held-out documents. flops, seconds (wall-clock time) and duration (training tokens
    or samples): over all its stages and growths, without evaluation. seconds and duration are 0 where not known.
    """

    eval_loss: float
    flops: float
    seconds: float
    duration: float = 0

    def __post_init__(self) -> None:
        if not self.flops > 0:
            raise ValueError(f"found a finished run of {self.flops} FLOPs; expected more than 0")


@dataclass(frozen=True)
class Savings:
    """A comparison at equal loss and at equal FLOPs. Shares, not percentages; None where there is no figure.

    flops_baseline: the least with which the baseline may have reached the loss. ..._at_most: by a straight line between
    the budgets around it; the same where the loss is exactly that of a baseline run. equal_loss_reached: whether the
    baseline reached the staged run's final loss within its budgets, so that there is a figure.

    loss_difference_at_equal_flops: the held-out loss of the baseline with the staged run's FLOPs, minus that of the
    staged run, in nats per token; above 0 where the staged run is better. at_equal_flops: the same in words, or why
    there is no figure. is_judged_on_half: whether the losses are those on the half of the held-out text that chose no
    value.
    """

    at_eval_loss: float | None
    compute_saved: float | None
    speedup: float | None
    time_saved: float | None
    flops_staged: float | None
    flops_baseline: float | None
    equal_loss_reached: bool
    verdict: str
    duration_saved: float | None = field(default=None, metadata=unit_key("{}_saved"))
    loss_difference_at_equal_flops: float | None = None
    at_equal_flops: str = ""
    compute_saved_at_most: float | None = None
    flops_baseline_at_most: float | None = None
    loss_difference_at_equal_flops_at_most: float | None = None
    is_judged_on_half: bool = False


def saved(staged: float, baseline: float) -> float:
    """The share saved: `1 - staged / baseline`. Negative where the staged run cost more."""
    return 1 - staged / baseline


def speedup(staged: float, baseline: float) -> float:
    """How much faster: `baseline / staged - 1`. A speed-up of 54.6 % is 35.3 % saved."""
    return baseline / staged - 1


def compare(staged: FinishedRun, baselines: Sequence[FinishedRun]) -> Savings:
    """The savings of `staged` against baseline runs at several budgets, in any order."""
    if not baselines:
        return no_figure("no saving to report: there is no baseline to compare with", staged)
    diverged = _diverged(staged, baselines)
    if diverged:
        return no_figure(f"no saving to report: {diverged}", staged)
    runs = _by_flops(baselines)
    refusal = _outside(staged.eval_loss, runs) or _gap_at_loss(staged.eval_loss, runs)
    if refusal:
        savings = no_figure(f"no saving to report: {refusal}", staged)
    else:
        savings = _figure(staged, *_at_loss(staged.eval_loss, runs))
    return _with_equal_flops(savings, staged, runs)


def no_figure(verdict: str, staged: FinishedRun | None = None) -> Savings:
    """A comparison without a result; `verdict` says why."""
    known = staged is not None and math.isfinite(staged.eval_loss)
    return Savings(
        at_eval_loss=staged.eval_loss if known else None,
        compute_saved=None,
        speedup=None,
        time_saved=None,
        flops_staged=staged.flops if staged else None,
        flops_baseline=None,
        equal_loss_reached=False,
        verdict=verdict,
    )


def _diverged(staged: FinishedRun, baselines: Sequence[FinishedRun]) -> str | None:
    """A run without a finite loss has no place on the curve, and leaving it out would favour one side."""
    if not math.isfinite(staged.eval_loss):
        return f"the staged run's held-out loss is {staged.eval_loss}"
    for run in baselines:
        if not math.isfinite(run.eval_loss):
            return f"the held-out loss of the baseline run of {format_flops(run.flops)} FLOPs is {run.eval_loss}"
    return None


def _by_flops(baselines: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Ascending in FLOPs; of runs with equal FLOPs the best one."""
    best: dict[float, FinishedRun] = {}
    for run in sorted(baselines, key=lambda run: (run.flops, run.eval_loss, run.seconds)):
        best.setdefault(run.flops, run)
    return list(best.values())


def _telling(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The best so far, without runs that did worse than a cheaper run while a more expensive one did better.

    Such a run went wrong, so nobody knows what the baseline could have reached with its budget.
    """
    best = _best_so_far(runs)
    return [
        at_best
        for run, at_best in zip(runs, best, strict=True)
        if run.eval_loss == at_best.eval_loss or best[-1].eval_loss == at_best.eval_loss
    ]


def _best_so_far(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Each run with the best loss of it and of all cheaper runs: nobody has to spend a whole budget."""
    lowest = accumulate((run.eval_loss for run in runs), min)
    return [replace(run, eval_loss=loss) for run, loss in zip(runs, lowest, strict=True)]


def _outside(loss: float, runs: list[FinishedRun]) -> str | None:
    """Why no two neighbours enclose `loss`; None where they do."""
    low, high = min(run.eval_loss for run in runs), max(run.eval_loss for run in runs)
    if loss > high:
        return (
            f"the baseline's loss was never reached, the staged run is worse than every baseline run "
            f"(held-out loss {loss:.3f} against {_range(low, high)}); smaller budgets would show where they meet"
        )
    if loss < low:
        return (
            f"the baseline never reached the staged run's held-out loss {loss:.3f} within its largest budget "
            f"(best {low:.3f}, up to {format_flops(runs[-1].flops)} FLOPs); add larger budgets"
        )
    if loss > runs[0].eval_loss:
        # A more expensive run that did worse encloses the loss, but the cheapest run had reached it before.
        return (
            f"the baseline's smallest budget ({format_flops(runs[0].flops)} FLOPs) already reached "
            f"{runs[0].eval_loss:.3f}, better than the staged run's held-out loss {loss:.3f}; add smaller budgets"
        )
    return None


def _range(low: float, high: float) -> str:
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def _gap_at_loss(loss: float, runs: list[FinishedRun]) -> str | None:
    """Why the baseline is not read off at `loss`; None where it is."""
    index = _first_at(loss, runs)
    return None if runs[index].eval_loss == loss else _gap(runs, index, f"the held-out loss {loss:.3f}")


def _at_loss(loss: float, runs: list[FinishedRun]) -> tuple[FinishedRun, FinishedRun]:
    """The baseline where it first reaches `loss`, at the earliest and at the latest place.

    Later crossings are more expensive and do not count.
    """

    def read_off(runs: list[FinishedRun], place: Callable[[Stretch, float], float]) -> FinishedRun:
        index = _first_at(loss, runs)
        after = runs[index]
        return (
            after if after.eval_loss == loss else _between(runs[index - 1], after, place(_stretch(runs, index), loss))
        )

    return read_off(_telling(runs), Stretch.earliest), read_off(_best_so_far(runs), Stretch.latest)


def _first_at(loss: float, runs: Sequence[FinishedRun]) -> int:
    return next(index for index, run in enumerate(runs) if run.eval_loss <= loss)


def _stretch(runs: Sequence[FinishedRun], index: int) -> Stretch:
    return stretch([(run.flops, run.eval_loss) for run in runs], index)


def _between(before: FinishedRun, after: FinishedRun, place: float) -> FinishedRun:
    """Each measure is linear in its logarithm; 0 where one of the two is not known."""

    def measure(first: float, second: float) -> float:
        return first * (second / first) ** place if first > 0 and second > 0 else 0.0

    loss = before.eval_loss + place * (after.eval_loss - before.eval_loss)
    seconds, duration = measure(before.seconds, after.seconds), measure(before.duration, after.duration)
    return FinishedRun(loss, measure(before.flops, after.flops), seconds, duration)


def _figure(staged: FinishedRun, earliest: FinishedRun, latest: FinishedRun) -> Savings:
    """earliest, latest: the baseline where it may first have had the staged run's loss."""
    return Savings(
        at_eval_loss=staged.eval_loss,
        compute_saved=saved(staged.flops, earliest.flops),
        speedup=speedup(staged.flops, earliest.flops),
        time_saved=_saved_if_known(staged.seconds, earliest.seconds),
        flops_staged=staged.flops,
        flops_baseline=earliest.flops,
        equal_loss_reached=True,
        verdict=_verdict(staged, earliest.flops, latest.flops),
        duration_saved=_saved_if_known(staged.duration, earliest.duration),
        compute_saved_at_most=saved(staged.flops, latest.flops),
        flops_baseline_at_most=latest.flops,
    )


def _saved_if_known(staged: float, baseline: float) -> float | None:
    return saved(staged, baseline) if staged > 0 and baseline > 0 else None


def _verdict(staged: FinishedRun, earliest: float, latest: float) -> str:
    least, most = saved(staged.flops, earliest), saved(staged.flops, latest)
    place = f"at equal held-out loss {staged.eval_loss:.3f}: {format_flops(staged.flops)} against"
    if least < 0 < most:
        return (
            f"no saving shown: between {format_share(-least)} more and {format_share(most)} less compute {place} "
            f"{format_flops(earliest)} to {format_flops(latest)} FLOPs; baseline budgets nearer to it would tell"
        )
    faster = f"(a {format_share(speedup(staged.flops, earliest))} speed-up)"
    outcome = f"saved {format_share(least)} of the compute"
    if least < 0:
        outcome = f"saved nothing: cost {format_share(-least)} more compute"
    return f"{outcome} {faster} {place} {format_flops(earliest)} FLOPs{room(least, most)}"


def room(least: float, most: float) -> str:
    """The other bound of a share saved, for the verdict; "" where both are equal in print."""
    if format_share(least) == format_share(most):
        return ""
    to = f"up to {format_share(most)}" if most > 0 else f"down to {format_share(-most)} more"
    return f"; between its budgets the baseline's curve leaves room {to}"


# --- at equal FLOPs ---------------------------------------------------------------------------


def _with_equal_flops(savings: Savings, staged: FinishedRun, runs: list[FinishedRun]) -> Savings:
    refusal = _outside_flops(staged.flops, runs) or _gap_at_flops(staged.flops, runs)
    if refusal:
        return replace(savings, at_equal_flops=f"no comparison at equal FLOPs: {refusal}")
    lowest, highest = _losses_at(staged.flops, runs)
    return replace(
        savings,
        loss_difference_at_equal_flops=lowest - staged.eval_loss,
        loss_difference_at_equal_flops_at_most=highest - staged.eval_loss,
        at_equal_flops=_flops_words(staged, lowest, highest),
    )


def _outside_flops(flops: float, runs: list[FinishedRun]) -> str | None:
    """Why no two neighbours enclose `flops`; None where they do."""
    if runs[0].flops <= flops <= runs[-1].flops:
        return None
    budgets = " to ".join(dict.fromkeys(format_flops(run.flops) for run in (runs[0], runs[-1])))
    missing = "smaller" if flops < runs[0].flops else "larger"
    return (
        f"the staged run's {format_flops(flops)} are outside of the baseline's budgets ({budgets}); add {missing} ones"
    )


def _gap_at_flops(flops: float, runs: list[FinishedRun]) -> str | None:
    """Why the baseline is not read off at `flops`; None where it is."""
    index = next(index for index, run in enumerate(runs) if run.flops >= flops)
    return None if runs[index].flops == flops else _gap(runs, index, f"the staged run's {format_flops(flops)}")


def _gap(runs: Sequence[FinishedRun], index: int, around: str) -> str | None:
    """Why nothing is read off between run `index` and the one before it; None where they are close enough."""
    before, after = runs[index - 1].flops, runs[index].flops
    why = too_far_apart(before, after)
    budgets = f"{format_flops(before)} and {format_flops(after)} FLOPs"
    return why and f"the baseline's budgets around {around}, {budgets}, are {why}; add one there"


def _losses_at(flops: float, runs: list[FinishedRun]) -> tuple[float, float]:
    """The lowest and the highest of the best losses that the baseline may reach with `flops`: the inverse of
    `_at_loss`."""

    def read_off(runs: list[FinishedRun], loss_at: Callable[[Stretch, float], float]) -> float:
        index = next(index for index, run in enumerate(runs) if run.flops >= flops)
        before, after = runs[index - 1], runs[index]
        if after.flops == flops or after.eval_loss == before.eval_loss:
            return after.eval_loss
        place = math.log(flops / before.flops) / math.log(after.flops / before.flops)
        return loss_at(_stretch(runs, index), place)

    return read_off(_telling(runs), Stretch.lowest), read_off(_best_so_far(runs), Stretch.highest)


def _flops_words(staged: FinishedRun, lowest: float, highest: float) -> str:
    least, most = lowest - staged.eval_loss, highest - staged.eval_loss
    where, own = f"at equal FLOPs ({format_flops(staged.flops)}) the staged run's held-out loss is", staged.eval_loss
    if f"{least:z.3f}" == f"{most:z.3f}":
        return f"{where} {format_difference(least)} the baseline's: {own:.3f} against {lowest:.3f}"
    if least < 0 < most:
        compared = f"between {-least:.3f} higher and {most:.3f} lower than"
        return f"{where} {compared} the baseline's: {own:.3f} against {lowest:.3f} to {highest:.3f}"
    more = format_difference(most)
    return (
        f"{where} {format_difference(least)} the baseline's: {own:.3f} against {lowest:.3f}; between its budgets "
        f"the baseline's curve leaves room for {more.removesuffix(' than').removesuffix(' as')}"
    )
