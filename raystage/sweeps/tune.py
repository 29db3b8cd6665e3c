"""What Ray Tune is given: what chooses the trials, what stops them early, and what follows how they end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from raystage.errors import RaystageError
from raystage.sweeps.config import Sweep
from raystage.sweeps.reports.build import TrialOutcome
from raystage.sweeps.scheduler import Scheduler
from raystage.sweeps.space import Dimension, Space
from raystage.sweeps.tree import TrialQueue
from raystage.sweeps.trial import FINISHED_STAGE
from raystage.sweeps.trials import SweepPlan
from raystage.units import unit_of

# Tune stops a trial at a rung if it is not among the best 1 / reduction_factor of the trials that reached it before.
REDUCTION_FACTOR = 3.0


def make_scheduler(scheduler: Scheduler, most_flops: int, longest: int) -> TrialScheduler:
    """most_flops, longest: of the longest trial. Tune does not decide for LAG: its trials are cut by the plan."""
    if scheduler.name != "asha":
        return FIFOScheduler()
    axis = scheduler.grace.axis
    return AsyncHyperBandScheduler(
        time_attr=axis,
        metric="eval_loss",
        mode="min",
        grace_period=scheduler.grace.count,
        max_t=most_flops if axis == "flops" else longest,
        reduction_factor=scheduler.reduction_factor or REDUCTION_FACTOR,
        stop_last_trials=False,
    )


class Limited(ConcurrencyLimiter):
    """A search with at most so many trials at a time. When it continues, it keeps its number: Tune's own limiter would
    take the one that it was saved with, though a user may have set another one."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "max_concurrent": self.max_concurrent})


class TreeSearch(Searcher):
    """Chooses trials that are known beforehand, in the order of their tree. A trial that would only wait for a stage of
    a running trial comes later: shared stages are trained first, while other trials run.

    Trials report each stage that they finish. numbers: the trials to run, all by default.
    """

    def __init__(self, plan: SweepPlan, numbers: Collection[int] | None = None) -> None:
        super().__init__()
        self._running: dict[str, int] = {}
        self._points = {
            trial.number: {"number": trial.number, **trial.config}
            for trial in plan.trials
            if numbers is None or trial.number in numbers
        }
        self._queue = trial_queue(plan, self._points)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial; None if it should ask again, as it does ten times a second."""
        if self._queue.is_empty:
            return Searcher.FINISHED
        number = self._queue.take()
        if number is None:
            return None
        self._running[trial_id] = number
        return {"trial": self._points[number]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if FINISHED_STAGE in result:
            self._queue.finish(result[FINISHED_STAGE])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Also called when a trial failed or was stopped: a trial that waited for its stages then trains them."""
        number = self._running.pop(trial_id, None)
        if number is not None:
            self._queue.end(number)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps({"begun": sorted(self._queue.begun)}))

    def restore(self, checkpoint_path: str) -> None:
        """Continue where a search of the same trials was saved. Tune itself starts again what was running. No trial
        waits for those, because Tune saves its own state a moment earlier."""
        for number in json.loads(Path(checkpoint_path).read_text())["begun"]:
            self._queue.begin(number)
            self._queue.end(number)


def trial_queue(plan: SweepPlan, numbers: Collection[int]) -> TrialQueue:
    """The queue for some trials of a plan."""
    nodes = plan.tree.nodes
    return TrialQueue(
        [number for number in plan.tree.order if number in numbers],
        {number: tuple(stage.key for stage in plan.trials[number].plan.staged.stages) for number in numbers},
        {key: node.prefix_key for key, node in nodes.items() if node.prefix_key},
        {key for key, node in nodes.items() if node.is_finished},
    )


class PlacedSearch(OptunaSearch):
    """Optuna, which is told each loss by its position in tokens, and each position once.

    When a sweep continues, Tune counts the reports of a trial from 1 again, so Optuna would get them a second time.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reached: dict[str, int] = {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        position = result[unit_of(result)]
        if position > self._reached.get(trial_id, -1):
            self._reached[trial_id] = position
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: position})


def make_optuna(sweep: Sweep) -> OptunaSearch:
    """Optuna over the space, with its conditions, by the default sampler (TPE; NSGA-II for several metrics)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics = [one.name for one in sweep.objective]
    modes = [one.better for one in sweep.objective]
    one = len(metrics) == 1
    return PlacedSearch(
        DefinedByRun(sweep.points),
        metric=metrics[0] if one else metrics,
        mode=modes[0] if one else modes,
        sampler=_sampler(sweep),
    )


def _sampler(sweep: Sweep) -> optuna.samplers.BaseSampler:
    seed = sweep.search.seed
    return (
        optuna.samplers.TPESampler(seed=seed) if len(sweep.objective) == 1 else optuna.samplers.NSGAIISampler(seed=seed)
    )


