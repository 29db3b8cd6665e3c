"""The savings arithmetic, worked by hand. Baselines: 1e12 FLOPs reach 1.6, 4e12 reach 1.5, 16e12 reach 1.4."""

from __future__ import annotations

import math

import pytest

from raystage.results.savings import FinishedRun, compare, no_figure, saved, speedup
from raystage.units import format_flops, format_share

BASELINES = (FinishedRun(1.6, 1e12, 100.0), FinishedRun(1.5, 4e12, 400.0), FinishedRun(1.4, 16e12, 1600.0))


def staged(eval_loss: float, flops: float = 1e12, seconds: float = 100.0) -> FinishedRun:
    return FinishedRun(eval_loss, flops, seconds)


def figures(savings) -> tuple:
    return savings.compute_saved, savings.speedup, savings.time_saved, savings.flops_baseline


# --- the two figures --------------------------------------------------------------------------


def test_a_speedup_of_54_6_percent_is_35_3_percent_saved():
    assert speedup(1.0, 1.546) == pytest.approx(0.546)
    assert saved(1.0, 1.546) == pytest.approx(0.353, abs=5e-4)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.353, 0.5, 0.9, -0.25])
def test_one_figure_follows_from_the_other(share):
    baseline = 1 / (1 - share)
    assert saved(1.0, baseline) == pytest.approx(share)
    assert speedup(1.0, baseline) == pytest.approx(share / (1 - share))


def test_half_the_compute_is_twice_as_fast():
    assert (saved(5e11, 1e12), speedup(5e11, 1e12)) == (0.5, 1.0)


# --- where the baseline reaches the loss ------------------------------------------------------


def test_halfway_between_two_losses_lies_the_geometric_mean_of_their_flops():
    savings = compare(staged(1.55, 1e12, 150.0), BASELINES)
    assert savings.flops_baseline == pytest.approx(2e12)  # between 1e12 and 4e12
    assert savings.compute_saved == pytest.approx(0.5)
    assert savings.speedup == pytest.approx(1.0)
    assert savings.time_saved == pytest.approx(1 - 150 / 200)  # between 100 and 400 seconds
    assert savings.at_eval_loss == 1.55
    assert savings.flops_staged == 1e12
    assert savings.equal_loss_reached


def test_a_quarter_of_the_way_in_loss_is_a_quarter_of_the_way_in_log_flops():
    assert compare(staged(1.475), BASELINES).flops_baseline == pytest.approx(4e12 * 4**0.25)


def test_only_the_neighbours_count():
    """For how much the curve bends between two budgets those next to them count, too; no other."""
    further = (*BASELINES, FinishedRun(1.2, 99e12, 1.0))
    assert compare(staged(1.55), further).flops_baseline == compare(staged(1.55), BASELINES).flops_baseline


@pytest.mark.parametrize("run", BASELINES)
def test_exactly_a_baseline_runs_loss_takes_that_runs_flops(run):
    savings = compare(staged(run.eval_loss, 5e11, 50.0), BASELINES)
    assert figures(savings) == (1 - 5e11 / run.flops, run.flops / 5e11 - 1, 1 - 50 / run.seconds, run.flops)


def test_the_order_in_which_baselines_are_given_does_not_matter():
    assert compare(staged(1.45), BASELINES[::-1]) == compare(staged(1.45), BASELINES)


def test_the_same_run_on_both_sides_saves_nothing():
    savings = compare(BASELINES[1], BASELINES)
    assert figures(savings) == (0.0, 0.0, 0.0, 4e12)
    assert savings.verdict.startswith("saved 0.0 % of the compute (a 0.0 % speed-up)")


def test_the_verdict_names_both_figures():
    baselines = (FinishedRun(1.55, 5e12, 1.0), FinishedRun(1.49, 6.9e12, 1.0))
    assert compare(FinishedRun(1.49, 5.037e12, 1.0), baselines).verdict == (
        "saved 27.0 % of the compute (a 37.0 % speed-up) at equal held-out loss 1.490: 5.04e12 against 6.9e12 FLOPs"
    )


# --- a staged run that cost more --------------------------------------------------------------


def test_a_dearer_staged_run_is_reported_as_negative():
    savings = compare(staged(1.5, 5e12, 800.0), BASELINES)
    assert figures(savings) == pytest.approx((-0.25, -0.2, -1.0, 4e12))
    assert savings.equal_loss_reached
    assert savings.verdict == (
        "saved nothing: cost 25.0 % more compute (a -20.0 % speed-up) at equal held-out loss 1.500: "
        "5e12 against 4e12 FLOPs"
    )


def test_compute_and_time_may_disagree():
    savings = compare(staged(1.5, 2e12, 500.0), BASELINES)
    assert (savings.compute_saved, savings.time_saved) == pytest.approx((0.5, -0.25))


# --- no figure --------------------------------------------------------------------------------


def test_a_staged_run_worse_than_every_baseline_has_no_figure():
    savings = compare(staged(1.7), BASELINES)
    assert figures(savings) == (None, None, None, None)
    assert not savings.equal_loss_reached
    assert (savings.at_eval_loss, savings.flops_staged) == (1.7, 1e12)
    assert "never reached" in savings.verdict
    assert "worse than every baseline run (held-out loss 1.700 against 1.400 to 1.600)" in savings.verdict


