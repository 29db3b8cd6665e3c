"""Runs a sweep: Ray Tune runs the trials; through the store, no trial trains what another one has trained.

Tune chooses the trials (grid, random, Optuna), ends those that ASHA stops, and saves the state of the search, from
which a killed sweep continues. Each trial is a driver in a Tune actor that launches Ray Train runs. LAG takes two
rounds: all trials run a short way past their growth, then the best of them continue to the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from raystage.cluster import launch
from raystage.cluster.launch import starting_cluster
from raystage.cluster.placement import release_resources_of_dead_controllers
from raystage.cluster.queries import ask_cluster, own_node
from raystage.cluster.shutdown import SHUTDOWN
from raystage.cluster.worker_group import have_all_leave
from raystage.errors import InputError, StorageError
from raystage.files.typed_json import to_json
from raystage.results.sweep_report import BestTrial, SweepReport
from raystage.storage.maintenance import finished_among
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE, SWEEP_FILE
from raystage.sweeps.config import Sweep
from raystage.sweeps.reports.build import TrialReports, build_sweep_report
from raystage.sweeps.reports.importance import importance
from raystage.sweeps.status import SweepDisplay, SweepStatus
from raystage.sweeps.trial import TrialTask, run_trial
from raystage.sweeps.trials import Planner, SweepPlan, plan_sweep
from raystage.sweeps.tune import Limited, Outcomes, Sparingly, TreeSearch, TrialTracker, make_optuna, make_scheduler

TUNE_FOLDER = "tune"
# How much the process of a trial takes of a resource that only the node of the sweep's own driver has. Tune asks for
# some resource; a CPU would be missing where the workers need all of them. Beside its own driver a trial outlives every
# other node. Ray counts in steps of 0.0001.
_TRIAL_SHARE = 0.0001
# How often the resources of trials are released that ended with their process.
RELEASE_SECONDS = 2.0

RunTrial = Callable[[Mapping[str, Any], TrialTask], None]

# Tune's own loggers would write again what the store has, in three formats, and print to the terminal.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
}


@dataclass
class SweepRunner:
    """Runs one sweep. display: shows its progress. trial: the function that runs one of its trials."""

    plan: SweepPlan
    store: Store
    task: TrialTask
    display: SweepDisplay
    address: str | None = None
    trial: RunTrial = run_trial

    def __post_init__(self) -> None:
        self._outcomes = Outcomes([one.name for one in self.plan.sweep.objective])
        self._known = TrialReports(self.store, self.name)

    @property
    def name(self) -> str:
        return self.plan.sweep.name

    def run(self) -> SweepReport:
        """Run all trials that are not finished; returns the report. Raises RaystageError, KeyboardInterrupt."""
        os.environ |= _ENVIRONMENT
        began = self._begin()
        status = SweepStatus(self.plan, self.store, self.task.command, self._outcomes.of_trials, self.display)
        try:
            cpus, gpus = room(self.plan)
            status.prepares(starting_cluster(self.address, cpus, gpus))
            with launch.cluster(self.address, cpus, gpus):
                launch.tidy(self.store.folder)
                status.prepares("starting Ray Tune and the first trials: their workers take some 20 s to load")
                self._rounds(Sparingly(lambda: self._note_meanwhile(began)))
        except BaseException as error:
            self._note("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED", began)
            status.ended(error)
            raise
        report = self._note("FINISHED", began)
        status.ended(None)
        return report

    def _rounds(self, note: Callable[[], None]) -> None:
        """The runs of Tune: one, or two with LAG. note: called whenever a trial ends."""
        lag = self.plan.sweep.scheduler.after_growth
        if lag is None:
            self._tune(TUNE_FOLDER, self.task, None, note)
            return
        self._tune(f"{TUNE_FOLDER}-pilots", replace(self.task, pilot_length=lag.count), None, note)
        pilots = [one for one in self._outcomes.of_trials() if one.eval_loss is not None]
        best = sorted(one.number for one in sorted(pilots, key=lambda one: one.eval_loss)[: lag.keep])
        self.display.say(
            f"{lag.count} {lag.unit} after their growth: on with {', '.join(f'trial {one}' for one in best)}"
        )
        self._tune(TUNE_FOLDER, self.task, best, note)

    def _tune(self, name: str, task: TrialTask, numbers: Sequence[int] | None, note: Callable[[], None]) -> None:
        """One run of Tune. If the store has its state, it continues from there."""
        folder = self.store.run_folder(self.name)
        trainable = tune.with_resources(
            tune.with_parameters(_trainable, task=task, trial=self.trial), {own_node(): _TRIAL_SHARE}
        )
        tracker = TrialTracker(self.display.say, note)
        callbacks = [tracker, ResourceReleaser(), SaveOnShutdown(self.display.say)]
        place = f"{folder.path}/{name}"
        system = None if folder.is_local else folder.system
        if tune.Tuner.can_restore(place, storage_filesystem=system):
            tuner = tune.Tuner.restore(place, trainable, resume_errored=True, storage_filesystem=system)
            tuner._local_tuner._run_config.callbacks = callbacks
            # What is restored has the number that the sweep began with.
            tuner._local_tuner._tune_config.search_alg.max_concurrent = self.plan.sweep.search.max_concurrent
        else:
            config = tune.RunConfig(
                name=name, storage_path=folder.path, storage_filesystem=system, callbacks=callbacks, verbose=0
            )
            tuner = tune.Tuner(trainable, param_space={}, tune_config=self._tune_config(numbers), run_config=config)
        self._outcomes.begin(tracker, are_pilots=task.pilot_length is not None)
        try:
            SHUTDOWN.saves_first = True
            results = tuner.fit()
        finally:
            SHUTDOWN.saves_first = False
        self._outcomes.end(results)
        if SHUTDOWN.received_at is not None:
            raise KeyboardInterrupt("asked to end, and all is saved")

    def _tune_config(self, numbers: Sequence[int] | None) -> tune.TuneConfig:
        search = self.plan.sweep.search
        runs = [trial.plan.staged for trial in self.plan.trials]
        searcher = TreeSearch(self.plan, numbers) if self.plan.is_foreseen else make_optuna(self.plan.sweep)
        return tune.TuneConfig(
            search_alg=Limited(searcher, search.max_concurrent),
            scheduler=make_scheduler(
                self.plan.sweep.scheduler, max(run.flops for run in runs), max(run.duration for run in runs)
            ),
            num_samples=len(runs) if numbers is None else len(numbers),
            # When ASHA stops a trial, Train's workers stay until the process of the trial ends.
            reuse_actors=self.plan.sweep.scheduler.name != "asha",
        )

    # --- what stays ---------------------------------------------------------------------------

    def _begin(self) -> float:
        """Write down what this sweep is. Raises InputError if the store has another sweep of this name."""
        digest = sweep_digest(self.plan)
        before = self.store.read_run(self.name, SWEEP_FILE)
        if before is None and self.store.run_folder(self.name).size_of(RUN_FILE) is not None:
            problem = f"found {self.name!r}, which is a run in the store; expected a name of its own (--name)"
            raise InputError(problem, key="name")
        if before is not None and before["digest"] != digest:
            raise InputError(
                f"found {self.name!r}, of which the store has another one, with other trials; "
                f"expected a name of its own (--name), or the sweep as it was",
                key="name",
            )
        began = before["started_at"] if before else time.time()
        self.store.write_run(
            self.name, SWEEP_FILE, {"digest": digest, "started_at": began, "command": self.task.command}
        )
        return began

    def _note(self, state: str, began: float) -> SweepReport:
        is_running = state == "RUNNING"
        outcomes = [replace(one, is_running=one.is_running and is_running) for one in self._outcomes.of_trials()]
        runs = self._known.runs(outcomes)
        records = self._known.records(runs.values())
        report = build_sweep_report(self.plan, outcomes, runs, records, state, time.time() - began)
        report = replace(
            report,
            importance=importance(report.trials, report.objective[0], self.plan.sweep.points.dimensions),
            best=report.best and self._with_schedule(report.best),
        )
        self.store.write_run(self.name, REPORT_FILE, to_json(report))
        return report

    def _with_schedule(self, best: BestTrial) -> BestTrial:
        return replace(best, schedule=Planner(self.plan.sweep).trial(best.number, best.config).content)

    def _note_meanwhile(self, began: float) -> None:
        """If the store does not answer now, the report is written the next time."""
        with contextlib.suppress(StorageError):
            self._note("RUNNING", began)


class ResourceReleaser(tune.Callback):
    """Releases the resources of trials that ended with their process, so that others can use them."""

    def __init__(self) -> None:
        self._released_at = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._released_at >= RELEASE_SECONDS:
            with contextlib.suppress(Exception):  # it is tried again in a moment
                ask_cluster(release_resources_of_dead_controllers)
            self._released_at = time.monotonic()


class SaveOnShutdown(tune.Callback):
    """When this process is asked to end, lets the workers of all trials save first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks, but gets new ones when it continues. Nothing of this one is needed."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        SHUTDOWN.check()
        if SHUTDOWN.received_at is None:
            return
        asked = f"asked to end ({SHUTDOWN.signal.name})"
        self._say(f"{asked}: the workers of all trials save and leave")
        if not have_all_leave(SHUTDOWN.check):
            raise KeyboardInterrupt(f"{asked} while no worker had anything to save")
        raise KeyboardInterrupt("asked to end, and all is saved")


