"""Those who are told how a run goes: the terminal, the log, the status file, W&B."""

from __future__ import annotations

from typing import Protocol

from raystage.plan.build import RunPlan, StagePlan
from raystage.plan.retries import Rejection
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint


class Listener(Protocol):
    """Someone who is told how a run goes. All calls come from the driver's thread.

    For each run: run_started, then for each of its stages stage_started, any number of trained /
    evaluated / grown / saved, stage_finished; then run_finished. A reused stage gets its recorded points too,
    with reused=True, so that a listener sees whole curves. waiting tells what keeps a stage from being trained:
    another driver that does it, or others who have the room on the cluster. preparing tells what is being started
    before anything can be trained. resumed comes before the points of a stage that was begun before: step, of the
    stage, is where it goes on, and what is told up to there is past.
    """

    def run_started(self, run: RunPlan) -> None: ...

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None: ...

    def preparing(self, what: str) -> None: ...

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None: ...

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None: ...

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None: ...

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None: ...

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None: ...

    def saved(self, run: RunPlan, stage: StagePlan, checkpoint: str) -> None: ...

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None: ...

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None: ...

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None: ...

    def run_finished(self, run: RunPlan, records: tuple[StageRecord, ...]) -> None: ...


class SilentListener(Listener):
    """Does nothing: what most listeners make of most calls."""
