"""The log of a run: what its driver did and why, one sentence a line. And what is to be done when it has ended.

    2026-10-01 12:00:03+0000 [4711] stage small (staged 1/3): training begins: 6 layers, ...

The number in brackets is the driver's process. A run that is started again appends to the same file.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from raystage.errors import InputError, StorageError
from raystage.files.filesystem import Folder
from raystage.files.retry import brief
from raystage.plans.gates import Rejection
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import GrowthRecord, StageRecord
from raystage.runs.events import RunCallback
from raystage.runs.progress import describe_adapter, describe_average, describe_growth, describe_stage
from raystage.storage.processes import ProcessId, this_process
from raystage.timers import RepeatingTimer
from raystage.units import format_count, format_flops, format_seconds

LOG_FILE = "run.log"
# An object is written as a whole, with all lines so far, so not for every line.
UPLOAD_SECONDS = 10.0

_logger = logging.getLogger(__name__)


# --- one start of a run -----------------------------------------------------------------------


@dataclass(frozen=True)
class Invocation:
    """One start of a run by one driver: which process it is, and where it finds and writes what.

    folder: the run's own in the store. command: what starts the run again. address: of the Ray cluster, None for a
    cluster of the run's own. worker_logs: where the logs of its workers are, None before there is a cluster.
    wandb_run_ids: by name of the run.
    """

    name: str
    command: str
    folder: Folder
    store: Folder
    address: str | None = None
    worker_logs: Callable[[], str | None] = lambda: None
    wandb_run_ids: Mapping[str, str] = field(default_factory=dict)
    process: ProcessId = field(default_factory=this_process)
    started_at: float = field(default_factory=time.time)
    version: str = field(default_factory=lambda: metadata.version("raystage"))

    @property
    def log(self) -> str:
        return (self.folder / LOG_FILE).uri


def next_steps(invocation: Invocation, error: BaseException | None) -> list[str]:
    """What to do now and where to read more, in lines. An InputError says itself what would be right."""
    if isinstance(error, InputError):
        return []
    lines = [] if error is None else [f"to continue: {invocation.command}"]
    workers = invocation.worker_logs()
    return [*lines, f"log: {invocation.log}" + (f"; the workers' logs: {workers}" if workers and error else "")]


def run_command(
    schedule: str,
    overrides: Sequence[str] = (),
    store: str | None = None,
    name: str | None = None,
    address: str | None = None,
    wandb_mode: str | None = None,
    patience: str | None = None,
) -> str:
    """The command line that continues a run, ready to paste into a shell. Options that were not given are left out."""
    parts = ["raystage", "run", schedule]
    for override in overrides:
        parts += ["--set", override]
    options = {"--store": store, "--name": name, "--address": address, "--patience": patience, "--wandb": wandb_mode}
    for option, value in options.items():
        parts += [option, value] if value is not None else []
    return shlex.join(parts)


def sweep_command(
    sweep: str,
    overrides: Sequence[str],
    store: str | None,
    address: str | None,
    wandb_mode: str | None,
    patience: str | None = None,
) -> str:
    """The command line that continues a sweep; its name is among the overrides."""
    command = run_command(sweep, overrides, store, None, address, wandb_mode, patience)
    return command.replace("raystage run", "raystage sweep", 1)


# --- the log ----------------------------------------------------------------------------------


class LogFile:
    """Appends lines to a file in a store. Lines that cannot be written are written later, or lost: no run fails because
    of its log.

    On a local file system every line is written at once, on an object store after UPLOAD_SECONDS. There two drivers
    that write at the same moment may lose lines of one of them.
    """

    def __init__(self, folder: Folder, upload_seconds: float = UPLOAD_SECONDS) -> None:
        self._folder = folder
        self._pending: list[str] = []
        self._lock = threading.Lock()
        self._has_warned = False
        self._ticker = None if folder.is_local else RepeatingTimer("raystage-log", upload_seconds, brief(self.flush))

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


class RunLog(RunCallback):
    """Writes what it is told of a run into a `LogFile`."""

    def __init__(self, invocation: Invocation, file: LogFile) -> None:
        self._invocation, self._file = invocation, file
        self._is_past = False  # whether what is told now belongs to a stage that was finished before
        self._has_worker_logs = False
        if file.exists():
            self._write("a run of this name was started before: the lines above are of earlier starts")
        cluster = f"the Ray cluster at {invocation.address}" if invocation.address else "a Ray cluster of its own"
        where = f"store {invocation.store.uri}, on {cluster}"
        self._write(f"started: raystage {invocation.version}, {invocation.process}, {where}")
        self._write(f"the command: {invocation.command}")

    def run_started(self, run: RunPlan) -> None:
        self._write(f"run {run.name}: {', '.join(stage.name for stage in run.stages)}")

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        self._write_of(run, stage, f"waiting for {for_what}")

    def preparing(self, what: str) -> None:
        self._write(what)

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        self._is_past = True
        self._write_of(run, stage, f"continues from step {step} (of {stage.steps})")

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        self._is_past = reused
        if reused:
            return
        self._write_of(run, stage, f"training begins: {describe_stage(stage)}")
        logs = self._invocation.worker_logs()
        if logs and not self._has_worker_logs:
            self._has_worker_logs = True
            self._write(f"the workers' logs are in {logs}")

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None:
        if not self._is_past:
            self._write_of(run, stage, describe_growth(stage, growth))

    def saved(self, run: RunPlan, stage: StagePlan, checkpoint: str) -> None:
        self._write_of(run, stage, f"saved checkpoint {checkpoint}")

    def noted(self, run: RunPlan, stage: StagePlan, what: str) -> None:
        self._write_of(run, stage, what)

    def interrupted(self, run: RunPlan, stage: StagePlan, why: str) -> None:
        self._write_of(run, stage, why)

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        self._write_of(run, stage, reason)

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        self._write_of(run, stage, rejection.sentence())

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        checkpoint = (self._invocation.store / "stages" / record.key / record.checkpoint).uri
        result = (
            f"eval loss {record.eval_loss:.4f} after {format_count(record.duration)} {record.unit}, "
            f"{format_flops(record.flops)} FLOPs, {format_seconds(record.seconds)} of training"
        )
        ended = f", ended by {record.stopped_by}" if record.stopped_by else ""
        ended += f"; {describe_average(record.average)}" if record.average else ""
        ended += f"; {describe_adapter(record.adapter)}" if record.adapter else ""
        ended += f"; compiled {record.compiled_graphs} graphs" if record.compiled_graphs is not None else ""
        self._write_of(run, stage, f"{'reused' if reused else 'finished'}: {result}{ended}; {checkpoint}")

    def run_finished(self, run: RunPlan, records: tuple[StageRecord, ...]) -> None:
        self._write(f"run {run.name}: finished")

    def ended(self, error: BaseException | None) -> None:
        self._write(_outcome(error))
        report = (self._invocation.folder / "report.md").uri
        for line in next_steps(self._invocation, error) if error else [f"the report: {report}"]:
            self._write(line)
        self._file.close()

    def _write_of(self, run: RunPlan, stage: StagePlan, text: str) -> None:
        number = [one.key for one in run.stages].index(stage.key) + 1
        self._write(f"stage {stage.name} ({run.name} {number}/{len(run.stages)}): {text}")

    def _write(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} [{self._invocation.process.pid}] {text}")


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "failed: " + (" ".join(str(error).split()) or type(error).__name__)
