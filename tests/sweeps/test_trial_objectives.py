"""What a trial is judged by: figures off the curves of a report."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raystage.results.report import BaselinePart, EvaluationPoint, RunReport, SavingsPart, StageRow
from raystage.results.savings import FinishedRun, no_figure
from raystage.results.seeds import SeedPair, over_seeds
from raystage.sweeps.config import Objective
from raystage.sweeps.trial import measure


def point(flops: int, loss: float | None) -> EvaluationPoint:
    return EvaluationPoint(position=0, steps=0, flops=flops, seconds=0.0, loss=loss, run_seconds=flops / 100)


def stage(curve: list[tuple[int, float | None]]) -> StageRow:
    return StageRow(
        name="stage", key="key", state="FINISHED", num_params=1, num_layers=1, num_workers=1, zero_stage=1, duration=0,
        steps=0, flops=curve[-1][0], seconds=0.0, worker_seconds=0.0, peak_memory_bytes=0, eval_loss=curve[-1][1],
        evaluations=tuple(point(*pair) for pair in curve), train=(), growth=None,
    )  # fmt: skip


def report(*curves: list[tuple[int, float | None]]) -> RunReport:
    """A finished staged run of a stage for each curve."""
    savings = replace(SavingsPart(**vars(no_figure("none"))), compute_saved=0.3)
    return RunReport(
        name="run", state="FINISHED", stages=tuple(map(stage, curves)), baseline=BaselinePart(()),
        length_per_parameter=1.0, savings=savings, warnings=(),
    )  # fmt: skip


# At the growth, 1,000 FLOPs in, the loss jumps from 2.0 to 2.6.
RUN = report([(0, 5.0), (100, 3.0), (1_000, 2.0)], [(1_000, 2.6), (4_000, 1.8), (8_000, 1.7)])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"metric": "eval_loss"}, 1.7),
        ({"metric": "compute_saved"}, 0.3),
        ({"metric": "flops_to_loss", "target": 2.0}, 1_000),
        ({"metric": "flops_to_loss", "target": 1.9}, 4_000),
        ({"metric": "flops_to_loss", "target": 1.0}, None),
        ({"metric": "seconds_to_loss", "target": 1.8}, 40.0),
        ({"metric": "eval_loss_at_flops", "at": 4_000}, 1.8),
        ({"metric": "eval_loss_at_flops", "at": 1_000}, 2.6),
        ({"metric": "eval_loss_at_flops", "at": 2_000}, 2.2),
        ({"metric": "eval_loss_at_flops", "at": 8_001}, None),
        ({"metric": "eval_loss_at_flops", "at": 50}, None),
    ],
    ids=str,
)
def test_a_figure_of_a_run(objective: dict, expected: float | None) -> None:
    assert measure(Objective(**objective), RUN) == (expected if expected is None else pytest.approx(expected))


def test_the_saving_of_several_seeds_is_their_mean() -> None:
    def with_baselines(*flops: int) -> RunReport:
        pairs = [
            SeedPair(seed, FinishedRun(2.0, 1e3, 1), (FinishedRun(3.0, one / 2, 1), FinishedRun(2.0, one, 1)))
            for seed, one in enumerate(flops)
        ]
        return replace(RUN, savings=replace(RUN.savings, seeds=over_seeds(pairs)))

    saved = Objective(metric="compute_saved")
    assert measure(saved, with_baselines(2_000, 4_000)) == pytest.approx((0.5 + 0.75) / 2)
    one_without = [SeedPair(0, FinishedRun(2.0, 1e3, 1), (FinishedRun(3.0, 2e3, 1),))]
    assert measure(saved, replace(RUN, savings=replace(RUN.savings, seeds=over_seeds(one_without)))) is None


def test_between_evaluations_the_loss_is_straight_over_log_flops() -> None:
    at = round(math.sqrt(100 * 1_000))
    assert measure(Objective(metric="eval_loss_at_flops", at=at), RUN) == pytest.approx(2.5, abs=1e-3)


def test_evaluations_without_a_loss_are_passed_over() -> None:
    run = report([(100, 3.0), (500, None), (1_000, 2.0)])
    assert measure(Objective(metric="flops_to_loss", target=2.5), run) == 1_000
