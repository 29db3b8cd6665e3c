"""Tokens saved and the loss at equal FLOPs, by hand. Baselines: 1e12 FLOPs reach 1.6, 4e12 1.5 and 16e12 1.4."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raystage.results.savings import FinishedRun, compare

BASELINES = (
    FinishedRun(1.6, 1e12, 100.0, 1e6),
    FinishedRun(1.5, 4e12, 400.0, 4e6),
    FinishedRun(1.4, 16e12, 1600.0, 16e6),
)


def staged(eval_loss: float, flops: float, tokens: float = 1e6) -> FinishedRun:
    return FinishedRun(eval_loss, flops, 100.0, tokens)


def difference(eval_loss: float, flops: float, baselines=BASELINES) -> float | None:
    return compare(staged(eval_loss, flops), baselines).loss_difference_at_equal_flops


# --- tokens -------------------------------------------------------------------------------------


def test_tokens_are_read_off_where_the_flops_are():
    """1.55 lies between 1e6 and 4e6 tokens, at 2e6."""
    assert compare(staged(1.55, 1e12, 1.5e6), BASELINES).duration_saved == pytest.approx(0.25)


def test_compute_may_be_saved_and_tokens_not():
    """As small models' tokens are cheap: half the compute, and as many tokens again."""
    savings = compare(staged(1.5, 2e12, 8e6), BASELINES)
    assert (savings.compute_saved, savings.duration_saved) == pytest.approx((0.5, -1.0))


@pytest.mark.parametrize(("own", "factor"), [(0, 1), (1e6, 0)])
def test_without_tokens_on_both_sides_only_they_have_no_figure(own, factor):
    baselines = [replace(run, duration=factor * run.duration) for run in BASELINES]
    savings = compare(staged(1.55, 1e12, own), baselines)
    assert savings.duration_saved is None
    assert savings.compute_saved == pytest.approx(0.5)


# --- equal FLOPs --------------------------------------------------------------------------------


def test_halfway_in_log_flops_lies_the_mean_of_two_losses():
    savings = compare(staged(1.50, 2e12), BASELINES)  # 1e12 * 4e12 = 2e12 squared
    assert savings.loss_difference_at_equal_flops == pytest.approx(0.05)
    assert savings.at_equal_flops == (
        "at equal FLOPs (2e12) the staged run's held-out loss is 0.050 lower than the baseline's: 1.500 against 1.550"
    )


@pytest.mark.parametrize("run", BASELINES)
def test_at_a_baselines_very_flops_it_is_that_runs_loss(run):
    assert difference(1.45, run.flops) == pytest.approx(run.eval_loss - 1.45)


def test_the_same_run_on_both_sides_does_not_differ():
    savings = compare(BASELINES[1], BASELINES)
    assert savings.loss_difference_at_equal_flops == 0
    assert "held-out loss is the same as the baseline's: 1.500 against 1.500" in savings.at_equal_flops


def test_equal_loss_and_equal_flops_agree_on_who_is_ahead():
    """On the baseline's curve both figures are zero, above it both negative, below it both positive."""
    for loss, sign in ((1.55, 0), (1.56, -1), (1.54, 1)):
        savings = compare(staged(loss, 2e12), BASELINES)
        found = savings.compute_saved, savings.loss_difference_at_equal_flops
        assert [round(one, 9) > 0 for one in found] == [sign > 0] * 2
        assert [round(one, 9) < 0 for one in found] == [sign < 0] * 2


def test_a_loss_that_was_never_reached_has_a_figure_at_equal_flops():
    savings = compare(staged(1.7, 4e12), BASELINES)
    assert savings.compute_saved is None
    assert savings.loss_difference_at_equal_flops == pytest.approx(-0.2)
    assert "0.200 higher than the baseline's: 1.700 against 1.500" in savings.at_equal_flops


@pytest.mark.parametrize(("flops", "budgets"), [(0.5e12, "smaller"), (17e12, "larger")])
def test_outside_of_the_budgets_there_is_no_figure_and_it_is_said_why(flops, budgets):
    savings = compare(staged(1.55, flops), BASELINES)
    assert savings.loss_difference_at_equal_flops is None
    assert "outside of the baseline's budgets (1e12 to 1.6e13)" in savings.at_equal_flops
    assert savings.at_equal_flops.endswith(f"add {budgets} ones")
    assert savings.equal_loss_reached


def test_of_a_dented_curve_the_best_so_far_counts():
    """16e12 did worse than 4e12: nobody would have spent more than 4e12. It might have done better, had it not gone
    wrong: the figure is that one, by the line from 4e12 to 64e12 or that from 1e12 to 4e12."""
    dented = (BASELINES[0], FinishedRun(1.4, 4e12, 1.0), FinishedRun(1.5, 16e12, 1.0), FinishedRun(1.3, 64e12, 1.0))
    for flops, least in ((8e12, -0.1), (16e12, -0.1)):
        found = compare(staged(1.4, flops), dented)
        assert found.loss_difference_at_equal_flops == pytest.approx(least)
        assert found.loss_difference_at_equal_flops_at_most == 0
    between = compare(staged(1.35, 32e12), dented)  # between 1.4, had for 4e12 already, and 1.3
    assert between.loss_difference_at_equal_flops == pytest.approx(-0.05)
    assert between.loss_difference_at_equal_flops_at_most == pytest.approx(0.0)


def test_crossing_curves_are_ahead_early_and_behind_late():
    """A staged run of little compute beats the baseline, one of much does not: each is compared at its own FLOPs."""
    assert difference(1.53, 2e12) == pytest.approx(0.02)
    assert difference(1.47, 8e12) == pytest.approx(-0.02)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_has_no_figure_at_equal_flops_either(loss):
    assert difference(loss, 4e12) is None
    assert difference(1.5, 4e12, (*BASELINES, FinishedRun(loss, 2e12, 1.0))) is None
