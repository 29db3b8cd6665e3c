"""What is known of a sweep's trials while Tune runs them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial as TuneTrial

from raystage.errors import NonFiniteLoss
from raystage.sweeps.tune import Outcomes, Sparingly, TrialTracker, reason


def tune_trial(number: int, status: str, error: Exception | None = None, **last: Any) -> TuneTrial:
    """A trial as Tune has it, which has reported `last`."""
    trial = TuneTrial("train", config={"trial": {"number": number, "lr": 0.1 * number}}, stub=True)
    trial.run_metadata.last_result = last
    trial.set_status(status)
    trial.get_pickled_error = lambda: error
    return trial


UNDER_WAY = [
    tune_trial(0, "TERMINATED", eval_loss=2.0, flops=90, compute_saved=0.3, is_final=True),
    tune_trial(1, "TERMINATED", eval_loss=3.0, flops=40),
    tune_trial(2, "ERROR", NonFiniteLoss("the training loss is nan")),
    tune_trial(3, "RUNNING", eval_loss=2.5, flops=50),
]


def followed(trials: list[TuneTrial], are_pilots: bool = False) -> Outcomes:
    outcomes, tracker = Outcomes(["compute_saved"]), TrialTracker(print, lambda: None)
    outcomes.begin(tracker, are_pilots)
    tracker.on_step_begin(0, trials)
    return outcomes


def states(outcomes: Outcomes) -> Mapping[int, str]:
    return {one.number: one.state for one in outcomes.of_trials()}


def test_a_sweep_under_way_knows_how_far_each_trial_is() -> None:
    outcomes = followed(UNDER_WAY)
    assert states(outcomes) == {0: "FINISHED", 1: "ABORTED", 2: "ERRORED", 3: "RUNNING"}
    done, _, failed, running = outcomes.of_trials()
    assert (done.config, done.objectives) == ({"lr": 0.0}, {"compute_saved": 0.3})
    assert failed.error == "the training loss is nan"
    assert (running.eval_loss, running.flops, running.objectives) == (2.5, 50, {})


def test_a_trial_that_has_reported_its_end_has_come_to_it() -> None:
    """Also while Tune has not got round to ending it, which is when it is told of."""
    outcomes = followed([tune_trial(0, "RUNNING", eval_loss=2.0, flops=90, compute_saved=0.3, is_final=True)])
    assert states(outcomes) == {0: "FINISHED"}


def test_none_of_the_pilots_has_come_to_its_end() -> None:
    outcomes = followed(UNDER_WAY, are_pilots=True)
    assert states(outcomes) == {0: "ABORTED", 1: "ABORTED", 2: "ERRORED", 3: "RUNNING"}


def test_what_goes_on_counts_and_the_rest_stays_as_it_was() -> None:
    outcomes = followed(UNDER_WAY[:2], are_pilots=True)
    outcomes.of_trials()
    outcomes.end([])
    second = TrialTracker(print, lambda: None)
    outcomes.begin(second, are_pilots=False)
    second.on_step_begin(0, UNDER_WAY[:1])
    assert states(outcomes) == {0: "FINISHED", 1: "ABORTED"}


def test_every_trial_that_ends_is_told_of_and_noted() -> None:
    said: list[str] = []
    tracker = TrialTracker(said.append, lambda: said.append("noted"))
    tracker.on_trial_complete(1, UNDER_WAY, UNDER_WAY[0])
    tracker.on_trial_complete(2, UNDER_WAY, UNDER_WAY[1])
    tracker.on_trial_error(3, UNDER_WAY, UNDER_WAY[2])
    assert said == [
        "trial 0: done, eval loss 2.0000", "noted",
        "trial 1: stopped early, eval loss 3.0000", "noted",
        "trial 2: failed; its log is in the store", "noted",
    ]  # fmt: skip


def test_notes_take_a_hundredth_of_the_time_at_most() -> None:
    """Each takes 2 s here; trials end once a second."""
    now = [0.0]

    def note() -> None:
        now[0] += 2.0
        noted_at.append(now[0])

    noted_at: list[float] = []
    sparingly = Sparingly(note, clock=lambda: now[0])
    for _ in range(1000):
        sparingly()
        now[0] += 1.0
    assert noted_at == list(accumulate([2.0] + [202.0] * (len(noted_at) - 1)))
    assert len(noted_at) == 5


def test_a_trial_failed_for_what_it_says_itself() -> None:
    """Not for the last line of the traceback that Ray makes of it, which is a note on what to do next."""
    error = NonFiniteLoss("stage small: the training loss is nan at step 2")
    error.add_note("log: somewhere/run.log")
    try:
        raise error
    except NonFiniteLoss as raised:
        wrapped = RayTaskError("train", "Traceback: ...\nraystage.errors.NonFiniteLoss: ...\nlog: ...", raised)
    assert reason(wrapped) == str(error)
    assert reason(RuntimeError("the actor died\n\n  of a lost node\n")) == "of a lost node"
    assert reason(RuntimeError()) == "RuntimeError"


def test_a_tracker_can_be_written_down_whatever_it_tells() -> None:
    """Tune pickles its callbacks when it begins; who is told of trials may hold a terminal, a lock, a whole sweep."""
    lock = threading.Lock()
    tracker = TrialTracker(lambda line: lock.acquire(), lambda: None)
    tracker.on_step_begin(0, UNDER_WAY)
    assert cloudpickle.loads(cloudpickle.dumps(tracker)).trials == []
