"""What growing saved: the staged run against its final model trained from scratch, at equal held-out loss.

    compute_saved = 1 - C_staged / C_baseline          speedup = C_baseline / C_staged - 1

C_baseline is the compute at which the baseline reaches the staged run's final loss. It is read off
between baseline runs that were each trained at a budget of their own and fully decayed, never off
the undecayed curve of one long run. Between two neighbours i and j the loss is taken as linear in
log FLOPs:

    log C = log C_i + (loss_i - loss) / (loss_i - loss_j) * (log C_j - log C_i)

and likewise in log seconds for the time and in log tokens for these. The other way round, at equal FLOPs:

    loss = loss_i - (log C - log C_i) / (log C_j - log C_i) * (loss_i - loss_j)

Nothing is extrapolated: outside of what was measured there is no figure, and the words beside it say why. Where there
is a choice, it goes against the staged run. What several seeds come to is in `seeds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class FinishedRun:
    """A run from nothing to the end of its decay.

    eval_loss in nats per token on held-out documents; flops, seconds (wall-clock) and training tokens over all its
    stages and growths, without evaluation. Of seconds and tokens 0 means: not known.
    """

    eval_loss: float
    flops: float
    seconds: float
    tokens: float = 0

    def __post_init__(self) -> None:
        if not self.flops > 0:
            raise ValueError(f"found a finished run of {self.flops} FLOPs; expected more than 0")


@dataclass(frozen=True)
class Savings:
    """A comparison at equal loss and at equal FLOPs. Shares, not percentages; None where there is no figure.

    flops_baseline: interpolated between baseline runs. equal_loss_reached: whether the staged run's
    final loss was met by the baseline within the budgets that were measured.
    loss_difference_at_equal_flops: the baseline's held-out loss less the staged run's, in nats per token, where the
    baseline has had the staged run's FLOPs; above 0 where the staged run is the better model. at_equal_flops: the same
    in words, or why it is None.
    """

    at_eval_loss: float | None
    compute_saved: float | None
    speedup: float | None
    time_saved: float | None
    flops_staged: float | None
    flops_baseline: float | None
    equal_loss_reached: bool
    verdict: str
    tokens_saved: float | None = None
    loss_difference_at_equal_flops: float | None = None
    at_equal_flops: str = ""


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
    runs = _best_by_flops(baselines)
    outside = _outside(staged.eval_loss, runs)
    if outside:
        savings = no_figure(f"no saving to report: {outside}", staged)
    else:
        savings = _figure(staged, _at_loss(staged.eval_loss, runs))
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


def format_flops(flops: float) -> str:
    """Three figures and a bare exponent: 5.05e12, 6.9e12."""
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_share(share: float) -> str:
    """0.2703 -> '27.0 %'."""
    return f"{100 * share:z.1f} %"


def _diverged(staged: FinishedRun, baselines: Sequence[FinishedRun]) -> str | None:
    """A run without a loss has no place on the curve, and leaving it out would flatter one side."""
    if not math.isfinite(staged.eval_loss):
        return f"the staged run's held-out loss is {staged.eval_loss}"
    for run in baselines:
        if not math.isfinite(run.eval_loss):
            return f"the held-out loss of the baseline run of {format_flops(run.flops)} FLOPs is {run.eval_loss}"
    return None


def _best_by_flops(baselines: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Ascending in FLOPs; of runs with equal FLOPs the best counts."""
    best: dict[float, FinishedRun] = {}
    for run in sorted(baselines, key=lambda run: (run.flops, run.eval_loss, run.seconds)):
        best.setdefault(run.flops, run)
    return list(best.values())


def _outside(loss: float, runs: list[FinishedRun]) -> str | None:
    """Why no two neighbours enclose `loss`, if so."""
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
        # A dearer run that did worse encloses the loss, but the cheapest one had reached it before.
        return (
            f"the baseline's smallest budget ({format_flops(runs[0].flops)} FLOPs) already reached "
            f"{runs[0].eval_loss:.3f}, better than the staged run's held-out loss {loss:.3f}; add smaller budgets"
        )
    return None


