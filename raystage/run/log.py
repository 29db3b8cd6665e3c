"""The log of a run: what its driver did and why, one plain sentence a line.

    2026-10-01 12:00:03+0000 [4711] stage small (staged 1/3): training begins: 6 layers, ...

The number in brackets is the driver's process. A run that is started again writes on in the same file.
"""

from __future__ import annotations

import logging
import threading
import time

from raystage.errors import StorageError
from raystage.files.filesystem import Folder
from raystage.plan.build import RunPlan, StagePlan
from raystage.plan.retries import Rejection
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint
from raystage.results.savings import format_flops
from raystage.run.console import describe_growth, describe_stage
from raystage.run.invocation import LOG_FILE, Attempt, next_steps
from raystage.timers import Ticker
from raystage.units import format_count, format_seconds

# An object is written whole, with all lines so far, so not for every line.
UPLOAD_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class LogFile:
    """Lines appended to a file in a store. What cannot be written is written later, or lost: no run ends for its log.

    On a local file system every line is there at once; on an object store after UPLOAD_SECONDS, and two that write in
    the same moment may lose lines of one.
    """

    def __init__(self, folder: Folder, upload_seconds: float = UPLOAD_SECONDS) -> None:
        self._folder = folder
        self._pending: list[str] = []
        self._lock = threading.Lock()
        self._has_warned = False
        self._ticker = None if folder.is_local else Ticker("raystage-log", upload_seconds, self.flush)

    def exists(self) -> bool:
        return bool(self._folder.size_of(LOG_FILE))

    def write(self, line: str) -> None:
        with self._lock:
            self._pending.append(f"{line}\n")
        if self._ticker is None:
            self.flush()

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        self.flush()

    def flush(self) -> None:
        with self._lock:
            if not self._pending:
                return
            try:
                self._append("".join(self._pending).encode())
                self._pending.clear()
            except (OSError, StorageError) as error:
                if not self._has_warned:
                    _logger.warning("%s: cannot be written (%s)", (self._folder / LOG_FILE).uri, error)
                self._has_warned = True

    def _append(self, lines: bytes) -> None:
        if self._folder.is_local:
            self._folder.make()
            with open(f"{self._folder.path}/{LOG_FILE}", "ab") as file:
                file.write(lines)
            return
        try:
            before = self._folder.read(LOG_FILE)
        except FileNotFoundError:
            before = b""
        self._folder.write_whole(LOG_FILE, before + lines)


class RunLog:
    """Writes down what it is told of a run; a Listener and a Follower."""

    def __init__(self, attempt: Attempt, file: LogFile) -> None:
        self._attempt, self._file = attempt, file
        self._is_past = False  # whether what is told now is of a stage that was finished before
        self._said_where_workers_log = False
        if file.exists():
            self._say("a run of this name was started before: what stands above is of earlier attempts")
        cluster = f"the Ray cluster at {attempt.address}" if attempt.address else "a Ray cluster of its own"
        self._say(f"started: raystage {attempt.version}, {attempt.process}, store {attempt.store.uri}, on {cluster}")
        self._say(f"the command: {attempt.command}")

    # --- Listener -----------------------------------------------------------------------------

    def run_started(self, run: RunPlan) -> None:
        self._say(f"run {run.name}: {', '.join(stage.name for stage in run.stages)}")

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        self._say_of(run, stage, f"waiting for {for_what}")

    def preparing(self, what: str) -> None:
        self._say(what)

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        self._is_past = True
        self._say_of(run, stage, f"goes on from step {step} (of {stage.steps})")

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._is_past = reused
        if reused:
            return
        self._say_of(run, stage, f"training begins: {describe_stage(stage)}")
        logs = self._attempt.worker_logs()
        if logs and not self._said_where_workers_log:
            self._said_where_workers_log = True
            self._say(f"the workers' logs are in {logs}")

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None:
        if not self._is_past:
            self._say_of(run, stage, describe_growth(growth))

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None:
        """Curves are in the report."""

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        """Curves are in the report."""

    def saved(self, run: RunPlan, stage: StagePlan, checkpoint: str) -> None:
        self._say_of(run, stage, f"saved checkpoint {checkpoint}")

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        self._say_of(run, stage, reason)

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        self._say_of(run, stage, rejection.sentence())

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        place = (self._attempt.store / "stages" / record.key / record.checkpoint).uri
        figures = (
            f"eval loss {record.eval_loss:.4f} after {format_count(record.tokens)} tokens, "
            f"{format_flops(record.flops)} FLOPs, {format_seconds(record.seconds)} of training"
        )
        ended = f", ended by {record.stopped_by}" if record.stopped_by else ""
        self._say_of(run, stage, f"{'reused' if reused else 'finished'}: {figures}{ended}; {place}")

    def run_finished(self, run: RunPlan, records: tuple[StageRecord, ...]) -> None:
        self._say(f"run {run.name}: finished")

    # --- Follower -----------------------------------------------------------------------------

    def ended(self, error: BaseException | None) -> None:
        self._say(_ending(error))
        report = (self._attempt.folder / "report.md").uri
        for line in next_steps(self._attempt, error) if error else [f"the report: {report}"]:
            self._say(line)
        self._file.close()

    def _say_of(self, run: RunPlan, stage: StagePlan, text: str) -> None:
        number = [one.key for one in run.stages].index(stage.key) + 1
        self._say(f"stage {stage.name} ({run.name} {number}/{len(run.stages)}): {text}")

    def _say(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} [{self._attempt.process.pid}] {text}")


def _ending(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "failed: " + (" ".join(str(error).split()) or type(error).__name__)
