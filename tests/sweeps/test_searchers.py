"""A sweep's `search` and `scheduler` as Ray Tune takes them: on real Optuna studies, by Tune's own rules."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator

from raystage.sweeps.config import Sweep
from raystage.sweeps.scheduler import Scheduler
from raystage.sweeps.trial import FINISHED_STAGE
from raystage.sweeps.trials import Planner, SweepPlan, plan_sweep
from raystage.sweeps.tune import REDUCTION_FACTOR, DefinedByRun, Limited, TreeSearch, make_optuna, make_scheduler
from sweeps import make_sweep

EVERYTHING = """
stages[1]: {choice: [present, absent]}
stages[1].grow.operator: {choice: [stack, middle]}
stages[1].grow.block: {choice: [1, 2], when: {"stages[1].grow.operator": middle}}
stages[2].grow.layers: {choice: [[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]], when: {"stages[1]": present, "stages[2].grow.operator": layers}}
stages[2].grow.operator: {choice: [stack, layers], when: {"stages[1]": present}}
training.optimizer.lr: {loguniform: [1e-4, 1e-2]}
training.optimizer.weight_decay: {uniform: [0, 0.1]}
training.lr_schedule.warmup: {integer: [100, 300]}
seed: {log_integer: [1, 1000]}
"""  # noqa: E501


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path, EVERYTHING, search={"algorithm": "optuna", "num_trials": 3, "seed": 5})


def asked(sweep: Sweep, count: int) -> list[dict[str, Any]]:
    """The points that Optuna's random sampler comes to."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [DefinedByRun(sweep.points)(study.ask())["trial"] for _ in range(count)]


def test_every_point_is_one_of_the_space_and_makes_a_trial(sweep: Sweep) -> None:
    planner = Planner(sweep)
    for number, point in enumerate(asked(sweep, 40)):
        assert point.pop("number") == number
        operator = point.get("stages[1].grow.operator")
        assert (operator is not None) == (point["stages[1]"] == "present")
        assert ("stages[1].grow.block" in point) == (operator == "middle")
        assert ("stages[2].grow.layers" in point) == (point.get("stages[2].grow.operator") == "layers")
        assert 1e-4 <= point["training.optimizer.lr"] <= 1e-2
        assert isinstance(point["training.lr_schedule.warmup"], int)
        assert isinstance(point["seed"], int)
        assert planner.trial(number, point).config == point


def test_all_that_is_listed_comes_up(sweep: Sweep) -> None:
    found = asked(sweep, 60)
    for path, values in [("stages[1].grow.block", [1, 2]), ("stages[2].grow.layers", None)]:
        expected = values or list(sweep.space[path].values)
        assert all(any(point.get(path) == value for point in found) for value in expected), path


def test_tunes_search_asks_the_same_space_and_can_be_pickled(sweep: Sweep) -> None:
    searcher = pickle.loads(pickle.dumps(make_optuna(sweep)))
    suggested = [searcher.suggest(str(number))["trial"] for number in range(3)]
    assert [point["number"] for point in suggested] == [0, 1, 2]
    again = make_optuna(sweep)
    assert [again.suggest(str(number))["trial"] for number in range(3)] == suggested  # by its seed


def test_optuna_goes_on_where_it_was_saved_and_warns_of_nothing(sweep: Sweep, tmp_path: Path) -> None:
    """A trial that is begun again reports what it had reported, which Tune counts from 1 again; warnings are errors."""
    pickled = pickle.dumps(make_optuna(sweep))
    searcher, whole = pickle.loads(pickled), pickle.loads(pickled)
    losses = [{"eval_loss": 3.0 - tokens / 1000, "tokens": tokens} for tokens in (0, 400, 800, 800)]
    for one in (searcher, whole):
        one.suggest("a")
    for count, loss in enumerate(losses[:2], 1):
        searcher.on_trial_result("a", {**loss, "training_iteration": count})
    searcher.save(str(tmp_path / "state"))
    again = pickle.loads(pickled)
    again.restore(str(tmp_path / "state"))
    for one in (again, whole):
        for count, loss in enumerate(losses, 1):
            one.on_trial_result("a", {**loss, "training_iteration": count})
        one.on_trial_complete("a", {**losses[-1], "training_iteration": len(losses)})
    (trial,) = again._ot_study.trials
    assert (trial.value, trial.intermediate_values) == (2.2, {0: 3.0, 400: 2.6, 800: 2.2})
    assert again.suggest("b") == whole.suggest("b")


def test_several_objectives_are_searched_together(tmp_path: Path) -> None:
    objectives = [{"metric": "eval_loss"}, {"metric": "compute_saved"}]
    search = {"algorithm": "optuna", "num_trials": 2}
    sweep = make_sweep(tmp_path, "training.optimizer.lr: {loguniform: [1e-4, 1e-2]}", search=search,
                       objective=objectives)  # fmt: skip
    searcher = make_optuna(sweep)
    searcher.suggest("a")
    assert [direction.name for direction in searcher._ot_study.directions] == ["MINIMIZE", "MAXIMIZE"]


@pytest.fixture
def lengths(tmp_path: Path) -> SweepPlan:
    """Three lengths of a first stage, the longer from the shorter, and two operators after each."""
    lengths = "stages[0].until.tokens: {grid: [800, 400, 600]}"
    return plan_sweep(make_sweep(tmp_path, f"{lengths}\nstages[1].grow.operator: {{grid: [stack, interleave]}}"))


