"""A driver without training: it tells callbacks how made-up runs went, in the order in which the real one does."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import pairwise

from factories import make_record
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import Evaluation, StageRecord, TrainPoint
from raystage.runs.events import RunCallback

POINTS_PER_STAGE = 4


def curved_records(plan: Plan) -> dict[str, StageRecord]:
    """Every stage of `plan` finished, with four train points and two evaluations each and a loss that falls."""
    return {stage.key: _curved_record(stage) for run in plan.runs() for stage in run.stages}


def play(
    callback: RunCallback, plan: Plan, records: Mapping[str, StageRecord], reused: Container[str] = frozenset()
) -> None:
    """All runs; what was trained for one run is reused in the next, as is what is in `reused`."""
    trained: set[str] = set()
    for run in plan.runs():
        callback.run_started(run)
        for stage in run.stages:
            play_stage(callback, run, stage, records[stage.key], stage.key in trained or stage.key in reused)
            trained.add(stage.key)
        callback.run_finished(run, tuple(records[stage.key] for stage in run.stages))


def play_stage(
    callback: RunCallback, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool = False
) -> None:
    callback.stage_started(run, stage, reused)
    if record.growth:
        callback.grown(run, stage, record.growth)
    for point in sorted((*record.train, *record.evaluations), key=lambda point: point.position):
        tell = callback.trained if isinstance(point, TrainPoint) else callback.evaluated
        tell(run, stage, point)
    callback.stage_finished(run, stage, record, reused)


def _curved_record(stage: StagePlan) -> StageRecord:
    borders = [stage.steps * part // POINTS_PER_STAGE for part in range(POINTS_PER_STAGE + 1)]
    train = tuple(_train_point(stage, step) for before, step in pairwise(borders) if step > before)
    evaluations = tuple(_evaluation(stage, step) for step in sorted({borders[2], borders[4]}))
    return make_record(stage, evaluations[-1].loss, train=train, evaluations=evaluations)


def _train_point(stage: StagePlan, step: int) -> TrainPoint:
    tokens, flops = _reached(stage, step)
    return TrainPoint(tokens, stage.start_steps + step, flops, 0.5 * step, _loss(tokens) + 0.1, 2e-3, 0.75, 1234.0)


def _evaluation(stage: StagePlan, step: int) -> Evaluation:
    tokens, flops = _reached(stage, step)
    return Evaluation(tokens, stage.start_steps + step, flops, 0.5 * step, _loss(tokens), accuracy=1 / _loss(tokens))


def _reached(stage: StagePlan, step: int) -> tuple[int, int]:
    tokens = step * stage.training.global_batch_tokens
    return stage.start + tokens, stage.start_flops + stage.flops * step // stage.steps


def _loss(tokens: int) -> float:
    return 1.5 + 4.0 * (1 + tokens / 100) ** -0.5