def _trainable(config: Mapping[str, Any], task: TrialTask, trial: RunTrial) -> None:
    """The function of a trial, with a signature that Tune accepts."""
    # Tune waits this long for the function to return before it runs another trial in the process; then that one fails.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    trial(config["trial"], task)


def plan_with_store(sweep: Sweep, store: Store) -> SweepPlan:
    """The plan of a sweep, in which stages that the store has finished count as done."""
    plan = plan_sweep(sweep)
    if plan.is_foreseen and (finished := finished_among(store, plan.keys())):
        return plan_sweep(sweep, finished)
    return plan


def room(plan: SweepPlan) -> tuple[int, int]:
    """The CPUs and GPUs that let as many trials train at a time as the sweep asks for."""
    needs = [stage.training for trial in plan.trials for run in trial.plan.runs() for stage in run.stages]
    at_once = min(plan.sweep.search.max_concurrent, len(plan.trials))
    cpus = at_once * max(training.workers.most * training.cpus_per_worker for training in needs)
    gpus = at_once * max(training.workers.most * training.gpus_per_worker for training in needs)
    return cpus, gpus


def sweep_digest(plan: SweepPlan) -> str:
    """A hash of what identifies this sweep: its trials, or what they are chosen from."""
    sweep = plan.sweep
    facts = {
        "trials": [trial.plan.staged.stages[-1].key for trial in plan.trials],
        "search": sweep.search.model_dump(mode="json", exclude={"max_concurrent"}),
        "scheduler": sweep.scheduler.model_dump(mode="json"),
        "objective": [one.model_dump(mode="json") for one in sweep.objective],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
