"""The savings over several seeds, by hand. Every seed's baselines: 1e12 FLOPs reach 1.6, 4e12 1.5 and 16e12 1.4."""

from __future__ import annotations

import math

import pytest

from raystage.results.savings import FinishedRun, compare
from raystage.results.seeds import Interval, SeedPair, interval, over_seeds, student_t

BASELINES = (
    FinishedRun(1.6, 1e12, 100.0, 1e6),
    FinishedRun(1.5, 4e12, 400.0, 4e6),
    FinishedRun(1.4, 16e12, 1600.0, 16e6),
)


def pair(seed: int, saved: float, eval_loss: float = 1.5) -> SeedPair:
    """A seed whose staged run saves a share of the 4e12 FLOPs that 1.5 takes."""
    return SeedPair(seed, FinishedRun(eval_loss, 4e12 * (1 - saved), 300.0, 5e6), BASELINES)


# --- intervals ----------------------------------------------------------------------------------


def test_three_values_by_hand():
    """Mean 0.2, standard deviation 0.1, t = 4.303: 0.2 -+ 4.303 * 0.1 / sqrt(3)."""
    found = interval([0.1, 0.2, 0.3])
    assert (found.mean, found.num_seeds) == (pytest.approx(0.2), 3)
    assert (found.low, found.high) == pytest.approx((0.2 - 0.24843, 0.2 + 0.24843), abs=1e-5)
    assert found.spans_zero


def test_one_value_has_no_interval():
    assert interval([0.3]) == Interval(0.3, None, None, 1)
    assert not interval([0.3]).spans_zero


def test_equal_values_leave_no_room():
    assert interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.25, 0.25, 3)


@pytest.mark.parametrize("degrees", [*range(1, 41), 60, 100, 300, 999])
def test_97_5_percent_of_students_t_lie_below_its_quantile(degrees):
    """Half of all values lie below 0; from there the density is added up in slices, by Simpson's rule."""
    top, slices = student_t(degrees), 4000
    step = top / slices
    values = [density(number * step, degrees) for number in range(slices + 1)]
    area = step / 3 * (values[0] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]) + values[-1])
    assert 0.5 + area == pytest.approx(0.975, abs=6e-5)  # the quantiles are rounded to three places


def density(t: float, degrees: int) -> float:
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    return math.exp(scale - (degrees + 1) / 2 * math.log1p(t * t / degrees))


# --- seeds that pair ----------------------------------------------------------------------------


def test_a_saving_that_every_seed_shows_is_given_with_its_interval():
    """Mean 0.3, standard deviation 0.02, t = 4.303: -+ 0.0497."""
    found = over_seeds([pair(0, 0.28), pair(1, 0.30), pair(2, 0.32)])
    assert found.compute_saved.mean == pytest.approx(0.3)
    assert (found.compute_saved.low, found.compute_saved.high) == pytest.approx((0.2503, 0.3497), abs=1e-4)
    assert found.seeds == (0, 1, 2)
    assert found.left_out == ()
    assert found.seeds_needed is None
    assert found.verdict == (
        "saved 30.0 % of the compute at equal held-out loss, mean of 3 seeds, 95 % interval 25.0 % to 35.0 %"
    )


def test_time_tokens_and_the_loss_at_equal_flops_have_intervals_too():
    found = over_seeds([pair(0, 0.5), pair(1, 0.5)])
    assert found.time_saved == Interval(0.25, 0.25, 0.25, 2)
    assert found.duration_saved == Interval(-0.25, -0.25, -0.25, 2)
    assert found.loss_difference_at_equal_flops.mean == pytest.approx(0.05)  # 2e12 FLOPs reach 1.55


def test_an_interval_that_spans_zero_is_refused_and_it_says_what_it_would_take():
    """Mean 0.1, standard deviation 0.1. t * 0.1 / sqrt(n) is below 0.1 from t < sqrt(n) on: 2.447 < sqrt(7), where
    2.571 > sqrt(6)."""
    found = over_seeds([pair(0, 0.0), pair(1, 0.1), pair(2, 0.2)])
    assert found.compute_saved.spans_zero
    assert found.seeds_needed == 7
    assert found.verdict == (
        "no saving shown: the interval spans zero (3 seeds, 95 % interval -14.8 % to 34.8 %); "
        "with this mean and spread it would take 7 seeds to tell"
    )


