"""Keeps status.json in the folder of a run while its driver runs, for `raystage status`.

It is written at most every two seconds, and less often for runs of hundreds of stages, where this takes long. It is
written every half minute even if nothing has happened, as the driver's heartbeat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raystage.errors import RaystageError, StorageError
from raystage.files.filesystem import Folder
from raystage.files.retry import brief
from raystage.files.sealed_json import written
from raystage.plans.gates import Rejection
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.reports.build import DONE
from raystage.results.record import Evaluation, StageRecord, TrainPoint
from raystage.runs.events import RunCallback
from raystage.runs.log import Invocation
from raystage.runs.progress import Pace, StageProgress
from raystage.storage.processes import ProcessId, is_gone
from raystage.storage.store import read_file
from raystage.storage.stored_files import STATUS_FILE
from raystage.timers import RepeatingTimer

WRITE_SECONDS = 2.0
HEARTBEAT_SECONDS = 30.0
# This share of a CPU may go into it.
CPU_SHARE = 0.01
# After this time without a heartbeat a driver may be dead. It is longer than clocks of hosts usually differ.
SILENCE_SECONDS = 300.0

_logger = logging.getLogger(__name__)


@dataclass
class _StageStatus:
    """What is known of a stage so far.

    done: how far it was trained, in its unit. attempts: how often a driver has begun to train it. restarts: how often
    its workers were started again. rejections: how often it was not accepted, and tried again under another key.
    interrupted_by: why nothing is trained at the moment, such as a lost node.
    """

    progress: StageProgress
    done: int = 0
    lr: float | None = None
    attempts: int = 0
    restarts: int = 0
    rejections: int = 0
    checkpoint: str | None = None
    waiting_for: str | None = None
    interrupted_by: str | None = None

    def row(self, invocation: Invocation) -> dict[str, Any]:
        stage, progress = self.progress.stage, self.progress
        return {
            "run": progress.run.name,
            "name": stage.name,
            "key": stage.key,
            "state": progress.state,
            "step": progress.step,
            "steps": stage.steps,
            stage.unit: self.done,
            "loss": progress.loss,
            "eval_loss": progress.eval_loss,
            "lr": self.lr,
            f"{stage.unit}_per_second": progress.speed,
            "seconds_left": progress.seconds_left if progress.state == "RUNNING" else None,
            "attempts": self.attempts,
            "restarts": self.restarts,
            "rejections": self.rejections,
            "checkpoints": (invocation.store / "stages" / stage.key / "checkpoints").uri,
            "last_checkpoint": self.checkpoint,
            "waiting_for": self.waiting_for,
            "interrupted_by": self.interrupted_by,
        }


class RunStatus(RunCallback):
    """Keeps the status file of a run of `plan`. Begins with what an earlier invocation left there.

    finished: the keys of the stages that the store has; the driver keeps it up to date.
    """

    def __init__(
        self, plan: Plan, invocation: Invocation, write_seconds: float = WRITE_SECONDS, finished: Collection[str] = ()
    ) -> None:
        self._plan, self._invocation = plan, invocation
        self._state, self._error = "RUNNING", None
        self._doing: str | None = None  # what is being started
        self._pace = Pace(plan, finished)
        self._worker_logs: str | None = None
        self._current: StagePlan | None = None  # what this driver trains now
        self._is_new, self._written_at, self._rests_until = True, 0.0, 0.0
        self._has_warned = False
        self._lock = threading.Lock()
        earlier = _counts(read_status(invocation.folder))
        self._stages = [
            _StageStatus(StageProgress(run, stage, "SCHEDULING"), **earlier.get(stage.key, {}))
            for run in plan.runs()
            for stage in run.stages
        ]
        self._write()
        self._ticker = RepeatingTimer("raystage-status", write_seconds, brief(self._write))

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        self._progress(stage, speed=None)
        self._change(stage, waiting_for=for_what)

    def preparing(self, what: str) -> None:
        with self._lock:
            self._doing, self._is_new = what, True

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        self._progress(stage, step=step)

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._place(run, stage)
        with self._lock:
            self._current = None if reused else stage
            for one in self._of(stage):
                one.attempts += not reused
        self._progress(stage, state="REUSED" if reused else "SCHEDULING")

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None:
        self._change(stage, done=point.position - stage.start, lr=point.lr, interrupted_by=None)
        self._progress(stage, point=point)
        self._doing = None

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        self._change(stage, done=point.position - stage.start)
        self._progress(stage, point=point)

    def saved(self, run: RunPlan, stage: StagePlan, checkpoint: str) -> None:
        self._change(stage, checkpoint=checkpoint)

    def interrupted(self, run: RunPlan, stage: StagePlan, why: str) -> None:
        self._progress(stage, state="RESTARTING", speed=None)
        self._change(stage, interrupted_by=why)

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        with self._lock:
            for one in self._of(stage):
                one.restarts += 1
        self._progress(stage, state="RESTARTING", speed=None)

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        with self._lock:
            for one in self._of(stage):
                one.rejections += 1
        self._progress(stage)

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        self._change(stage, done=record.duration, checkpoint=record.checkpoint.rsplit("/", 1)[-1])
        state = "REUSED" if reused else "FINISHED"
        self._pace.finish(stage)
        self._progress(stage, state=state, step=record.steps, eval_loss=record.eval_loss)
        with self._lock:
            self._current = None

    def ended(self, error: BaseException | None) -> None:
        self._ticker.stop()
        is_interrupted = isinstance(error, KeyboardInterrupt)
        self._state = "FINISHED" if error is None else "ABORTED" if is_interrupted else "ERRORED"
        self._error = None if error is None or is_interrupted else str(error) or type(error).__name__
        if self._current is not None:
            self._progress(self._current, state=self._state)
        self._is_new, self._rests_until = True, 0.0
        self._write()

    # --- the file -----------------------------------------------------------------------------

    def _of(self, stage: StagePlan) -> list[_StageStatus]:
        """All entries of a stage: one for each run that it belongs to."""
        return [one for one in self._stages if one.progress.stage.key == stage.key]

    def _place(self, run: RunPlan, stage: StagePlan) -> None:
        """Use the stage as it is trained now: with the key of the current attempt, and where it really begins."""
        with self._lock:
            for one in self._stages:
                before = one.progress
                if (before.run.name, before.stage.name) == (run.name, stage.name) and before.stage != stage:
                    one.progress = StageProgress(run, stage, "SCHEDULING")
                    one.done = 0

    def _change(self, stage: StagePlan, **facts: Any) -> None:
        with self._lock:
            self._is_new = True
            for one in self._of(stage):
                for name, fact in facts.items():
                    setattr(one, name, fact)

    def _progress(self, stage: StagePlan, point: TrainPoint | Evaluation | None = None, **facts: Any) -> None:
        with self._lock:
            self._is_new = True
            for one in self._of(stage):
                one.waiting_for = None
                state = one.progress.state
                if isinstance(point, TrainPoint):
                    one.progress = one.progress.after_training(point)
                elif point is not None:
                    one.progress = one.progress.after_evaluation(point)
                # A finished stage stays so: points of a reused stage are of the past.
                kept = {"state": state} if state in DONE else {}
                one.progress = replace(one.progress, **(facts | kept))

    def _write(self) -> None:
        """Write the file if something has changed, or if a heartbeat is due."""
        now, began = time.monotonic(), time.thread_time()
        with self._lock:
            if now < self._rests_until or (not self._is_new and now - self._written_at < HEARTBEAT_SECONDS):
                return
            content, trains = self._content(), self._current is not None
            self._is_new, self._written_at = False, now
        try:
            if trains or not self._belongs_to_another_driver():
                self._invocation.folder.write_whole(STATUS_FILE, written(content))
        except StorageError as error:
            if not self._has_warned:
                _logger.warning("%s: %s", (self._invocation.folder / STATUS_FILE).uri, error)
            self._has_warned = True
        self._rests_until = now + min(HEARTBEAT_SECONDS, (time.thread_time() - began) / CPU_SHARE)

    def _belongs_to_another_driver(self) -> bool:
        """Whether another driver keeps the status of this run. A driver that waits for it leaves the file alone."""
        found = read_status(self._invocation.folder)
        process = process_of(found)
        if process is None or process == self._invocation.process:
            return False
        return found.get("state") == "RUNNING" and silence(process, found["updated_at"], time.time()) is None

    def _content(self) -> dict[str, Any]:
        self._worker_logs = self._invocation.worker_logs() or self._worker_logs  # they outlive the cluster
        return {
            "name": self._plan.name,
            "state": self._state,
            "error": self._error,
            "process": self._invocation.process.to_json(),
            "started_at": self._invocation.started_at,
            "updated_at": time.time(),
            "command": self._invocation.command,
            "store": self._invocation.store.uri,
            "log": self._invocation.log,
            "worker_logs": self._worker_logs,
            "wandb_run_ids": dict(self._invocation.wandb_run_ids),
            "doing": self._doing,
            "seconds_left": self._seconds_left(),
            "stages": [one.row(self._invocation) for one in self._stages],
        }

    def _seconds_left(self) -> float | None:
        """Of the whole run."""
        current = self._current
        at = next((one.progress for one in self._stages if current and one.progress.stage.key == current.key), None)
        if at is None or self._state != "RUNNING":
            return None
        return self._pace.seconds_left(at.stage, at.step, at.speed)


def read_status(folder: Folder) -> dict[str, Any]:
    """What another invocation has left in the run's folder; empty if there is no file that can be read."""
    try:
        return read_file(folder, STATUS_FILE, STATUS_FILE) or {}
    except RaystageError as error:
        _logger.warning("the status starts again from nothing: %s", error)
        return {}


def process_of(status: Mapping[str, Any]) -> ProcessId | None:
    """The driver's process; None if it is not known."""
    try:
        return ProcessId.from_json(status["process"])
    except (ValueError, TypeError, KeyError):
        return None


def silence(process: ProcessId, updated_at: float, now: float) -> str | None:
    """Why the driver of a run in state RUNNING may be dead; None if there is no reason to think so.

    updated_at, now: in seconds since 1970.
    """
    if is_gone(process):
        return f"the driver on {process.host} (process {process.pid}) has ended without a message"
    quiet_seconds = now - updated_at
    if quiet_seconds > SILENCE_SECONDS:
        minutes = round(quiet_seconds / 60)
        return f"no heartbeat for {minutes} min: the driver on {process.host} (process {process.pid}) may be dead"
    return None


def _counts(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By stage key the counts of earlier invocations, and the last checkpoint that they left."""
    return {
        row["key"]: {
            "attempts": row.get("attempts") or 0,
            "restarts": row.get("restarts") or 0,
            "checkpoint": row.get("last_checkpoint"),
        }
        for row in status.get("stages", [])
    }
