"""What is known of a sweep's trials: while Tune runs them, and after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raystage.errors import RaystageError
from raystage.sweep.report import TrialOutcome

Say = Callable[[str], None]

# Of the driver's time, what the notes on a sweep that goes on may take.
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
    """Of a trial that may still run. One that has reported its end is told of before Tune takes it for finished."""
    error = trial.get_pickled_error() or trial.get_error() if trial.status == TuneTrial.ERROR else None
    found = _outcome(trial.config["trial"], trial.last_result, metrics, error)
    return replace(found, is_running=found.is_stopped and not trial.is_finished())


def reason(error: Exception) -> str:
    """Why a trial failed, in a line: its own words, without the traceback and the notes that Ray puts around them."""
    cause = getattr(error, "cause", None)
    words = str(cause if isinstance(cause, RaystageError) else error)
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class Follower(tune.Callback):
    """Says of every trial that it is done, and then has how things stand noted. trials: all that Tune has begun."""

    def __init__(self, say: Say, note: Callable[[], None]) -> None:
        self._say, self._note = say, note
        self.trials: list[TuneTrial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down, and is given new ones when it goes on: of this one nothing is needed."""
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
    """What is known of every trial, over all of Tune's runs. metrics: of the sweep's objectives."""

    def __init__(self, metrics: Collection[str]) -> None:
        self._metrics = metrics
        self._known: dict[int, TrialOutcome] = {}
        self._follower: Follower | None = None
        self._are_pilots = False
        self._lock = threading.Lock()  # asked from the thread, too, that shows how the sweep stands

    def begin(self, follower: Follower, are_pilots: bool) -> None:
        """Tune runs, and `follower` follows it. are_pilots: none of its trials comes to its end in this run."""
        self._follower, self._are_pilots = follower, are_pilots

    def end(self, results: Iterable[tune.Result]) -> None:
        """Tune has run."""
        with self._lock:
            self._take(_outcome(one.config["trial"], one.metrics or {}, self._metrics, one.error) for one in results)
            self._follower = None

    def of_trials(self) -> list[TrialOutcome]:
        """As far as it is known now."""
        with self._lock:
            if self._follower is not None:
                self._take(_so_far(trial, self._metrics) for trial in self._follower.trials)
            return list(self._known.values())

    def _take(self, found: Iterable[TrialOutcome]) -> None:
        self._known |= {one.number: replace(one, is_stopped=one.is_stopped or self._are_pilots) for one in found}


class Sparingly:
    """Calls `action` when called, but not so often that it takes more than a hundredth of the time."""

    def __init__(self, action: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._action, self._clock = action, clock
        self._not_before = clock()

    def __call__(self) -> None:
        began = self._clock()
        if began >= self._not_before:
            self._action()
            ended = self._clock()
            self._not_before = ended + (ended - began) / _SHARE_FOR_NOTES
