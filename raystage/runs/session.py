"""A run from its first log line to its last one: its driver, and W&B, log and status file, which are told how it goes.

The command line and the trials of a sweep both use this. It prints nothing, and raises what the driver raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raystage.cluster.ray_private import logs_folder
from raystage.config.schedule import Schedule
from raystage.files.filesystem import Folder
from raystage.plans.plan import Plan
from raystage.results.record import StageRecord
from raystage.results.report import RunReport
from raystage.runs.driver import Driver
from raystage.runs.events import RunCallback
from raystage.runs.log import Invocation, LogFile, RunLog, next_steps
from raystage.runs.status import RunStatus
from raystage.runs.wandb import Mode, WandbTracker
from raystage.runs.wandb_copy import WandbCopy
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE

# How long a run waits for nodes that its cluster lacks.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Tracking:
    """How W&B keeps a run.

    folder: where `wandb/` is made; None for the working directory. copied_to: a folder of a store; if given, what W&B
    writes offline is copied there, and not kept here. group: None for the name of the schedule.
    config: what W&B shows as the run's configuration; None for the schedule with all its defaults. resumes: whether W&B
    continues the runs of an earlier invocation that did not reach the end of the same plan.
    """

    mode: Mode = "disabled"
    folder: str | None = None
    copied_to: Folder | None = None
    group: str | None = None
    job_type: str = "staged"
    config: Mapping[str, Any] | None = None
    resumes: bool = True


class RunSession:
    """A context manager around one run of a schedule.

        with RunSession(plan, schedule, store, command="raystage run schedule.yaml") as session:
            report = session.run()

    At the end of the context all callbacks are told how the run ended, and an error gets what to do next as notes.

    command: what starts the run again. address: the Ray cluster to join; None for a cluster of the run's own.
    connected_to: the address of the cluster that this process is connected to already. patience_seconds: how long to
    wait for nodes that a cluster lacks which is not the run's own. draws: whether the curves are drawn at the end, as
    image files.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        store: Store,
        *,
        command: str,
        address: str | None = None,
        connected_to: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        tracking: Tracking = Tracking(),
        draws: bool = True,
    ) -> None:
        earlier = store.read_run(plan.name, RUN_FILE) or {}
        is_copied = tracking.copied_to is not None and tracking.mode == "offline"
        self._copy = WandbCopy(tracking.copied_to) if is_copied else None
        if self._copy is not None:
            tracking = replace(tracking, folder=self._copy.folder)
        self._driver = Driver(
            plan, schedule, store, address=address, is_connected=connected_to is not None, draws=draws, command=command,
            patience_seconds=patience_seconds if address or connected_to else 0.0,
            is_alone=connected_to is None,  # else this is a trial of a sweep
        )  # fmt: skip
        self._tracker = _make_tracker(plan, schedule, store, tracking, earlier, self._driver.is_finished)
        self._driver.run_ids = self._tracker.run_ids
        self.invocation = Invocation(
            plan.name, command, store.run_folder(plan.name), store.folder, connected_to or address, logs_folder,
            self._tracker.run_ids,
        )  # fmt: skip
        self._callbacks: list[RunCallback] = []

    @property
    def finished(self) -> Collection[str]:
        """The keys of the stages that are finished, kept up to date."""
        return self._driver.records.keys()

    def __enter__(self) -> RunSession:
        plan, invocation = self._driver.plan, self.invocation
        log = RunLog(invocation, LogFile(invocation.folder))
        status = RunStatus(plan, invocation, finished=self.finished)
        self._callbacks = [self._tracker, status, log]
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with contextlib.ExitStack() as stack:  # in reverse: W&B, which may still upload, comes last, and then its copy
            if self._copy is not None:
                stack.callback(self._copy.end)
            for callback in self._callbacks:
                stack.callback(callback.ended, error)
        if error is not None:
            for line in next_steps(self.invocation, error):
                error.add_note(line)

    def run(self, callbacks: Sequence[RunCallback] = ()) -> RunReport:
        """Carry out the schedule; returns the report. callbacks: are told how it goes, besides W&B, log and status.

        Raises RaystageError; KeyboardInterrupt after the workers have saved.
        """
        tracker, *files = self._callbacks
        self._callbacks = self._driver.callbacks = [tracker, *callbacks, *files]
        report = self._driver.run()
        self._tracker.savings(report.savings)
        return report


def _make_tracker(
    plan: Plan, schedule: Schedule, store: Store, tracking: Tracking, earlier: Mapping[str, Any], is_finished: bool
) -> WandbTracker:
    def checkpoint_uri(record: StageRecord) -> str:
        return (store.stage_folder(record.key) / record.checkpoint).uri

    was_finished = earlier.get("state") == "FINISHED"
    resumes = tracking.resumes and earlier.get("written_keys") == plan.stage_keys() and not was_finished
    return WandbTracker(
        plan,
        schedule.model_dump(mode="json") if tracking.config is None else tracking.config,
        checkpoint_uri,
        # A run that was finished before, and stays as it is, is in W&B already.
        mode="disabled" if tracking.resumes and was_finished and is_finished else tracking.mode,
        directory=tracking.folder,
        group=tracking.group,
        job_type=tracking.job_type,
        run_ids=earlier["wandb_run_ids"] if resumes else {},
    )