def _range(low: float, high: float) -> str:
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def _at_loss(loss: float, runs: list[FinishedRun]) -> FinishedRun:
    """The baseline where it first reaches `loss`; later crossings are dearer and do not count."""
    index = next(index for index, run in enumerate(runs) if run.eval_loss <= loss)
    after = runs[index]
    if after.eval_loss == loss:
        return after
    before = runs[index - 1]
    share = (before.eval_loss - loss) / (before.eval_loss - after.eval_loss)
    return FinishedRun(
        eval_loss=loss,
        flops=_between(before.flops, after.flops, share),
        seconds=_between(before.seconds, after.seconds, share),
        tokens=_between(before.tokens, after.tokens, share),
    )


def _between(first: float, second: float, share: float) -> float:
    """Linear in the logarithm; 0 where one of them is not known."""
    return first * (second / first) ** share if first > 0 and second > 0 else 0.0


def _figure(staged: FinishedRun, baseline: FinishedRun) -> Savings:
    """Both at the same loss."""
    return Savings(
        at_eval_loss=staged.eval_loss,
        compute_saved=saved(staged.flops, baseline.flops),
        speedup=speedup(staged.flops, baseline.flops),
        time_saved=_saved_if_known(staged.seconds, baseline.seconds),
        flops_staged=staged.flops,
        flops_baseline=baseline.flops,
        equal_loss_reached=True,
        verdict=_verdict(staged, baseline),
        tokens_saved=_saved_if_known(staged.tokens, baseline.tokens),
    )


def _saved_if_known(staged: float, baseline: float) -> float | None:
    return saved(staged, baseline) if staged > 0 and baseline > 0 else None


def _verdict(staged: FinishedRun, baseline: FinishedRun) -> str:
    share, faster = saved(staged.flops, baseline.flops), speedup(staged.flops, baseline.flops)
    if share < 0:
        outcome = f"saved nothing: cost {format_share(-share)} more compute (a {format_share(faster)} speed-up)"
    else:
        outcome = f"saved {format_share(share)} of the compute (a {format_share(faster)} speed-up)"
    return (
        f"{outcome} at equal held-out loss {staged.eval_loss:.3f}: "
        f"{format_flops(staged.flops)} against {format_flops(baseline.flops)} FLOPs"
    )


# --- at equal FLOPs ---------------------------------------------------------------------------


def _with_equal_flops(savings: Savings, staged: FinishedRun, runs: list[FinishedRun]) -> Savings:
    outside = _outside_flops(staged.flops, runs)
    if outside:
        return replace(savings, at_equal_flops=f"no comparison at equal FLOPs: {outside}")
    baseline_loss = _loss_at(staged.flops, runs)
    difference = baseline_loss - staged.eval_loss
    return replace(
        savings, loss_difference_at_equal_flops=difference, at_equal_flops=_flops_words(staged, baseline_loss)
    )


def _outside_flops(flops: float, runs: list[FinishedRun]) -> str | None:
    """Why no two neighbours enclose `flops`, if so."""
    if runs[0].flops <= flops <= runs[-1].flops:
        return None
    budgets = " to ".join(dict.fromkeys(format_flops(run.flops) for run in (runs[0], runs[-1])))
    missing = "smaller" if flops < runs[0].flops else "larger"
    return (
        f"the staged run's {format_flops(flops)} are outside of the baseline's budgets ({budgets}); add {missing} ones"
    )


def _loss_at(flops: float, runs: list[FinishedRun]) -> float:
    """The best that the baseline reaches with `flops` or fewer, which makes it the inverse of `_at_loss`."""
    index = next(index for index, run in enumerate(runs) if run.flops >= flops)
    after = runs[index]
    if after.flops == flops:
        return min(run.eval_loss for run in runs[: index + 1])
    before = runs[index - 1]
    share = math.log(flops / before.flops) / math.log(after.flops / before.flops)
    between = before.eval_loss + share * (after.eval_loss - before.eval_loss)
    return min(between, *(run.eval_loss for run in runs[:index]))


def _flops_words(staged: FinishedRun, baseline_loss: float) -> str:
    compared = format_difference(baseline_loss - staged.eval_loss)
    return (
        f"at equal FLOPs ({format_flops(staged.flops)}) the staged run's held-out loss is {compared} the baseline's: "
        f"{staged.eval_loss:.3f} against {baseline_loss:.3f}"
    )


def format_difference(difference: float) -> str:
    """Of two losses, baseline less staged run: 0.0123 -> '0.012 lower than'."""
    if f"{difference:z.3f}" == "0.000":
        return "the same as"
    return f"{abs(difference):.3f} {'lower' if difference > 0 else 'higher'} than"
