"""What a trial of a sweep is judged by, read off its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from raystage.sweep.config import Objective


def measure(objective: Objective, report: Mapping[str, Any]) -> float | None:
    """The figure of a finished trial; None where it never came to it. Losses in nats per token, counted on the staged
    run alone; FLOPs and seconds from its start, growth included, evaluation not."""
    points = [point for row in report["stages"] for point in row["evaluations"] if point["loss"] is not None]
    match objective.metric:
        case "eval_loss":
            return report["stages"][-1]["eval_loss"]
        case "compute_saved":
            return report["savings"]["compute_saved"]
        case "flops_to_loss":
            return first_at(points, objective.target, "flops")
        case "seconds_to_loss":
            return first_at(points, objective.target, "run_seconds")
        case "eval_loss_at_flops":
            return loss_at(points, objective.at)
    raise ValueError(f"found {objective.metric}; expected a metric that a sweep knows")


def first_at(points: Sequence[Mapping[str, Any]], target: float, axis: str) -> float | None:
    """Where a curve is at or below `target` for the first time: at that evaluation, not between two."""
    return next((point[axis] for point in points if point["loss"] <= target), None)


def loss_at(points: Sequence[Mapping[str, Any]], flops: int) -> float | None:
    """The loss at so many FLOPs, on a straight line over log FLOPs between the evaluations around; None outside.

    At a growth the loss may jump: there two evaluations lie at the same FLOPs, and the later one counts.
    """
    exact = [point["loss"] for point in points if point["flops"] == flops]
    if exact:
        return exact[-1]
    for before, after in pairwise(points):
        if 0 < before["flops"] < flops < after["flops"]:
            share = math.log(flops / before["flops"]) / math.log(after["flops"] / before["flops"])
            return before["loss"] + share * (after["loss"] - before["loss"])
    return None
