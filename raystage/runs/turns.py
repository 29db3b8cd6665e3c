"""What a driver trains next where others train parts of the same plan, as the trials of a sweep do: they have the same
baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.jobs import jobs

# Baselines that take less than this together are trained by the same workers, which take some 20 s to start. Others
# wait no longer than this for a part of them.
TURN_SECONDS = 120.0

Free = Callable[[Sequence[StagePlan]], Sequence[StagePlan]]


def next_turn(runs: Sequence[RunPlan], records: Mapping[str, StageRecord], free: Free) -> tuple[StagePlan, ...]:
    """The next stages of the first run that is not finished, so that others may train those after it; none if all are.

    If another driver trains them, those of the first run after it that need nothing of another run, that no gate judges
    and that nobody trains, as baselines are. If there are none, the first run's stages, to be waited for.

    Short baselines come together: further ones are added as long as nobody trains them and all of them take at most
    TURN_SECONDS.

    records: of the finished stages. free: the stages up to the first one that another driver trains.
    """
    pending = [left for run in runs if (left := tuple(one for one in run.stages if one.key not in records))]
    if not pending:
        return ()
    seconds = _Seconds(runs, records)
    first = jobs(pending[0])[0]
    if free(first):
        return _with_more(first, pending[1:], records, free, seconds) if _is_plain(pending[0]) else first
    for place, left in enumerate(pending[1:], start=2):
        if _is_plain(left) and left[0].parent_key in {None, *records} and free(apart := jobs(left)[0]):
            return _with_more(apart, pending[place:], records, free, seconds)
    return first


def _is_plain(stages: Sequence[StagePlan]) -> bool:
    """Whether stages only continue each other's training, each to its planned end."""
    return not any(one.growth or one.teacher or one.scorers or one.accept or one.until for one in stages)


def _with_more(
    job: tuple[StagePlan, ...],
    following: Iterable[tuple[StagePlan, ...]],
    records: Mapping[str, StageRecord],
    free: Free,
    seconds: _Seconds,
) -> tuple[StagePlan, ...]:
    """The stages of a job and of the runs after it, up to the first one that does not fit."""
    keys = {one.key for one in job}
    for left in following:
        more = tuple(one for one in left if one.key not in keys)
        if not more:
            continue
        fits = _is_plain(more) and more[0].parent_key in {None, *records, *keys} and len(jobs((*job, *more))) == 1
        if not fits or seconds.of((*job, *more)) > TURN_SECONDS or len(free(more)) < len(more):
            return job
        job, keys = (*job, *more), keys | {one.key for one in more}
    return job


class _Seconds:
    """How long stages are expected to take: per step as long as finished ones of the same model and batch on the same
    workers; for ever where there are none."""

    def __init__(self, runs: Iterable[RunPlan], records: Mapping[str, StageRecord]) -> None:
        self._found: dict[tuple[object, ...], tuple[float, int]] = {}
        for stage in {one.key: one for run in runs for one in run.stages if one.key in records}.values():
            record = records[stage.key]
            seconds, steps = self._found.get(_kind(stage), (0.0, 0))
            taken = record.seconds + record.evaluation_seconds
            self._found[_kind(stage)] = seconds + taken, steps + record.steps

    def of(self, stages: Iterable[StagePlan]) -> float:
        return math.fsum(self._of(stage) for stage in stages)

    def _of(self, stage: StagePlan) -> float:
        seconds, steps = self._found.get(_kind(stage), (math.inf, 1))
        return seconds / steps * stage.steps if steps else math.inf


def _kind(stage: StagePlan) -> tuple[object, ...]:
    return stage.shape, stage.layout, stage.training.global_batch
