"""A schedule carried out: each stage reused or trained, then the baselines, then the report.

What is finished is in the store under its key. So a driver that is killed needs no memory of its own:
started again, it finds what is there and goes on with the first stage that is not.
"""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from raystage import launch
from raystage.errors import BrokenPromise, StageFailed, WorkersLost
from raystage.figures import write_curves
from raystage.narrator import Narrator
from raystage.plan import Plan, StagePlan, jobs
from raystage.promises import check_promises
from raystage.record import Listener, StageRecord
from raystage.report import build_report, markdown
from raystage.schedule import Schedule
from raystage.store import Store
from raystage.worker import Job

RUN_FILE = "run.json"
REPORT_FILE = "report.json"


@dataclass
class Driver:
    """Carries out one plan. `states` has the state of every stage by its key, `records` what is finished."""

    plan: Plan
    schedule: Schedule
    store: Store
    listeners: Sequence[Listener]
    address: str | None = None
    run_ids: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, StageRecord] = field(default_factory=dict)
    _began: float = 0.0
    _connected: bool = False

    def __post_init__(self) -> None:
        """Look once for what is finished; stages that several runs share are looked for once, too."""
        for key in {stage.key for run in self.plan.runs() for stage in run.stages}:
            record = self.store.record(key)
            self.states[key] = "REUSED" if record else "SCHEDULING"
            if record:
                self.records[key] = record

    def run(self) -> dict[str, Any]:
        """Carry out the whole plan; returns the report. Raises RaystageError, after noting the state."""
        self._began = time.time()
        self._note("RUNNING")
        narrator = Narrator(self.plan.runs(), self.records, self._tell, self._take_turn, self._check_reused)
        try:
            with contextlib.ExitStack() as stack:
                narrator.advance()
                while job := self._next_job():
                    self._ensure_cluster(stack)
                    self._train(job, narrator)
        except BaseException as error:
            self._note("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED")
            raise
        report = self._note("FINISHED")
        self._write_papers(report)
        return report

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.records.keys() == self.states.keys()

    # --- training -----------------------------------------------------------------------------

    def _next_job(self) -> tuple[StagePlan, ...]:
        """The stages that are to be trained next by one and the same workers; none where all is finished."""
        stages = {stage.key: stage for run in self.plan.runs() for stage in run.stages}
        pending = [stage for key, stage in stages.items() if key not in self.records]
        return jobs(pending)[0] if pending else ()

    def _train(self, job: tuple[StagePlan, ...], narrator: Narrator) -> None:
        """Train a job, or as much of it as one Train run gets done. Raises where that is nothing."""
        try:
            patience = launch.GROWING_CLUSTER_SECONDS if self.address else 0.0
            is_done = launch.run_train(Job(job, self.store.folder.uri), partial(self._hear, narrator), patience)
        except WorkersLost:
            # What failed in the end may be far from where the run began: max_failures are each stage's own.
            is_done = False
            if job[0].key not in self.records:
                self.states[narrator.stage.key] = "ERRORED"
                raise
        except BaseException as error:
            self.states[narrator.stage.key] = "ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED"
            raise
        self._catch_up(narrator)  # a message may have been lost with the node it was on
        if is_done and job[0].key not in self.records:
            raise StageFailed(f"stage {job[0].name}: the Train run ended without a record of it in the store")

    def _hear(self, narrator: Narrator, kind: str, key: str, what: Any) -> None:
        """One message of the first worker, or of whoever watches over all of them."""
        if kind == "trouble" and narrator.stage is not None:
            self._tell("restarted", narrator.run, narrator.stage, what)
        if kind == "started" and narrator.stage is not None and key != narrator.stage.key:
            self._catch_up(narrator)
        narrator.hear(kind, key, what)
        if kind == "finished":
            self.states[key], self.records[key] = "FINISHED", what
            self._note("RUNNING")
            narrator.advance()

    def _catch_up(self, narrator: Narrator) -> None:
        """Workers pass over what they find finished, by whomever; so do we."""
        while narrator.stage is not None and (record := self.store.record(narrator.stage.key)):
            self.states[record.key], self.records[record.key] = "REUSED", record
            narrator.advance()

    def _take_turn(self, stage: StagePlan) -> None:
        self.states[stage.key] = "RUNNING"
        self._note("RUNNING")

    def _check_reused(self, stage: StagePlan) -> None:
        """The schedule may ask for more than when the stage was trained. Raises BrokenPromise."""
        try:
            check_promises(stage, self.records[stage.key].growth)
        except BrokenPromise:
            self.states[stage.key] = "ERRORED"
            raise

    def _ensure_cluster(self, stack: contextlib.ExitStack) -> None:
        if not self._connected:
            needs = [stage.training for run in self.plan.runs() for stage in run.stages]
            cpus = max(training.workers * training.cpus_per_worker for training in needs)
            gpus = max(training.workers * training.gpus_per_worker for training in needs)
            stack.enter_context(launch.cluster(self.address, cpus, gpus))
            self._connected = True

    def _tell(self, what: str, *facts: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*facts)

    # --- what stays ---------------------------------------------------------------------------

    def _note(self, state: str) -> dict[str, Any]:
        """Write down how things stand, for `raystage status` and `raystage report`."""
        report = {**build_report(self.plan, self.records, self.states, environment()), "state": state}
        self.store.write_run(self.plan.name, REPORT_FILE, report)
        self.store.write_run(
            self.plan.name,
            RUN_FILE,
            {
                "name": self.plan.name,
                "state": state,
                "started_at": self._began,
                "updated_at": time.time(),
                "wandb_run_ids": self.run_ids,
                "schedule": self.schedule.model_dump(mode="json"),
                "stages": [
                    {"run": run.name, "name": stage.name, "key": stage.key, "state": self.states[stage.key]}
                    for run in self.plan.runs()
                    for stage in run.stages
                ],
            },
        )
        return report

    def _write_papers(self, report: dict[str, Any]) -> None:
        """The report as Markdown and its figure, beside the report itself."""
        folder = self.store.run_folder(self.plan.name)
        folder.write_whole("report.md", markdown(report).encode())
        with tempfile.TemporaryDirectory() as work:
            for figure in write_curves(report, Path(work, "curves.png")):
                folder.write_whole(figure.name, figure.read_bytes())


def environment() -> dict[str, Any]:
    """What the driver ran on."""
    packages = ("raystage", "ray", "deepspeed", "torch", "transformers", "wandb")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: metadata.version(package) for package in packages if _installed(package)},
    }


def _installed(package: str) -> bool:
    return any(True for _ in metadata.distributions(name=package))
