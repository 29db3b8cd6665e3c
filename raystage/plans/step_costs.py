"""Training FLOPs of the steps of a stage, which are fewer while a part of the model is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from raystage.plans.steps import StepSchedule, UnitCost


@dataclass(frozen=True)
class StepCosts:
    """The steps of a stage of any length, with what they cost.

    phases: pairs of a first step of the stage, from 0 on and ascending, and the cost of a token or sample in the steps
    from there.
    """

    schedule: StepSchedule
    phases: tuple[tuple[int, UnitCost], ...]

    def of_first(self, steps: int) -> int:
        """FLOPs of the first `steps` steps."""
        ends = [start for start, _ in self.phases[1:]] + [steps]
        return sum(
            self.schedule.flops(min(end, steps), cost) - (self.schedule.flops(start, cost) if start else 0)
            for (start, cost), end in zip(self.phases, ends, strict=True)
            if start < steps
        )

    def of_step(self, step: int) -> int:
        """FLOPs of step number `step` of the stage, from 0."""
        segment, cost = self.schedule.at(step), self._cost_at(step)
        return segment.batch * cost(segment.context_length)

    def steps_for(self, flops: int) -> int:
        """The fewest whole steps that take at least `flops` FLOPs."""
        start, cost = next(
            (phase for phase in reversed(self.phases) if self.of_first(phase[0]) < flops), self.phases[0]
        )
        before = self.schedule.flops(start, cost) - self.of_first(start)
        return self.schedule.steps_for_flops(flops + before, cost)

    def _cost_at(self, step: int) -> UnitCost:
        return next(cost for start, cost in reversed(self.phases) if start <= step)
