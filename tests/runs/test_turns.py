"""What a driver trains next where other drivers train parts of the same plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from factories import make_record, make_schedule
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.runs.turns import TURN_SECONDS, Free, next_turn


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
    def names(finished: Sequence[str] = (), taken: Sequence[str] = (), seconds_per_step: float = 1e6) -> list[str]:
        records = records_of(plan.known_runs(), finished, seconds_per_step)
        return [stage.name for stage in next_turn(plan.known_runs(), records, free_but(*taken))]

    return names


def records_of(runs: Sequence[RunPlan], finished: Sequence[str], seconds_per_step: float) -> dict[str, StageRecord]:
    stages = {stage.key: stage for run in runs for stage in run.stages}
    taken = {key: stages[key].steps * seconds_per_step for key in finished}
    return {key: make_record(stages[key], 3.0, seconds=taken[key], evaluation_seconds=0.0) for key in finished}


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
    assert next_turn(runs, {}, free_but(*taken)) == runs[2].stages
    assert [run.name for run in runs[2:]] == ["baseline-1000-lr-0.001", "staged-lr-0.001"]
    taken += [stage.key for stage in runs[2].stages]
    assert next_turn(runs, {}, free_but(*taken)) == first.stages


# --- short ones together ------------------------------------------------------------------------


def test_short_baselines_come_together_once_their_speed_is_known(plan: Plan, turn: Callable) -> None:
    small, full, shared, end, *_ = keys_of(plan)
    assert turn([small, full], seconds_per_step=1e-3)[:2] == ["scratch-800", "scratch-1000"]
    assert turn([small], seconds_per_step=1e-3) == ["full"]  # a stage that grows stays alone
    names = ["scratch-1200", "scratch-1500", "scratch-1600", "scratch-2000"]
    assert turn([small, full, shared, end], seconds_per_step=1e-3) == names


def test_what_takes_long_or_is_taken_ends_the_turn(plan: Plan, turn: Callable) -> None:
    stages = {stage.name: stage for run in plan.known_runs() for stage in run.stages}
    small, full, shared, end, *_ = keys_of(plan)
    pair = stages["scratch-1200"].steps + stages["scratch-1500"].steps
    all_four = pair + stages["scratch-1600"].steps + stages["scratch-2000"].steps
    for seconds, expected in ((TURN_SECONDS, 4), (TURN_SECONDS * 1.01, 2), (TURN_SECONDS * 100, 2)):
        assert len(turn([small, full, shared, end], seconds_per_step=seconds / all_four)) == expected
    taken = [stages["scratch-2000"].key]
    assert len(turn([small, full, shared, end], taken=taken, seconds_per_step=1e-3)) == 2
