"""A sweep carried out: Ray Tune runs the trials, the store sees to it that none trains what another one did.

Tune chooses (grid, random, Optuna), stops what ASHA gives up, and keeps the search's state, from which a sweep that
was killed goes on. Each trial is a driver in an actor of Tune's that launches Ray Train runs. LAG's choice takes two
rounds: all trials a little way past their growth, then the best of them to the end, going on from where they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raystage import launch
from raystage.errors import InputError, RaystageError
from raystage.importance import importance
from raystage.record import StageRecord
from raystage.searchers import TreeSearch, make_optuna, make_scheduler
from raystage.store import Store
from raystage.sweep_report import TrialOutcome, build_sweep_report
from raystage.trial_run import TrialTask, run_trial
from raystage.trials import Planner, SweepPlan

SWEEP_FILE = "sweep.json"
REPORT_FILE = "report.json"
TUNE_FOLDER = "tune"
# A trial's own actor computes nothing; 0 is refused.
TRIAL_CPUS = 0.01

Say = Callable[[str], None]
RunTrial = Callable[[Mapping[str, Any], TrialTask], None]

# Tune's own loggers write what the store has, in three formats; its last words go to the terminal.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
}


@dataclass
class Search:
    """Carries out one sweep. say: told of every trial that ends, in a line. trial: what carries out one of them."""

    plan: SweepPlan
    store: Store
    task: TrialTask
    say: Say
    address: str | None = None
    trial: RunTrial = run_trial

    @property
    def name(self) -> str:
        return self.plan.sweep.name

    def run(self) -> dict[str, Any]:
        """Run all trials that are not done; returns the sweep's report. Raises RaystageError, KeyboardInterrupt."""
        os.environ |= _ENVIRONMENT
        began = self._begin()
        outcomes: list[TrialOutcome] = []
        try:
            with launch.cluster(self.address, *room(self.plan)):
                outcomes = self._rounds()
        except BaseException as error:
            self._note("ABORTED" if isinstance(error, KeyboardInterrupt) else "ERRORED", outcomes, began)
            raise
        return self._note("FINISHED", outcomes, began)

    def _rounds(self) -> list[TrialOutcome]:
        """Tune's runs: one, or LAG's two."""
        lag = self.plan.sweep.scheduler.after_growth
        if lag is None:
            return self._tuned(TUNE_FOLDER, self.task, None)
        pilots = self._tuned(f"{TUNE_FOLDER}-pilots", replace(self.task, pilot_tokens=lag.tokens), None)
        ranked = sorted((one for one in pilots if one.eval_loss is not None), key=lambda one: one.eval_loss)
        best = {one.number for one in ranked[: lag.keep]}
        self.say(f"{lag.tokens} tokens after their growth: on with {', '.join(f'trial {one}' for one in sorted(best))}")
        finals = {one.number: one for one in self._tuned(TUNE_FOLDER, self.task, sorted(best))}
        return [finals.get(one.number) or replace(one, is_stopped=True) for one in pilots]

    def _tuned(self, name: str, task: TrialTask, numbers: Sequence[int] | None) -> list[TrialOutcome]:
        folder = self.store.run_folder(self.name)
        trainable = tune.with_resources(
            tune.with_parameters(_trainable, task=task, trial=self.trial), {"CPU": TRIAL_CPUS}
        )
        callbacks = [_Teller(self.say)]
        place = f"{folder.path}/{name}"
        system = None if folder.is_local else folder.system
        if tune.Tuner.can_restore(place, storage_filesystem=system):
            tuner = tune.Tuner.restore(place, trainable, resume_errored=True, storage_filesystem=system)
            tuner._local_tuner._run_config.callbacks = callbacks
        else:
            config = tune.RunConfig(
                name=name, storage_path=folder.path, storage_filesystem=system, callbacks=callbacks, verbose=0
            )
            tuner = tune.Tuner(trainable, param_space={}, tune_config=self._tune_config(numbers), run_config=config)
        return [_outcome(result, self.plan) for result in tuner.fit()]

    def _tune_config(self, numbers: Sequence[int] | None) -> tune.TuneConfig:
        search = self.plan.sweep.search
        runs = [trial.plan.staged for trial in self.plan.trials]
        if self.plan.is_foreseen:
            searcher = TreeSearch(self.plan, self.store.folder.uri, numbers)
        else:
            searcher = make_optuna(self.plan.sweep)
        return tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(
                self.plan.sweep.scheduler, max(run.flops for run in runs), max(run.tokens for run in runs)
            ),
            num_samples=len(runs) if numbers is None else len(numbers),
            max_concurrent_trials=search.max_concurrent,
        )

    # --- what stays ---------------------------------------------------------------------------

    def _begin(self) -> float:
        """Note what this sweep is. Raises InputError where another one of this name was begun in the store."""
        digest = sweep_digest(self.plan)
        before = self.store.read_run(self.name, SWEEP_FILE)
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

    def _note(self, state: str, outcomes: Sequence[TrialOutcome], began: float) -> dict[str, Any]:
        reports = self._reports(outcomes)
        records = self._records(reports)
        report = build_sweep_report(self.plan, outcomes, reports, records, state, time.time() - began)
        report["importance"] = importance(report["trials"], report["objective"][0]["metric"])
        if report["best"] is not None:
            planner, best = Planner(self.plan.sweep), report["best"]
            best["schedule"] = planner.trial(best["number"], best["config"]).content
        self.store.write_run(self.name, REPORT_FILE, report)
        return report

    def _reports(self, outcomes: Sequence[TrialOutcome]) -> dict[int, dict[str, Any]]:
        found = {one.number: self.store.read_run(f"{self.name}-{one.number}", REPORT_FILE) for one in outcomes}
        return {number: report for number, report in found.items() if report is not None}

    def _records(self, reports: Mapping[int, Mapping[str, Any]]) -> dict[str, StageRecord]:
        """The finished stages of all trials, and those that they went on from: in no report where LAG's choice is."""
        found: dict[str, StageRecord] = {}
        waiting = [stage["key"] for report in reports.values() for stage in report["stages"]]
        while waiting:
            key = waiting.pop()
            if key not in found and (record := self.store.record(key)):
                found[key] = record
                waiting += [record.donor.key] if record.donor else []
        return found


