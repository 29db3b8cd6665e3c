"""Carries out a schedule: reuses or trains each stage, then the baselines, then writes the report.

Finished stages are in the store under their keys. So the driver keeps no state of its own: one that was killed and
starts again finds the finished stages and continues with the first one that is not finished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from raystage.cluster import launch
from raystage.config.schedule import Schedule
from raystage.errors import GrowthRejected, NonFiniteLoss, StageFailed, StageRejected, StorageError, WorkersLost
from raystage.files.retry import brief
from raystage.files.typed_json import to_json
from raystage.planning.build import replanned, with_choice
from raystage.plans.gates import ABORT, Rejection, answer
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.reports.build import GivenUp, build_report
from raystage.results.acceptance import check_growth, reasons_against
from raystage.results.record import StageRecord
from raystage.results.report import RunReport
from raystage.results.tuning import choose, tried_with
from raystage.runs.ahead import Ending, job_after
from raystage.runs.events import EventReplay, RunCallback
from raystage.runs.publish import publish
from raystage.runs.surroundings import surroundings
from raystage.runs.turns import next_turn
from raystage.storage.claims import Claim, Claims
from raystage.storage.jobs import Job, jobs
from raystage.storage.lease import Leases
from raystage.storage.processes import LeaseHolder
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE
from raystage.timers import Seldom

# With many stages it takes long to write down the state of a run. This share of the time may go into it.
_NOTES_SHARE = 0.02


@dataclass
class Driver:
    """Carries out one schedule. `states` has the state of every stage by its key, `records` what is finished.

    plan: changes when a gate rejects a stage, and once it is known which values further seeds train; `written` is the
    plan of the schedule as it was written. tried: what was not accepted. discarded: the finished stages of plans that
    were given up; they count as compute spent. draws: whether the curves are drawn at the end, as image files.
    command: what starts the run again. patience_seconds: how long to wait for nodes that the cluster lacks.
    is_alone: whether no other driver trains the same plan in part. Then workers of the next job are started while the
    present one ends, where there is room; else drivers take turns.
    """

    plan: Plan
    schedule: Schedule
    store: Store
    callbacks: Sequence[RunCallback] = ()
    address: str | None = None
    run_ids: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    records: dict[str, StageRecord] = field(default_factory=dict)
    tried: tuple[Rejection, ...] = ()
    discarded: dict[str, StagePlan] = field(default_factory=dict)
    claims: Claims | None = None
    is_connected: bool = False
    draws: bool = True
    command: str | None = None
    patience_seconds: float = 0.0
    is_alone: bool = True
    events: EventReplay = field(init=False)
    _began: float = 0.0
    _surroundings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written = self._noted = self.plan
        self._notes = Seldom(lambda: self._note("RUNNING"), _NOTES_SHARE)
        self._look()
        self._choose()

    def _look(self) -> None:
        """Look up which stages of the plan are finished; a stage that several runs share is looked up once."""
        for key in self.plan.stages_by_key().keys() - self.records.keys():
            record = self.store.record(key)
            self.states[key] = "REUSED" if record else "SCHEDULING"
            if record:
                self.records[key] = record
        self.claims = self.claims or Claims(self.store, Leases(self.store.folder / "stages"))

    def run(self) -> RunReport:
        """Carry out the whole plan; returns the report. Raises RaystageError, after writing down the state."""
        self._began = time.time()
        self._surroundings = surroundings(self._began, self.command)
        self._note("RUNNING")
        self.events = EventReplay(self.plan.runs(), self.records, self.callbacks, self._training_begins)
        try:
            with contextlib.ExitStack() as stack:
                self._go_on()
                while job := self._next_job():
                    self._carry_out(job, stack)
        except BaseException as error:
            self._note("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED")
            raise
        return self._published(self._note("FINISHED"))

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self._first_rejected() is None and self.records.keys() >= self.plan.stages_by_key().keys()

    # --- training -----------------------------------------------------------------------------

    def _next_job(self) -> tuple[StagePlan, ...]:
        """The next stages to train, which the same workers train one after the other; none if all is finished."""
        if not self.is_alone:
            return next_turn(self.plan.known_runs(), self.records, self.claims.free)
        pending = self._pending()
        return jobs(pending)[0] if pending else ()

    def _pending(self) -> list[StagePlan]:
        """The stages that are not finished, in the order in which they are trained."""
        stages = {stage.key: stage for run in self.plan.known_runs() for stage in run.stages}
        return [stage for key, stage in stages.items() if key not in self.records]

    def _coming(self, present: tuple[StagePlan, ...], ending: Ending) -> Job | None:
        """The job after this one, if it is time to start its workers: those of this one cannot train it, and no other
        driver does."""
        coming = job_after(present, self._pending()) if self.is_alone and ending.is_near else ()
        with contextlib.suppress(StorageError):  # asked again in a moment
            return self._job(coming) if coming and brief(partial(self.claims.free, coming))() else None
        return None

    def _job(self, stages: tuple[StagePlan, ...]) -> Job:
        return Job(stages, self.store.folder.uri, self.plan.name)

    def _carry_out(self, job: tuple[StagePlan, ...], stack: contextlib.ExitStack) -> None:
        """Train the stages of a job that no other driver trains. If another one trains even its first stage, wait until
        that stage is free or finished."""
        if not self.claims.free(job):
            launch.dismiss()  # a driver that waits must not hold CPUs or GPUs
            self.claims.wait(job[:1], self._waits_for)
            self._catch_up()
            return
        self._ensure_cluster(stack)
        with self.claims.take(self.claims.free(job)) as claim:
            if claim is None:  # another driver was faster
                self._catch_up()
            else:
                self._train(claim)

    def _train(self, claim: Claim) -> None:
        """Train the stages of a claim, or as many as one Train run finishes. Raises if that is none."""
        job, ending = claim.stages, Ending(claim.stages[-1])
        self.events.train(job[0])

        def hear(kind: str, key: str, what: Any) -> None:
            claim.check()
            ending.hear(kind, key, what)
            self._hear(kind, key, what)
            self._notes.look()

        def coming() -> Job | None:
            return self._coming(job, ending)

        try:
            is_done = launch.run_train(self._job(job), hear, self.patience_seconds, coming)
        except WorkersLost:
            # The Train run may have finished several stages before it failed, and max_failures counts for each stage.
            is_done = False
            if job[0].key not in self.records:
                self._mark("ERRORED", job)
                raise
        except GrowthRejected as error:
            self._reject(self.events.stage, (str(error),), error)
            self._go_on()
            return
        except BaseException as error:
            stage = self._mark("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED", job)
            run = next((one for one in self.plan.known_runs() if stage in one.stages), self.events.run)
            tried = tried_with(self.plan, run.name) if isinstance(error, NonFiniteLoss) else ""
            if tried:
                where = f"this was {run.name}, with which baseline.tune tries {tried}"
                raise NonFiniteLoss(f"{error}. {where}: remove this value from the list") from None
            raise
        self._catch_up()  # a message may have been lost together with the node it was on
        if is_done and job[0].key not in self.records:
            raise StageFailed(f"stage {job[0].name}: the Train run ended without a record of it in the store")

    def _mark(self, state: str, job: tuple[StagePlan, ...]) -> StagePlan:
        """Set the state of the job's first stage that is not finished, and return it; of its last, if all are."""
        stage = next((one for one in job if one.key not in self.records), job[-1])
        if stage.key not in self.records:
            self.states[stage.key] = state
        return stage

    def _hear(self, kind: str, key: str, what: Any) -> None:
        """A message of the first worker, or of the watchdog."""
        if kind == "started" and self.events.stage is not None and key != self.events.stage.key:
            self._catch_up()
        self.events.hear(kind, key, what)
        if kind == "finished":
            self.states[key], self.records[key] = "FINISHED", what
            self._ask_for_note()
            self._go_on()

    def _waits_for(self, stage: StagePlan, holder: LeaseHolder) -> None:
        self.events.tell("waiting", self.events.run, stage, f"{holder}, which trains it")

    def _catch_up(self) -> None:
        """Workers skip stages that another process has finished; so does this driver."""
        while self.events.stage is not None and (record := self.store.record(self.events.stage.key)):
            self.states[record.key], self.records[record.key] = "REUSED", record
            self._go_on()

    def _training_begins(self, stage: StagePlan) -> None:
        self.states[stage.key] = "RUNNING"
        self._ask_for_note()

    # --- gates --------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Judge what is finished, plan again if a stage is rejected, and tell of all before the next stage to train."""
        while rejected := self._first_rejected():
            stage, reasons, error = rejected
            self.events.advance(up_to=stage.key)
            self._reject(stage, reasons, error)
        if self._choose():
            self.events.follow(self.plan.runs())
        self.events.advance()

    def _choose(self) -> bool:
        """Have further seeds train the best values, as soon as these are known. Returns whether that was now.

        A driver that starts again finds the same records, and makes the same choice.
        """
        choice = None if self.plan.is_chosen else choose(self.plan, self.records)
        if choice is None:
            return False
        self.plan = with_choice(self.plan, self.schedule, choice)
        self._look()
        return True

    def _first_rejected(self) -> tuple[StagePlan, tuple[str, ...], StageFailed] | None:
        """The first finished stage of the staged run, or further member of one, that is not accepted, why, and the
        error that says so."""
        for stage in self.plan.staged.stages:
            ensemble = self.plan.ensemble_of(stage.key)
            for one in (*(ensemble.members[1:] if ensemble else ()), stage):
                if one.key in self.records and (rejected := _rejected(one, self.records[one.key])):
                    return rejected
            if stage.key not in self.records:
                return None
        return None

    def _reject(self, stage: StagePlan, reasons: tuple[str, ...], error: StageFailed) -> None:
        """Do what the schedule says about a stage that is not accepted. Raises `error` if it says to stop."""
        run = self._judged_run(stage)
        if run is None:  # a run that no gate answers for
            self.states[stage.key] = "ERRORED"
            raise error
        index = [one.key for one in run.stages].index(stage.key)
        rejection = answer(self.schedule, index, stage.key, reasons, self.tried)
        self.events.tell("rejected", run, stage, rejection)
        self.tried = (*self.tried, rejection)
        if rejection.action == ABORT:
            self.states[stage.key] = "ERRORED"
            raise error
        begun = list(self.plan.staged.stages[: index + 1])
        begun += [one for stage in begun if (ensemble := self.plan.ensemble_of(stage.key)) for one in ensemble.members]
        given_up = {one.key: one for one in begun if one.key in self.records}
        self.plan = replanned(self.schedule, self.written, self.tried)
        kept = self.plan.stages_by_key()
        self.discarded = {key: one for key, one in (self.discarded | given_up).items() if key not in kept}
        self._look()
        self.events.follow(self.plan.runs())

    def _judged_run(self, stage: StagePlan) -> RunPlan | None:
        """The staged run, or that of a member, whichever has the stage; None for a stage of another run."""
        runs = (self.plan.staged, *(run for ensemble in self.plan.ensembles for run in ensemble.runs))
        return next((run for run in runs if stage.key in [one.key for one in run.stages]), None)

    def _ensure_cluster(self, stack: contextlib.ExitStack) -> None:
        if not self.is_connected:
            needs = [stage.training for run in self.plan.runs() for stage in run.stages]
            cpus = max(training.workers.most * training.cpus_per_worker for training in needs)
            gpus = max(training.workers.most * training.gpus_per_worker for training in needs)
            self.events.tell("preparing", launch.starting_cluster(self.address, cpus, gpus))
            stack.enter_context(launch.cluster(self.address, cpus, gpus))
            launch.tidy(self.store.folder)
            self.is_connected = True

    # --- files --------------------------------------------------------------------------------

    def _published(self, report: RunReport) -> RunReport:
        return publish(self.store, report, self.draws)

    def _ask_for_note(self) -> None:
        """Have the state written down soon. A plan that has changed cannot wait: what is written keeps its stages from
        being removed."""
        self._notes.ask(at_once=self.plan is not self._noted)

    def _note(self, state: str) -> RunReport:
        """Write down the state of the run, for `raystage status` and `raystage report`."""
        self._noted = self.plan
        given_up = GivenUp(self.tried, tuple(self.discarded.values()))
        report = build_report(self.plan, self.records, self.states, self._surroundings, given_up)
        report = replace(report, state=state)
        self.store.write_run(self.plan.name, REPORT_FILE, to_json(report))
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


def _rejected(stage: StagePlan, record: StageRecord) -> tuple[StagePlan, tuple[str, ...], StageFailed] | None:
    """The finished stage, why it is not accepted, and the error that says so; None if it is."""
    try:
        check_growth(stage, record.growth)  # the schedule may demand more now than when the stage was trained
    except GrowthRejected as error:
        return stage, (str(error),), error
    reasons = reasons_against(stage, record)
    if not reasons:
        return None
    return stage, reasons, StageRejected(f"stage {stage.name}: not accepted: {'; '.join(reasons)}")
