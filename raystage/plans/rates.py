"""The learning rates of a stage, as a plan shows them."""

from __future__ import annotations

from raystage.plans.learning_rate import extremes
from raystage.plans.stage import StagePlan
from raystage.plans.steps import rate_factor


def rates_of(stage: StagePlan) -> tuple[float, float, float]:
    """The planned rates where the stage starts, at its highest point and where it ends, with the factor of a ramp."""
    segments = [one for one in stage.step_schedule.segments if one.start_steps < stage.steps]
    borders = [stage.start + one.start for one in segments] + [stage.end]
    found = [
        tuple(rate * rate_factor(stage.training, segment.batch) for rate in extremes(stage.rate, start, end))
        for segment, start, end in zip(segments, borders, borders[1:], strict=False)
    ]
    return found[0][0], max(peak for _, peak, _ in found), found[-1][2]