def numbers_of(searcher: TreeSearch, *trial_ids: str) -> list[int | None]:
    found = [searcher.suggest(trial_id) for trial_id in trial_ids]
    return [one["trial"]["number"] if isinstance(one, dict) else one for one in found]


def finish(searcher: TreeSearch, trial_id: str, plan: SweepPlan, number: int, stages: int) -> None:
    """What Tune passes on when a trial has finished its first stages."""
    for stage in plan.trials[number].plan.staged.stages[:stages]:
        searcher.on_trial_result(trial_id, {"eval_loss": 1.5})
        searcher.on_trial_result(trial_id, {"eval_loss": 1.5, FINISHED_STAGE: stage.key})


def test_trials_that_would_wait_for_one_that_runs_are_not_started(lengths: SweepPlan) -> None:
    searcher = TreeSearch(lengths)
    first, *_ = lengths.tree.order
    assert lengths.trials[first].config["stages[0].until.tokens"] == 400
    assert numbers_of(searcher, "a", "b") == [first, None]  # what is longer goes on from it
    finish(searcher, "a", lengths, first, stages=1)
    *started, last = numbers_of(searcher, "b", "c", "d")
    assert {lengths.trials[number].config["stages[0].until.tokens"] for number in started} == {400, 600}
    assert last is None  # 800 goes on from 600


def test_a_point_is_that_of_its_trial(lengths: SweepPlan) -> None:
    point = TreeSearch(lengths).suggest("a")["trial"]
    assert point == {"number": point["number"], **lengths.trials[point["number"]].config}


def test_a_trial_that_failed_leaves_its_stages_to_others(lengths: SweepPlan) -> None:
    searcher = TreeSearch(lengths)
    numbers_of(searcher, "a")
    searcher.on_trial_complete("a", error=True)
    assert numbers_of(searcher, "b") == [lengths.tree.order[1]]


def test_each_is_begun_once_and_then_it_is_the_end(lengths: SweepPlan) -> None:
    searcher, begun = TreeSearch(lengths, numbers=[0, 2, 3]), []
    for trial_id in "abc":
        begun += numbers_of(searcher, trial_id)
        searcher.on_trial_complete(trial_id)
    assert sorted(begun) == [0, 2, 3]
    assert searcher.suggest("d") == Searcher.FINISHED


def test_a_search_goes_on_where_it_was_saved(lengths: SweepPlan, tmp_path: Path) -> None:
    """With the pickle that Tune keeps from the beginning, and what it saves now and then."""
    pickled = pickle.dumps(TreeSearch(lengths))
    searcher = pickle.loads(pickled)
    (first,) = numbers_of(searcher, "a")
    searcher.on_trial_complete("a", error=True)
    (second,) = numbers_of(searcher, "b")
    searcher.save(str(tmp_path / "state"))
    again = pickle.loads(pickled)
    again.restore(str(tmp_path / "state"))
    left: list[int] = []
    while (point := again.suggest(trial_id := f"{len(left)}")) != Searcher.FINISHED:
        left.append(point["trial"]["number"])  # nobody waits for the second one, which may have ended
        again.on_trial_complete(trial_id)
    assert sorted([first, second, *left]) == list(range(6))


def test_a_search_that_goes_on_has_as_many_trials_at_a_time_as_it_is_told_now(
    lengths: SweepPlan, tmp_path: Path
) -> None:
    """Saved and restored as Tune does it."""
    before = SearchGenerator(Limited(TreeSearch(lengths), 1))
    assert [before.searcher.suggest(trial_id) for trial_id in ("a", "b")][1] is None
    before.save_to_dir(str(tmp_path), "session")
    again = SearchGenerator(Limited(TreeSearch(lengths), 3))
    again.restore_from_dir(str(tmp_path))
    started = [again.searcher.suggest(trial_id) for trial_id in ("b", "c", "d")]
    assert [one is None for one in started] == [False, False, True]  # a, which goes on, is one of the three


def test_asha_counts_in_what_its_grace_is_given_in() -> None:
    flops = make_scheduler(Scheduler(name="asha", grace={"flops": "1e6"}), 9_000_000, 400)
    tokens = make_scheduler(Scheduler(name="asha", grace=100, reduction_factor=2), 9_000_000, 400)
    assert isinstance(flops, AsyncHyperBandScheduler)
    assert (flops._time_attr, flops._max_t, flops._reduction_factor) == ("flops", 9_000_000, REDUCTION_FACTOR)
    assert (tokens._time_attr, tokens._max_t, tokens._reduction_factor) == ("tokens", 400, 2)
    samples = make_scheduler(Scheduler(name="asha", grace={"samples": 100}), 9_000_000, 400)
    assert (samples._time_attr, samples._max_t) == ("samples", 400)
    assert [milestone for milestone, _ in tokens._brackets[0]._rungs] == [400, 200, 100]


@pytest.mark.parametrize("scheduler", [{}, {"name": "lag", "after_growth": {"tokens": 100, "keep": 1}}])
def test_other_schedulers_are_not_tunes(scheduler: dict) -> None:
    assert isinstance(make_scheduler(Scheduler(**scheduler), 1, 1), FIFOScheduler)
