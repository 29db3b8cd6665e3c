"""What a trial is judged by: figures off the curves of a report."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raystage.sweeps.config import Objective
from raystage.sweeps.trial import measure


def point(flops: int, loss: float | None) -> dict[str, Any]:
    return {"flops": flops, "loss": loss, "run_seconds": flops / 100}


def report(*curves: list[tuple[int, float | None]]) -> dict[str, Any]:
    """A finished staged run of a stage for each curve."""
    stages = [{"evaluations": [point(*pair) for pair in curve], "eval_loss": curve[-1][1]} for curve in curves]
    return {"stages": stages, "savings": {"compute_saved": 0.3}}


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


def test_between_evaluations_the_loss_is_straight_over_log_flops() -> None:
    at = round(math.sqrt(100 * 1_000))
    assert measure(Objective(metric="eval_loss_at_flops", at=at), RUN) == pytest.approx(2.5, abs=1e-3)


def test_evaluations_without_a_loss_are_passed_over() -> None:
    run = report([(100, 3.0), (500, None), (1_000, 2.0)])
    assert measure(Objective(metric="flops_to_loss", target=2.5), run) == 1_000
