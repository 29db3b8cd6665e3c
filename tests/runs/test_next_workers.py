"""When the workers of the next job are started: what is left of a stage, and which job comes next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories import make_schedule
from raystage.config.conditions import Until
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import TrainPoint
from raystage.runs.ahead import AHEAD_SECONDS, Ending, job_after, seconds_left

# The workers of the stages of the schedule below, in their order.
WORKERS = (1, 2, 2, 1)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[StagePlan, ...]:
    """Four stages of eight steps with 100 tokens each."""
    written = [
        {"name": f"stage-{number}", "model": {"num_layers": 2}, "until": {"tokens": 800}, "training": {"workers": one}}
        for number, one in enumerate(WORKERS)
    ]
    schedule = make_schedule(tmp_path_factory.mktemp("text"), stages=written, baseline=None)
    return make_plan(schedule).staged.stages


def point(stage: StagePlan, step: int, speed: float, seconds: float = 0.0) -> TrainPoint:
    """After a step of the stage, at so many tokens in a second."""
    return TrainPoint(stage.start + 100 * step, stage.start_steps + step, 0, seconds, 2.0, 1e-3, 1.0, speed)


def ending(stage: StagePlan, **until: object) -> StagePlan:
    return replace(stage, until=Until(**until))


def test_the_rest_of_a_stage_takes_as_long_as_its_steps_at_their_speed(stages: tuple[StagePlan, ...]) -> None:
    assert seconds_left(stages[1], point(stages[1], 2, speed=10.0)) == 60.0
    assert seconds_left(stages[1], point(stages[1], 8, speed=10.0)) == 0.0
    assert seconds_left(stages[1], point(stages[1], 2, speed=0.0)) is None


@pytest.mark.parametrize(
    ("until", "left"),
    [
        ({"tokens": 800, "seconds": 50}, 20.0),
        ({"tokens": 800, "any": [{"seconds": 45}, {"eval_loss": 1.0}]}, 15.0),
        ({"tokens": 800, "seconds": 20}, 0.0),
        ({"tokens": 800, "all": [{"seconds": 45}, {"eval_loss": 1.0}]}, 60.0),  # the clock alone does not end it
    ],
)
def test_a_stage_that_ends_by_the_clock_ends_then(stages: tuple[StagePlan, ...], until: dict, left: float) -> None:
    assert seconds_left(ending(stages[0], **until), point(stages[0], 2, speed=10.0, seconds=30.0)) == left


def test_it_is_time_a_minute_before_the_end_of_the_last_stage(stages: tuple[StagePlan, ...]) -> None:
    now = [100.0]
    last = stages[2]
    found = Ending(last, lambda: now[0])
    assert not found.is_near
    found.hear("trained", stages[1].key, point(stages[1], 8, speed=10.0))
    assert not found.is_near, "another stage of the same workers comes first"
    found.hear("trained", last.key, point(last, 1, speed=1.0))
    now[0] += 700.0 - AHEAD_SECONDS - 1.0
    assert not found.is_near
    now[0] += 1.0
    assert found.is_near, "also while nothing is heard: points of a long stage are minutes apart"


def test_in_a_short_stage_it_is_time_at_the_first_point(stages: tuple[StagePlan, ...]) -> None:
    found = Ending(stages[0])
    found.hear("started", stages[0].key, 0)
    found.hear("trained", stages[0].key, point(stages[0], 1, speed=100.0))
    assert found.is_near


@pytest.mark.parametrize("what", [("trouble", "", "node a was lost"), ("started", None, 3)])
def test_workers_that_start_again_take_longer(stages: tuple[StagePlan, ...], what: tuple) -> None:
    kind, key, fact = what
    found = Ending(stages[0])
    found.hear("trained", stages[0].key, point(stages[0], 7, speed=100.0))
    found.hear(kind, stages[0].key if key is None else key, fact)
    assert not found.is_near
    found.hear("trained", stages[0].key, point(stages[0], 7, speed=100.0))
    assert found.is_near


def test_the_next_job_is_the_first_one_that_needs_other_workers(stages: tuple[StagePlan, ...]) -> None:
    first, second, third, last = stages
    assert job_after((first,), stages) == (second, third)
    assert job_after((second, third), stages[1:]) == (last,)
    assert job_after((second, third), stages[2:]) == (last,)  # one of the two is finished
    assert job_after((last,), (last,)) == ()
    assert job_after((last,), ()) == ()
    assert job_after((second,), stages[1:]) == (), "another driver has the third, which these workers could train"