def _trainable(config: Mapping[str, Any], task: TrialTask, trial: RunTrial) -> None:
    """With a signature that Tune accepts."""
    trial(config["trial"], task)


def room(plan: SweepPlan) -> tuple[int, int]:
    """The CPUs and GPUs that let as many trials train at a time as the sweep asks for, those of their actors too."""
    needs = [stage.training for trial in plan.trials for run in trial.plan.runs() for stage in run.stages]
    at_once = min(plan.sweep.search.max_concurrent, len(plan.trials))
    cpus = at_once * max(training.workers * training.cpus_per_worker for training in needs)
    gpus = at_once * max(training.workers * training.gpus_per_worker for training in needs)
    return cpus + math.ceil(at_once * TRIAL_CPUS), gpus


def sweep_digest(plan: SweepPlan) -> str:
    """What makes a sweep this one and no other: its trials, or what they are chosen from."""
    sweep = plan.sweep
    facts = {
        "trials": [trial.plan.staged.stages[-1].key for trial in plan.trials],
        "search": sweep.search.model_dump(mode="json", exclude={"max_concurrent"}),
        "scheduler": sweep.scheduler.model_dump(mode="json"),
        "objective": [one.model_dump(mode="json") for one in sweep.objective],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _outcome(result: tune.Result, plan: SweepPlan) -> TrialOutcome:
    """What Tune knows of a trial at the end of its run."""
    metrics, point = result.metrics or {}, dict(result.config["trial"])
    number = point.pop("number")
    objectives = {one.metric for one in plan.sweep.objective}
    return TrialOutcome(
        number=number,
        config=point,
        error=reason(result.error) if result.error else None,
        is_stopped=result.error is None and "is_final" not in metrics,
        eval_loss=metrics.get("eval_loss"),
        flops=metrics.get("flops"),
        objectives={metric: metrics.get(metric) for metric in objectives} if "is_final" in metrics else {},
    )


def reason(error: Exception) -> str:
    """Why a trial failed, in a line: its own words, without the traceback and the notes that Ray puts around them."""
    cause = getattr(error, "cause", None)
    words = str(cause if isinstance(cause, RaystageError) else error)
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _Teller(tune.Callback):
    """Says of every trial that it is done."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        point, result = trial.config["trial"], trial.last_result
        loss = result.get("eval_loss")
        outcome = "done" if "is_final" in result else "stopped early"
        self._say(
            f"trial {point['number']}: {outcome}, eval loss {loss:.4f}"
            if loss
            else f"trial {point['number']}: {outcome}"
        )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._say(f"trial {trial.config['trial']['number']}: failed; its log is in the store")
