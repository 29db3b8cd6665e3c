"""How much time a run has left: what is to be computed yet, at the speed that was measured last."""

from __future__ import annotations

from collections.abc import Collection

from raystage.plan.plan import Plan, StagePlan


class Pace:
    """Of a whole plan, baselines included. finished: the keys of what is in the store, kept up to date by its owner."""

    def __init__(self, plan: Plan, finished: Collection[str] = ()) -> None:
        self._flops = {key: _all_flops(stage) for key, stage in plan.stages_by_key().items()}
        self._finished, self._seen = finished, set[str]()

    def finish(self, stage: StagePlan) -> None:
        self._seen.add(stage.key)

    def seconds_left(self, stage: StagePlan, step: int, tokens_per_second: float | None) -> float | None:
        """From step `step` of `stage` on; None before a speed was measured. Starting workers is not in it."""
        if not tokens_per_second:
            return None
        ended = {*self._finished, *self._seen, stage.key}
        others = sum(flops for key, flops in self._flops.items() if key not in ended)
        left = others + _all_flops(stage) * max(0, stage.steps - step) / stage.steps
        return left / (tokens_per_second * stage.token_flops(stage.shape.context_length))


def _all_flops(stage: StagePlan) -> int:
    return stage.flops + stage.evaluation_flops