def test_a_staged_run_better_than_every_baseline_is_not_extrapolated():
    savings = compare(staged(1.3), BASELINES)
    assert figures(savings) == (None, None, None, None)
    assert not savings.equal_loss_reached
    assert "the baseline never reached the staged run's held-out loss 1.300" in savings.verdict
    assert "1.6e13 FLOPs); add larger budgets" in savings.verdict


@pytest.mark.parametrize(("loss", "found"), [(1.4, False), (1.5, True), (1.6, False)])
def test_one_baseline_run_gives_a_figure_only_at_its_very_loss(loss, found):
    savings = compare(staged(loss), BASELINES[1:2])
    assert savings.equal_loss_reached is found
    assert (savings.compute_saved is not None) is found


def test_without_baseline_runs_there_is_nothing_to_compare_with():
    savings = compare(staged(1.5), ())
    assert figures(savings) == (None, None, None, None)
    assert savings.verdict == "no saving to report: there is no baseline to compare with"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_staged_run_has_no_figure(loss):
    savings = compare(staged(loss), BASELINES)
    assert figures(savings) == (None, None, None, None)
    assert savings.at_eval_loss is None
    assert f"the staged run's held-out loss is {loss}" in savings.verdict


def test_a_diverged_baseline_run_is_not_left_out_in_silence():
    savings = compare(staged(1.55), (*BASELINES, FinishedRun(math.nan, 8e12, 1.0)))
    assert figures(savings) == (None, None, None, None)
    assert "the baseline run of 8e12 FLOPs is nan" in savings.verdict


def test_an_unfinished_run_has_no_fields_but_its_verdict():
    savings = no_figure("not yet")
    assert figures(savings) == (None, None, None, None)
    assert (savings.at_eval_loss, savings.flops_staged, savings.verdict) == (None, None, "not yet")


@pytest.mark.parametrize("flops", [0, -1.0, math.nan])
def test_a_run_without_compute_is_refused(flops):
    with pytest.raises(ValueError, match="expected more than 0"):
        FinishedRun(1.5, flops, 1.0)


@pytest.mark.parametrize(("own", "others"), [(0.0, 100.0), (100.0, 0.0)])
def test_without_measured_seconds_only_the_time_has_no_figure(own, others):
    baselines = [FinishedRun(run.eval_loss, run.flops, others) for run in BASELINES]
    savings = compare(staged(1.55, 1e12, own), baselines)
    assert savings.compute_saved == pytest.approx(0.5)
    assert savings.time_saved is None


# --- baselines that do not improve with every budget ------------------------------------------

DENTED = (
    FinishedRun(1.6, 1e12, 1.0),
    FinishedRun(1.4, 4e12, 1.0),
    FinishedRun(1.5, 16e12, 1.0),
    FinishedRun(1.3, 64e12, 1.0),
)


@pytest.mark.parametrize(
    ("loss", "earliest", "latest"),
    [(1.5, 1e12, 2e12), (1.45, 1e12, 4e12 / 4**0.25), (1.4, 4e12, 4e12), (1.35, 4e12 * 16**0.125, 32e12)],
)
def test_the_cheapest_budget_that_reaches_the_loss_counts(loss, earliest, latest):
    """1.5 is reached again at 16e12 and 1.45 a second and third time: the first favours the baseline. The run
    of 16e12 went wrong: it does not say that 1.35 takes more, so the lines through the others bound it from below.
    On a straight line, one may stop at 4e12 and have 1.4 with 16e12 FLOPs."""
    savings = compare(staged(loss), DENTED)
    assert savings.flops_baseline == pytest.approx(earliest)
    assert savings.flops_baseline_at_most == pytest.approx(latest)


def test_no_figure_where_the_cheapest_run_already_did_better():
    """1.55 is crossed on the way up, after 1e12 had reached 1.5: how little would have done was not measured."""
    rising = (FinishedRun(1.5, 1e12, 1.0), FinishedRun(1.6, 2e12, 1.0), FinishedRun(1.4, 4e12, 1.0))
    savings = compare(staged(1.55), rising)
    assert figures(savings) == (None, None, None, None)
    assert not savings.equal_loss_reached
    assert "smallest budget (1e12 FLOPs) already reached 1.500" in savings.verdict


def test_of_runs_with_equal_budgets_the_best_counts():
    twice = (*BASELINES, FinishedRun(1.45, 4e12, 200.0))
    savings = compare(staged(1.45, 1e12, 100.0), twice)
    assert (savings.flops_baseline, savings.time_saved) == (4e12, 0.5)


def test_equal_losses_at_two_budgets_take_the_cheaper():
    flat = (FinishedRun(1.5, 1e12, 1.0), FinishedRun(1.5, 4e12, 1.0))
    assert compare(staged(1.5), flat).flops_baseline == 1e12


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "text"),
    [(5.05e12, "5.05e12"), (6.9e12, "6.9e12"), (1e18, "1e18"), (123456, "1.23e5"), (9.999e11, "1e12")],
)
def test_flops_are_written_with_three_figures(flops, text):
    assert format_flops(flops) == text


@pytest.mark.parametrize(("share", "text"), [(0.27, "27.0 %"), (-0.2, "-20.0 %"), (-1e-9, "0.0 %")])
def test_shares_are_written_as_percentages(share, text):
    assert format_share(share) == text
