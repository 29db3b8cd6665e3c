"""What a driver trains next where other drivers train parts of the same plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from factories import make_schedule
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.runs.turns import Free, next_turn


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """2 layers, then 4, and three baselines."""
    return make_plan(make_schedule(tmp_path_factory.mktemp("texts")))


def free_but(*taken: str) -> Free:
    def free(stages: Sequence[StagePlan]) -> list[StagePlan]:
        return list(takewhile(lambda stage: stage.key not in taken, stages))

    return free


@pytest.fixture
def turn(plan: Plan) -> Callable[..., list[str]]:
    def names(finished: Sequence[str] = (), taken: Sequence[str] = ()) -> list[str]:
        return [stage.name for stage in next_turn(plan.known_runs(), finished, free_but(*taken))]

    return names


def keys_of(plan: Plan) -> list[str]:
    return [stage.key for run in plan.known_runs() for stage in run.stages]


def test_one_run_at_a_time(plan: Plan, turn: Callable) -> None:
    small, full, shared, end, *_ = keys_of(plan)
    assert turn() == ["small", "full"]
    assert turn([small]) == ["full"]
    assert turn([small, full]) == ["scratch-800", "scratch-1000"]
    assert turn([small, full, shared, end]) == ["scratch-1200", "scratch-1500"]
    assert turn(keys_of(plan)) == []


def test_while_another_driver_trains_a_stage_a_baseline_is_trained(plan: Plan, turn: Callable) -> None:
    small, full, shared, end, *_ = keys_of(plan)
    assert turn(taken=[small, full]) == ["scratch-800", "scratch-1000"]
    assert turn([small, full, shared], taken=[end]) == ["scratch-1200", "scratch-1500"]


def test_where_all_are_taken_the_first_is_waited_for(plan: Plan, turn: Callable) -> None:
    small, full, shared, *_ = keys_of(plan)
    assert turn(taken=keys_of(plan)) == ["small", "full"]
    assert turn([small, full], taken=[shared]) == ["scratch-800", "scratch-1000"]  # all baselines begin with it


def test_a_run_that_grows_is_trained_in_its_turn_alone(tmp_path: Path) -> None:
    """The rates of two sides are tuned: of what is not taken, the baseline of the other rate comes first."""
    tune = {"budgets": [1000], "tune": {"training.optimizer.lr": [1e-3, 2e-3]}}
    runs = make_plan(make_schedule(tmp_path, baseline=tune)).known_runs()
    first, written, *_ = runs
    taken = [stage.key for run in (first, written) for stage in run.stages]
    assert next_turn(runs, [], free_but(*taken)) == runs[2].stages
    assert [run.name for run in runs[2:]] == ["baseline-1000-lr-0.001", "staged-lr-0.001"]
    taken += [stage.key for stage in runs[2].stages]
    assert next_turn(runs, [], free_but(*taken)) == first.stages
