"""A schedule carried out: each stage reused or trained, then the baselines, then the report.

What is finished is in the store under its key. So a driver that is killed needs no memory of its own:
started again, it finds what is there and goes on with the first stage that is not.
"""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from raystage import launch
from raystage.errors import BrokenPromise, StageFailed
from raystage.figures import write_curves
from raystage.lease import Leases
from raystage.plan import Plan, RunPlan, StagePlan
from raystage.promises import check_promises
from raystage.record import Evaluation, Listener, Progress, StageRecord, TrainPoint
from raystage.report import build_report, markdown
from raystage.schedule import Schedule
from raystage.store import Store
from raystage.turns import Turn, Turns
from raystage.worker import Job

RUN_FILE = "run.json"
REPORT_FILE = "report.json"

Point = TrainPoint | Evaluation


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
    turns: Turns | None = None
    _began: float = 0.0
    _connected: bool = False

    def __post_init__(self) -> None:
        """Look once for what is finished; stages that several runs share are looked for once, too."""
        for key in {stage.key for run in self.plan.runs() for stage in run.stages}:
            record = self.store.record(key)
            self.states[key] = "REUSED" if record else "SCHEDULING"
            if record:
                self.records[key] = record
        self.turns = self.turns or Turns(self.store, Leases(self.store.folder / "stages"))

    def run(self) -> dict[str, Any]:
        """Carry out the whole plan; returns the report. Raises RaystageError, after noting the state."""
        self._began = time.time()
        self._note("RUNNING")
        try:
            with contextlib.ExitStack() as stack:
                for run in self.plan.runs():
                    self._carry_out(run, stack)
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

    # --- one run ------------------------------------------------------------------------------

    def _carry_out(self, run: RunPlan, stack: contextlib.ExitStack) -> None:
        self._tell("run_started", run)
        for job in run.jobs():
            pending = self._reuse_finished(run, job)
            while pending and not self._train_alone(run, pending, stack):
                pending = self._reuse_finished(run, pending)
        self._tell("run_finished", run, tuple(self.records[stage.key] for stage in run.stages))

    def _reuse_finished(self, run: RunPlan, stages: tuple[StagePlan, ...]) -> tuple[StagePlan, ...]:
        """Tell of what is finished, here or by another driver meanwhile; returns what is not."""
        for stage in stages:
            if stage.key not in self.records and (record := self.store.record(stage.key)):
                self.states[stage.key], self.records[stage.key] = "REUSED", record
            if stage.key in self.records:
                self._reuse(run, stage)
        return tuple(stage for stage in stages if stage.key not in self.records)

    def _train_alone(self, run: RunPlan, pending: tuple[StagePlan, ...], stack: contextlib.ExitStack) -> bool:
        """Train once nobody else does. False where somebody else came first: some of it may now be finished."""
        if not self.turns.wait(pending, lambda stage, holder: self._tell("waiting", run, stage, holder)):
            return False
        self._ensure_cluster(stack)
        with self.turns.take(pending) as turn:
            if turn is not None:
                self._train(run, pending, turn)
        return turn is not None

    def _reuse(self, run: RunPlan, stage: StagePlan) -> None:
        """Tell of a finished stage as if it had just been trained."""
        record = self.records[stage.key]
        try:
            check_promises(stage, record.growth)  # the schedule may ask for more than when it was trained
        except BrokenPromise:
            self.states[stage.key] = "ERRORED"
            raise
        self._tell("stage_started", run, stage, True)
        if record.growth:
            self._tell("grown", run, stage, record.growth)
        for point in in_order(record.train, record.evaluations):
            self._tell(_kind(point), run, stage, point)
        self._tell("stage_finished", run, stage, record, True)

    def _train(self, run: RunPlan, pending: tuple[StagePlan, ...], turn: Turn) -> None:
        narrator = Narrator(run, pending, self._tell, self._finished, self._stage_started)

        def hear(kind: str, key: str, what: Any) -> None:
            turn.check()
            narrator.hear(kind, key, what)

        try:
            patience = launch.GROWING_CLUSTER_SECONDS if self.address else 0.0
            launch.run_train(Job(pending, self.store.folder.uri), hear, patience)
        except BaseException as error:
            current = narrator.current or pending[0]
            self.states[current.key] = "ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED"
            raise
        for stage in pending:
            if stage.key not in self.records:
                raise StageFailed(f"stage {stage.name}: the Train run ended without a record of it in the store")

    def _stage_started(self, stage: StagePlan) -> None:
        self.states[stage.key] = "RUNNING"
        self._note("RUNNING")

    def _finished(self, stage: StagePlan, record: StageRecord) -> None:
        self.states[stage.key], self.records[stage.key] = "FINISHED", record
        self._note("RUNNING")

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


class Narrator:
    """Turns what the workers of a Train run say into calls of a listener, each thing told once.

    A worker that starts again goes back to its last checkpoint and says what it has said before.
    """

    def __init__(
        self,
        run: RunPlan,
        stages: tuple[StagePlan, ...],
        tell: Callable[..., None],
        finished: Callable[[StagePlan, StageRecord], None],
        started: Callable[[StagePlan], None],
    ) -> None:
        self._run, self._stages = run, {stage.key: stage for stage in stages}
        self._tell, self._finished, self._started = tell, finished, started
        self._furthest: dict[tuple[str, str], int] = {}
        self._grown: set[str] = set()
        self.current: StagePlan | None = None
        self._announce(stages[0])

    def hear(self, kind: str, key: str, what: Any) -> None:
        """One message of the first worker."""
        stage = self._stages.get(key)
        if stage is None:
            return
        match kind:
            case "started":
                self._start(stage, what)
            case "resumed":
                self._replay(stage, what)
            case "grown":
                self._grow(stage, what)
            case "trained" | "evaluated":
                self._point(stage, what)
            case "saved":
                self._tell("saved", self._run, stage, what)
            case "finished":
                self._tell("stage_finished", self._run, stage, what, False)
                self._finished(stage, what)

    def _announce(self, stage: StagePlan) -> None:
        self.current = stage
        self._tell("stage_started", self._run, stage, False)
        self._started(stage)
        self._entered = False

    def _start(self, stage: StagePlan, steps_done: int) -> None:
        if stage is not self.current:
            self._announce(stage)
        elif self._entered:
            self._tell("restarted", self._run, stage, f"the workers were started again, from step {steps_done}")
        self._entered = True

    def _replay(self, stage: StagePlan, progress: Progress) -> None:
        if progress.growth:
            self._grow(stage, progress.growth)
        for point in in_order(progress.train, progress.evaluations):
            self._point(stage, point)

    def _grow(self, stage: StagePlan, growth: Any) -> None:
        if stage.key not in self._grown:
            self._grown.add(stage.key)
            self._tell("grown", self._run, stage, growth)

    def _point(self, stage: StagePlan, point: Point) -> None:
        kind = _kind(point)
        if point.tokens > self._furthest.get((stage.key, kind), -1):
            self._furthest[stage.key, kind] = point.tokens
            self._tell(kind, self._run, stage, point)


def in_order(train: Sequence[TrainPoint], evaluations: Sequence[Evaluation]) -> list[Point]:
    """The points of both curves as they came: by tokens, training before the evaluation of it."""
    return sorted([*train, *evaluations], key=lambda point: (point.tokens, isinstance(point, Evaluation)))


def _kind(point: Point) -> str:
    return "evaluated" if isinstance(point, Evaluation) else "trained"


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
