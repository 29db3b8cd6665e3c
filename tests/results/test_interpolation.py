"""What lies between two budgets, against curves of which all is known: the figures never flatter the staged run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from raystage.results.interpolation import MOST_APART, Stretch
from raystage.results.savings import FinishedRun, compare

Curve = Callable[[float], float]


def power_laws(generator: random.Random) -> Curve:
    """An offset and one to three power laws of the compute."""
    offset = generator.uniform(0, 2)
    parts = [(generator.uniform(0.2, 4), generator.uniform(0.03, 0.8)) for _ in range(generator.randint(1, 3))]
    return lambda flops: offset + sum(factor * flops**-power for factor, power in parts)


def flattening(generator: random.Random) -> Curve:
    """Convex without being a power law: straight pieces over log FLOPs, each flatter than the one before."""
    places = sorted(generator.uniform(0, 6) for _ in range(4))
    slopes = sorted((generator.uniform(0, 0.5) for _ in range(5)), reverse=True)

    def loss(flops: float) -> float:
        place, found, last = math.log(flops), 4.0, 0.0
        for border, slope in zip((*places, math.inf), slopes, strict=True):
            found -= slope * max(0.0, min(place, border) - last)
            last = max(last, border)
        return found

    return loss


SEEDS = range(300)
of_both_families = pytest.mark.parametrize("family", [power_laws, flattening])


def measured(family: Callable, seed: int) -> tuple[random.Random, Curve, list[FinishedRun]]:
    """A curve and two to six baselines on it, each at most `MOST_APART` times as dear as the one before."""
    generator = random.Random(f"{family.__name__}/{seed}")
    curve, flops = family(generator), math.exp(generator.uniform(0, 1))
    runs = []
    for _ in range(generator.randint(2, 6)):
        runs.append(FinishedRun(curve(flops), flops, 0))
        flops *= generator.uniform(1.1, MOST_APART)
    return generator, curve, runs


@of_both_families
def test_at_equal_loss_the_truth_lies_between_the_two_figures(family: Callable) -> None:
    for seed in SEEDS:
        generator, curve, runs = measured(family, seed)
        truth = runs[0].flops * (runs[-1].flops / runs[0].flops) ** generator.uniform(0, 1)
        staged = FinishedRun(curve(truth), generator.uniform(0.2, 2) * truth, 0)
        found = compare(staged, runs)
        really = 1 - staged.flops / next(run.flops for run in [*runs, FinishedRun(0, truth, 0)]
                                         if run.eval_loss <= staged.eval_loss or run.flops == truth)  # fmt: skip
        if found.compute_saved is None:  # on a flat piece the cheapest run is there already
            assert staged.eval_loss >= runs[0].eval_loss, seed
            continue
        assert found.compute_saved <= really + 1e-9, seed
        assert found.compute_saved <= found.compute_saved_at_most + 1e-9, seed
        assert found.compute_saved_at_most >= min(really, 1 - staged.flops / truth) - 1e-6, seed


@of_both_families
def test_at_equal_flops_the_truth_lies_between_the_two_figures(family: Callable) -> None:
    for seed in SEEDS:
        generator, curve, runs = measured(family, seed)
        flops = runs[0].flops * (runs[-1].flops / runs[0].flops) ** generator.uniform(0, 1)
        staged = FinishedRun(generator.uniform(0.5, 4), flops, 0)
        found = compare(staged, runs)
        really = curve(flops) - staged.eval_loss
        assert found.loss_difference_at_equal_flops <= really + 1e-9, seed
        assert found.loss_difference_at_equal_flops_at_most >= really - 1e-9, seed


@pytest.mark.parametrize("budgets", [(1, 16, 256), (1, 4, 16, 64)])
def test_the_issues_curve_shows_no_saving(budgets: tuple[int, ...]) -> None:
    """L = 1.5 + 2 / sqrt(C): the baseline has 2.5 at C = 4, so that a staged run of C = 5 is 25 % dearer. A straight
    line between 1 and 16 said that it saved 21.3 %."""
    runs = [FinishedRun(1.5 + 2 / math.sqrt(flops), flops, 0) for flops in budgets]
    found = compare(FinishedRun(2.5, 5, 0), runs)
    if budgets[1] == 16:
        assert found.compute_saved is None
        assert not found.equal_loss_reached
        assert "1e0 and 1.6e1 FLOPs, are a factor of 16 apart, where more than 4 says too little" in found.verdict
        assert "1e0 and 1.6e1 FLOPs, are a factor of 16 apart" in found.at_equal_flops
    else:
        assert found.compute_saved == pytest.approx(-0.25)


@pytest.mark.parametrize(("power", "inside", "at_the_end"), [(0.2, 0.01, 0.025), (0.5, 0.025, 0.06), (1.0, 0.045, 0.1)])
def test_close_budgets_leave_little_room(power: float, inside: float, at_the_end: float) -> None:
    """Budgets a factor of 1.4 apart, as the quickstart's: what is given away where there is a budget more on either
    side, and beyond the last but one. The staged run is no better and no worse than the baseline."""
    curve = lambda flops: 1.3 + flops**-power  # noqa: E731
    runs = [FinishedRun(curve(flops), flops, 0) for flops in (1, 1.4, 1.96, 2.744)]
    for place in range(1, 200):
        truth = 1.4 * 1.96 ** (place / 200)
        saved = compare(FinishedRun(curve(truth), truth, 0), runs).compute_saved
        assert -(inside if truth <= 1.96 else at_the_end) < saved <= 1e-9


def test_without_a_neighbour_all_that_is_left_is_that_the_loss_does_not_rise() -> None:
    runs = [FinishedRun(2.0, 1e12, 0), FinishedRun(1.8, 2e12, 0)]
    found = compare(FinishedRun(1.9, 0.8e12, 0), runs)
    assert found.flops_baseline == 1e12
    assert found.flops_baseline_at_most == pytest.approx(math.sqrt(2) * 1e12)
    assert found.verdict == (
        "saved 20.0 % of the compute (a 25.0 % speed-up) at equal held-out loss 1.900: 8e11 against 1e12 FLOPs; "
        "between its budgets the baseline's curve leaves room up to 43.4 %"
    )


def test_where_only_the_straight_line_shows_a_saving_none_is_shown() -> None:
    runs = [FinishedRun(2.0, 1e12, 0), FinishedRun(1.8, 2e12, 0)]
    found = compare(FinishedRun(1.9, 1.2e12, 0), runs)
    assert found.compute_saved == pytest.approx(-0.2)
    assert found.verdict == (
        "no saving shown: between 20.0 % more and 15.1 % less compute at equal held-out loss 1.900: 1.2e12 against "
        "1e12 to 1.41e12 FLOPs; baseline budgets nearer to it would tell"
    )
    assert found.at_equal_flops == (
        "at equal FLOPs (1.2e12) the staged run's held-out loss is between 0.100 higher and 0.047 lower than the "
        "baseline's: 1.900 against 1.800 to 1.947"
    )


def test_what_bends_the_wrong_way_counts_against_the_staged_run_by_as_much() -> None:
    """A stretch before that is half as steep as this one is taken as twice as steep."""
    falls = FinishedRun(2.05, 1e12, 0), FinishedRun(2.0, 2e12, 0), FinishedRun(1.9, 4e12, 0)
    rises = FinishedRun(2.2, 1e12, 0), FinishedRun(2.0, 2e12, 0), FinishedRun(1.9, 4e12, 0)
    staged = FinishedRun(1.95, 1e12, 0)
    assert compare(staged, falls).flops_baseline == pytest.approx(2e12 * 2**0.25)
    assert compare(staged, rises).flops_baseline == pytest.approx(2e12 * 2**0.25)


@pytest.mark.parametrize("place", [0.01, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("between", [Stretch(2.0, 1.5, 1.3, 0.7), Stretch(2.0, 1.5, 1.3), Stretch(2.0, 1.5, after=0.7)])
def test_what_is_read_off_one_way_is_read_off_the_other_way(between: Stretch, place: float) -> None:
    loss = between.lowest(place)
    if between.last < loss < between.first:
        assert between.earliest(loss) == pytest.approx(place)
    assert between.latest(between.highest(place)) == pytest.approx(place)