def test_a_mean_of_nothing_would_take_more_seeds_than_anyone_has():
    found = over_seeds([pair(0, -0.25), pair(1, 0.25)])
    assert found.seeds_needed is None
    assert found.verdict.endswith("with this spread more than 1000 seeds would not tell")


def test_a_run_that_costs_more_at_every_seed_is_reported_so():
    found = over_seeds([pair(0, -0.28), pair(1, -0.30), pair(2, -0.32)])
    assert found.verdict.startswith("saved nothing: cost 30.0 % more compute at equal held-out loss, mean of 3 seeds")


def test_the_order_in_which_seeds_are_given_does_not_matter():
    pairs = [pair(2, 0.32), pair(0, 0.28), pair(1, 0.30)]
    assert over_seeds(pairs) == over_seeds(pairs[::-1])


def test_pairing_takes_out_what_a_seed_does_to_both_sides():
    """Seed 1 is harder for everyone by 0.1 nats; against its own baselines its saving is seed 0's."""
    harder = tuple(FinishedRun(run.eval_loss + 0.1, run.flops, run.seconds, run.duration) for run in BASELINES)
    second = SeedPair(1, FinishedRun(1.6, 3e12, 300.0, 5e6), harder)
    saved = over_seeds([pair(0, 0.25), second]).compute_saved
    assert (saved.mean, saved.high - saved.low) == (pytest.approx(0.25), pytest.approx(0, abs=1e-9))


# --- seeds that do not --------------------------------------------------------------------------


def test_one_seed_is_no_mean_and_says_so():
    found = over_seeds([pair(7, 0.25)])
    assert found.compute_saved == Interval(0.25, None, None, 1)
    assert found.verdict == f"{compare(pair(7, 0.25).staged, BASELINES).verdict}, of one seed"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (SeedPair(2, None, BASELINES), "no staged run"),
        (SeedPair(2, BASELINES[1], ()), "no baseline"),
        (SeedPair(2, None, ()), "no staged run and no baseline"),
    ],
)
def test_a_seed_with_one_side_missing_is_left_out_and_named(missing, words):
    found = over_seeds([pair(0, 0.3), pair(1, 0.3), missing])
    assert found.seeds == (0, 1)
    assert found.compute_saved.num_seeds == 2
    assert found.left_out == (f"seed 2 is left out, which has {words}",)
    assert found.verdict.endswith(f"; seed 2 is left out, which has {words}")


def test_without_any_pair_there_is_nothing_to_report():
    found = over_seeds([SeedPair(0, BASELINES[0], ()), SeedPair(1, None, BASELINES)])
    assert (found.seeds, found.compute_saved) == ((), None)
    assert found.verdict.startswith("no saving to report: no seed has both a staged run and a baseline; seed 0 is left")


def test_a_seed_that_never_reached_the_loss_is_not_averaged_away():
    """Its saving is not known, only that it is bad: the mean of the others would flatter the staged run."""
    found = over_seeds([pair(0, 0.3), pair(1, 0.3), pair(2, 0.3, eval_loss=1.7)])
    assert (found.compute_saved, found.time_saved, found.duration_saved) == (None, None, None)
    assert found.verdict.startswith(
        "no saving to report: seed 2 has no figure, and a mean of the others would favour one side "
        "(seed 2: the baseline's loss was never reached"
    )


def test_at_equal_flops_such_a_seed_counts_like_any_other():
    found = over_seeds([pair(0, 0.0, 1.71), pair(1, 0.0, 1.70), pair(2, 0.0, 1.69)])
    assert found.loss_difference_at_equal_flops.mean == pytest.approx(-0.2)
    assert found.verdict.endswith(
        "at equal FLOPs the staged run's held-out loss is 0.200 higher than the baseline's "
        "(mean of 3 seeds, 95 % interval -0.225 to -0.175)"
    )
    assert "seeds 0, 1, 2 have no figure" in found.verdict


def test_at_equal_flops_an_interval_that_spans_zero_shows_no_difference():
    found = over_seeds([pair(0, 0.0, 1.39), pair(1, 0.0, 1.61)])  # one is better than every baseline, one worse
    assert "at equal FLOPs no difference of the losses is shown (2 seeds, 95 % interval" in found.verdict


def test_a_diverged_seed_has_no_figure_at_all():
    found = over_seeds([pair(0, 0.3), pair(1, 0.3, eval_loss=math.nan)])
    assert (found.compute_saved, found.loss_difference_at_equal_flops) == (None, None)
    assert "seed 1: the staged run's held-out loss is nan" in found.verdict