class DefinedByRun:
    """Asks an Optuna trial for a point of the space, path by path. It is a class because Tune pickles it."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """The return value goes into Tune's config, beside what was suggested."""
        config: dict[str, Any] = {}
        for dimension in self._space.dimensions:
            if dimension.counts(config):
                config[dimension.path] = suggested(trial, dimension)
        return {"trial": {"number": trial.number, **config}}


def suggested(trial: optuna.Trial, dimension: Dimension) -> Any:
    path, values = dimension.path, dimension.values
    match dimension.kind:
        case "grid" | "choice":
            # Optuna's categories must be plain values, so a list is represented by its index.
            return values[trial.suggest_categorical(path, list(range(len(values))))]
        case "uniform":
            return trial.suggest_float(path, *values)
        case "loguniform":
            return trial.suggest_float(path, *values, log=True)
        case "integer":
            return trial.suggest_int(path, *values)
    return trial.suggest_int(path, *values, log=True)


Say = Callable[[str], None]

# The share of the driver's time that writing the report of a running sweep may take.
_SHARE_FOR_NOTES = 0.01


def _outcome(
    config: Mapping[str, Any], last: Mapping[str, Any], metrics: Collection[str], error: Exception | None
) -> TrialOutcome:
    point = dict(config)
    number = point.pop("number")
    is_final = "is_final" in last
    return TrialOutcome(
        number=number,
        config=point,
        error=reason(error) if error else None,
        is_stopped=error is None and not is_final,
        eval_loss=last.get("eval_loss"),
        flops=last.get("flops"),
        objectives={metric: last.get(metric) for metric in metrics} if is_final else {},
    )


def _so_far(trial: TuneTrial, metrics: Collection[str]) -> TrialOutcome:
    """What is known of a trial that may still run. A trial reports its end before Tune regards it as finished."""
    error = trial.get_pickled_error() or trial.get_error() if trial.status == TuneTrial.ERROR else None
    found = _outcome(trial.config["trial"], trial.last_result, metrics, error)
    return replace(found, is_running=found.is_stopped and not trial.is_finished())


def reason(error: Exception) -> str:
    """Why a trial failed, in one line: its own message, without traceback and without Ray's additions."""
    cause = getattr(error, "cause", None)
    words = str(cause if isinstance(cause, RaystageError) else error)
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class TrialTracker(tune.Callback):
    """Says of every ended trial how it ended, and then calls `note`. trials: all trials that Tune has started."""

    def __init__(self, say: Say, note: Callable[[], None]) -> None:
        self._say, self._note = say, note
        self.trials: list[TuneTrial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks, but gets new ones when it continues. Nothing of this one is needed."""
        return {"trials": []}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self.trials = trials

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number, result = trial.config["trial"]["number"], trial.last_result
        loss = result.get("eval_loss")
        end = "done" if "is_final" in result else "stopped early"
        self._say(f"trial {number}: {end}, eval loss {loss:.4f}" if loss else f"trial {number}: {end}")
        self._note()

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._say(f"trial {trial.config['trial']['number']}: failed; its log is in the store")
        self._note()


class Outcomes:
    """What is known of every trial, over all runs of Tune. metrics: those of the sweep's objectives."""

    def __init__(self, metrics: Collection[str]) -> None:
        self._metrics = metrics
        self._known: dict[int, TrialOutcome] = {}
        self._tracker: TrialTracker | None = None
        self._are_pilots = False
        self._lock = threading.Lock()  # the thread that shows the progress asks as well

    def begin(self, tracker: TrialTracker, are_pilots: bool) -> None:
        """A run of Tune begins; `tracker` hears of its trials. are_pilots: whether its trials stop early by plan."""
        self._tracker, self._are_pilots = tracker, are_pilots

    def end(self, results: Iterable[tune.Result]) -> None:
        """A run of Tune has ended."""
        with self._lock:
            self._take(_outcome(one.config["trial"], one.metrics or {}, self._metrics, one.error) for one in results)
            self._tracker = None

    def of_trials(self) -> list[TrialOutcome]:
        """The outcomes as far as they are known now."""
        with self._lock:
            if self._tracker is not None:
                self._take(_so_far(trial, self._metrics) for trial in self._tracker.trials)
            return list(self._known.values())

    def _take(self, found: Iterable[TrialOutcome]) -> None:
        self._known |= {one.number: replace(one, is_stopped=one.is_stopped or self._are_pilots) for one in found}


class Sparingly:
    """Calls `action`, but skips calls so that it takes at most a hundredth of the time."""

    def __init__(self, action: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._action, self._clock = action, clock
        self._not_before = clock()

    def __call__(self) -> None:
        began = self._clock()
        if began >= self._not_before:
            self._action()
            ended = self._clock()
            self._not_before = ended + (ended - began) / _SHARE_FOR_NOTES
