"""A schedule carried out: each stage reused or trained, then the baselines, then the report.

What is finished is in the store under its key. So a driver that is killed needs no memory of its own:
started again, it finds what is there and goes on with the first stage that is not.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystage.cluster import launch
from raystage.config.schedule import Schedule
from raystage.errors import BrokenPromise, NonFiniteLoss, StageFailed, StageRejected, WorkersLost
from raystage.plan.build import Plan, StagePlan, jobs, with_choice
from raystage.plan.gates import judge
from raystage.plan.plan import Job
from raystage.plan.retries import ABORT, Rejection, answer, replanned
from raystage.report.build import GivenUp, build_report
from raystage.report.figures import write_curves
from raystage.report.html import page
from raystage.report.markdown import markdown
from raystage.results.acceptance import check_promises
from raystage.results.record import StageRecord
from raystage.results.tuning import choose, tried_with
from raystage.run.events import Listener
from raystage.run.narrator import Narrator
from raystage.run.surroundings import surroundings
from raystage.storage.claims import Turn, Turns
from raystage.storage.lease import Leases
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE


@dataclass
class Driver:
    """Carries out one schedule. `states` has the state of every stage by its key, `records` what is finished.

    plan: changes where a gate rejects a stage, and once it is known which values further seeds train; `written` is that
    of the schedule as it was written. tried: what was not accepted. discarded: the stages, finished, of plans that were
    given up; they count as compute spent. draws: whether the curves are drawn at the end, as image files.
    command: what starts the run again.
    """

    plan: Plan
    schedule: Schedule
    store: Store
    listeners: Sequence[Listener]
    address: str | None = None
    run_ids: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, StageRecord] = field(default_factory=dict)
    tried: tuple[Rejection, ...] = ()
    discarded: dict[str, StagePlan] = field(default_factory=dict)
    turns: Turns | None = None
    is_connected: bool = False
    draws: bool = True
    command: str | None = None
    _began: float = 0.0
    _surroundings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written = self.plan
        self._look()
        self._choose()

    def _look(self) -> None:
        """Look for what of the plan is finished; stages that several runs share are looked for once."""
        for key in self.plan.stages_by_key().keys() - self.records.keys():
            record = self.store.record(key)
            self.states[key] = "REUSED" if record else "SCHEDULING"
            if record:
                self.records[key] = record
        self.turns = self.turns or Turns(self.store, Leases(self.store.folder / "stages"))

    def run(self) -> dict[str, Any]:
        """Carry out the whole plan; returns the report. Raises RaystageError, after noting the state."""
        self._began = time.time()
        self._surroundings = surroundings(self._began, self.command)
        self._note("RUNNING")
        narrator = Narrator(self.plan.runs(), self.records, self._tell, self._take_turn)
        try:
            with contextlib.ExitStack() as stack:
                self._go_on(narrator)
                while job := self._next_job():
                    self._train_alone(job, narrator, stack)
        except BaseException as error:
            self._note("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED")
            raise
        report = self._note("FINISHED")
        self._write_papers(report)
        return report

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self._first_rejected() is None and self.records.keys() >= self.plan.stages_by_key().keys()

    # --- training -----------------------------------------------------------------------------

    def _next_job(self) -> tuple[StagePlan, ...]:
        """The stages that are to be trained next by one and the same workers; none where all is finished."""
        stages = {stage.key: stage for run in self.plan.known_runs() for stage in run.stages}
        pending = [stage for key, stage in stages.items() if key not in self.records]
        return jobs(pending)[0] if pending else ()

    def _train_alone(self, job: tuple[StagePlan, ...], narrator: Narrator, stack: contextlib.ExitStack) -> None:
        """Train what of a job nobody else trains. Where that is not even its first stage, wait until it is, or until it
        is finished."""
        if not self.turns.free(job):
            launch.dismiss()  # who waits holds no CPU or GPU
            self.turns.wait(job[:1], lambda stage, holder: self._wait(narrator, stage, f"{holder}, which trains it"))
            self._catch_up(narrator)
            return
        self._ensure_cluster(stack)
        with self.turns.take(self.turns.free(job)) as turn:
            if turn is None:  # somebody was faster
                self._catch_up(narrator)
            else:
                self._train(turn, narrator)

    def _train(self, turn: Turn, narrator: Narrator) -> None:
        """Train the stages of a turn, or as many as one Train run gets done. Raises where that is none."""
        job = turn.stages
        narrator.begin()

        def hear(kind: str, key: str, what: Any) -> None:
            turn.check()
            self._hear(narrator, kind, key, what)

        try:
            patience = launch.GROWING_CLUSTER_SECONDS if self.address else 0.0
            is_done = launch.run_train(Job(job, self.store.folder.uri, self.plan.name), hear, patience)
        except WorkersLost:
            # What failed in the end may be far from where the run began: max_failures are each stage's own.
            is_done = False
            if job[0].key not in self.records:
                self._mark(narrator.stage, "ERRORED")
                raise
        except BrokenPromise as error:
            self._reject(narrator, narrator.stage, (str(error),), error)
            self._go_on(narrator)
            return
        except BaseException as error:
            self._mark(narrator.stage, "ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED")
            tried = tried_with(self.plan, narrator.run.name) if isinstance(error, NonFiniteLoss) else ""
            if tried:
                where = f"that was {narrator.run.name}, with which baseline.tune tries {tried}"
                raise NonFiniteLoss(f"{error}. {where}: take it off the list") from None
            raise
        self._catch_up(narrator)  # a message may have been lost with the node it was on
        if is_done and job[0].key not in self.records:
            raise StageFailed(f"stage {job[0].name}: the Train run ended without a record of it in the store")

    def _mark(self, stage: StagePlan | None, state: str) -> None:
        """Note what became of the stage whose turn it is. None where all were finished already."""
        if stage is not None:
            self.states[stage.key] = state

    def _hear(self, narrator: Narrator, kind: str, key: str, what: Any) -> None:
        """One message of the first worker, or of whoever watches over all of them."""
        if kind == "trouble" and narrator.stage is not None:
            self._tell("restarted", narrator.run, narrator.stage, what)
        if kind == "preparing":
            self._tell("preparing", what)
        if kind == "waiting" and narrator.stage is not None:
            self._wait(narrator, narrator.stage, what)
        if kind == "started" and narrator.stage is not None and key != narrator.stage.key:
            self._catch_up(narrator)
        narrator.hear(kind, key, what)
        if kind == "finished":
            self.states[key], self.records[key] = "FINISHED", what
            self._note("RUNNING")
            self._go_on(narrator)

    def _wait(self, narrator: Narrator, stage: StagePlan, for_what: str) -> None:
        self._tell("waiting", narrator.run, stage, for_what)

    def _catch_up(self, narrator: Narrator) -> None:
        """Workers pass over what they find finished, by whomever; so do we."""
        while narrator.stage is not None and (record := self.store.record(narrator.stage.key)):
            self.states[record.key], self.records[record.key] = "REUSED", record
            self._go_on(narrator)

    def _take_turn(self, stage: StagePlan) -> None:
        self.states[stage.key] = "RUNNING"
        self._note("RUNNING")

    # --- gates --------------------------------------------------------------------------------

    def _go_on(self, narrator: Narrator) -> None:
        """Judge what is finished, plan anew where that is rejected, and tell of all up to the next stage to train."""
        while rejected := self._first_rejected():
            stage, reasons, error = rejected
            narrator.advance(up_to=stage.key)
            self._reject(narrator, stage, reasons, error)
        if self._choose():
            narrator.follow(self.plan.runs())
        narrator.advance()

    def _choose(self) -> bool:
        """Have further seeds train the best values, as soon as these are known; whether that was now.

        A driver that starts again finds the same records, and comes to the same choice.
        """
        choice = None if self.plan.is_chosen else choose(self.plan, self.records)
        if choice is None:
            return False
        self.plan = with_choice(self.plan, self.schedule, choice)
        self._look()
        return True

    def _first_rejected(self) -> tuple[StagePlan, tuple[str, ...], StageFailed] | None:
        """The first finished stage of the staged run that is not accepted, why, and the error that says so."""
        for stage in self.plan.staged.stages:
            if stage.key not in self.records:
                return None
            record = self.records[stage.key]
            try:
                check_promises(stage, record.growth)  # the schedule may ask for more than when it was trained
            except BrokenPromise as error:
                return stage, (str(error),), error
            reasons = judge(stage.accept, record) if stage.accept else ()
            if reasons:
                return stage, reasons, StageRejected(f"stage {stage.name}: not accepted: {'; '.join(reasons)}")
        return None

    def _reject(self, narrator: Narrator, stage: StagePlan, reasons: tuple[str, ...], error: StageFailed) -> None:
        """Do what the schedule says about a stage that is not accepted. Raises `error` where that is to stop."""
        index = [one.key for one in self.plan.staged.stages].index(stage.key)
        rejection = answer(self.schedule, index, stage.key, reasons, self.tried)
        self._tell("rejected", self.plan.staged, stage, rejection)
        self.tried = (*self.tried, rejection)
        if rejection.action == ABORT:
            self.states[stage.key] = "ERRORED"
            raise error
        given_up = {one.key: one for one in self.plan.staged.stages[: index + 1] if one.key in self.records}
        self.plan = replanned(self.schedule, self.written, self.tried)
        kept = {one.key for one in self.plan.staged.stages}
        self.discarded = {key: one for key, one in (self.discarded | given_up).items() if key not in kept}
        self._look()
        narrator.follow(self.plan.runs())

    def _ensure_cluster(self, stack: contextlib.ExitStack) -> None:
        if not self.is_connected:
            needs = [stage.training for run in self.plan.runs() for stage in run.stages]
            cpus = max(training.workers * training.cpus_per_worker for training in needs)
            gpus = max(training.workers * training.gpus_per_worker for training in needs)
            self._tell("preparing", launch.starting_cluster(self.address, cpus, gpus))
            stack.enter_context(launch.cluster(self.address, cpus, gpus))
            launch.tidy(self.store.folder)
            self.is_connected = True

    def _tell(self, what: str, *facts: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*facts)

    # --- what stays ---------------------------------------------------------------------------

    def _note(self, state: str) -> dict[str, Any]:
        """Write down how things stand, for `raystage status` and `raystage report`."""
        given_up = GivenUp(self.tried, tuple(self.discarded.values()))
        report = {**build_report(self.plan, self.records, self.states, self._surroundings, given_up), "state": state}
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
                "written_keys": [stage.key for run in self.written.runs() for stage in run.stages],
                "discarded_keys": list(self.discarded),
                "schedule_as_set": self.schedule.content(),
                "stages": [
                    {"run": run.name, "name": stage.name, "key": stage.key, "state": self.states[stage.key]}
                    for run in self.plan.runs()
                    for stage in run.stages
                ],
            },
        )
        return report

    def _write_papers(self, report: dict[str, Any]) -> None:
        """The report as a page, as Markdown and as its figures, beside the report itself."""
        folder = self.store.run_folder(self.plan.name)
        folder.write_whole("report.html", page([(report, self.store.read_run(self.plan.name, RUN_FILE))]).encode())
        folder.write_whole("report.md", markdown(report).encode())
        if self.draws:
            with tempfile.TemporaryDirectory() as work:
                for figure in write_curves(report, Path(work, "curves.png")):
                    folder.write_whole(figure.name, figure.read_bytes())
