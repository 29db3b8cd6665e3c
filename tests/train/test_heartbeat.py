"""Signs of life and the word to leave: said often enough and not too often, and heeded by all workers at one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.cluster.watchdog import describe_late
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.storage.store import Store, position_of
from raystage.train.control_actor import ControlActor, WorkerStatus
from raystage.train.heartbeat import PATIENCE_BETWEEN_STEPS, Heartbeat
from raystage.train.timing.due import SaveClock
from raystage.train.worker import Job, run_job

HANG_SECONDS = 60.0


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def status(rank: int, doing: str = "training", patience_seconds: float = HANG_SECONDS) -> WorkerStatus:
    return WorkerStatus(rank, f"worker {rank}", "node", doing, 0.0, patience_seconds)


def late_ranks(control: ControlActor) -> list[int]:
    return [one.rank for one in control.statuses() if one.is_late]


def test_who_says_nothing_for_too_long_is_late() -> None:
    clock = Clock()
    control = ControlActor(clock)
    control.hear(2, status(0))
    control.hear(2, status(1))
    clock.seconds = 50.0
    control.hear(2, status(1))
    clock.seconds = 60.0
    assert late_ranks(control) == []
    clock.seconds = 60.1
    assert late_ranks(control) == [0]
    control.forget()
    assert control.statuses() == []


def test_what_takes_long_says_about_once_a_second_that_it_goes_on() -> None:
    clock, said = Clock(), []
    heartbeat = Heartbeat(lambda doing, patience: said.append((doing, patience)), clock=clock)
    heartbeat.enter("entering a stage", HANG_SECONDS)
    heartbeat.does("scoring documents")
    for _ in range(16):
        clock.seconds += 0.25
        heartbeat.goes_on()
    assert said[1:] == [("scoring documents", PATIENCE_BETWEEN_STEPS * HANG_SECONDS)] * 5


def test_workers_that_are_fewer_than_before_leave_nobody_behind_to_wait_for() -> None:
    clock = Clock()
    control = ControlActor(clock)
    for rank in range(3):
        control.hear(3, status(rank))
    clock.seconds = 100.0
    control.hear(2, status(0))
    control.hear(2, status(1))
    assert [one.rank for one in control.statuses()] == [0, 1]
    assert late_ranks(control) == []


def test_what_takes_long_has_more_time_than_a_step_and_the_first_step_ends_it() -> None:
    said: list[tuple[str, float]] = []
    heartbeat = Heartbeat(lambda *words: said.append(words))
    heartbeat.enter("entering a stage", HANG_SECONDS)
    heartbeat._steps_left = 100  # to ask takes other workers
    heartbeat.stepped()
    heartbeat.does("saving")
    heartbeat.stepped()
    patience = PATIENCE_BETWEEN_STEPS * HANG_SECONDS
    step = ("training", HANG_SECONDS)
    assert said == [("entering a stage", patience), step, ("saving", patience), step]


def test_quick_steps_are_told_of_once_a_second() -> None:
    clock, said = Clock(), []
    heartbeat = Heartbeat(lambda *words: said.append(clock.seconds), clock=clock)
    heartbeat._steps_left = 1000
    for step in range(100):
        clock.seconds = step / 16
        heartbeat.stepped()
    assert said == [0, 1, 2, 3, 4, 5, 6]


def test_who_is_late_is_told_in_one_sentence() -> None:
    late = [WorkerStatus(rank, None, "node", "saving", 90.0, 60.0) for rank in (0, 2)]
    assert describe_late(late) == (
        "workers 0 and 2 have made no progress for 1:30 (saving): all workers are started again"
    )


def test_a_checkpoint_is_due_after_its_time_and_not_again_at_once() -> None:
    clock = Clock()
    due = SaveClock(600.0, clock)
    assert not due.is_due
    clock.seconds = 600.0
    assert due.is_due
    due.restart()
    assert not due.is_due


# --- on real workers --------------------------------------------------------------------------

LEAVE_AFTER_STEPS = 7


class SlowToAll(Clock):
    """Every look at it takes two seconds, so that the driver is asked after every step."""

    def __call__(self) -> float:
        self.seconds += 2.0
        return self.seconds


def train_calmly_and_with_a_leave(stages: tuple[StagePlan, ...], folder: str) -> list[int]:
    """The steps at which checkpoints lay there after leaving."""
    asked = []

    def ask() -> bool:
        asked.append(True)
        return len(asked) == LEAVE_AFTER_STEPS

    run_job(Job(stages, f"{folder}/calm"), lambda *message: None)
    job = Job(stages, f"{folder}/left")
    run_job(job, lambda *message: None, Heartbeat(ask_to_leave=ask, clock=SlowToAll()))
    store = Store(open_folder(job.store))
    left_at = [] if store.record(stages[0].key) else [int(store.latest_checkpoint(stages[0].key).name.split("-")[0])]
    run_job(job, lambda *message: None)
    return left_at


def save_by_time_and_continue(stages: tuple[StagePlan, ...], folder: str) -> list[str]:
    """The checkpoints of a stage that is saved at all steps but those after 32, and trained again from the last one."""
    (stage,) = stages
    said: list[str] = []
    leave = iter([False] * 32 + [True])
    job = Job(stages, f"{folder}/timed")
    run_job(job, lambda kind, key, what: said.append(what) if kind == "saved" else None,
            Heartbeat(ask_to_leave=lambda: next(leave), clock=SlowToAll()))  # fmt: skip
    run_job(Job((with_time(stage, 1e9),), job.store), lambda *message: None)
    return said


def with_time(stage: StagePlan, every_seconds: float) -> StagePlan:
    checkpoint = stage.training.checkpoint.model_copy(update={"every_seconds": every_seconds})
    return replace(stage, training=stage.training.model_copy(update={"checkpoint": checkpoint}))


@pytest.mark.end_to_end
def test_leaving_between_two_points_of_the_curve_changes_no_bit(tmp_path: Path) -> None:
    """Steps 6 and 7 belong to a point that the second half makes: the sum of their losses goes along, per worker."""
    text = tmp_path / "text"
    text.mkdir()
    schedule = make_schedule(
        text,
        stages=[{"name": "one", "model": {"num_layers": 1}, "until": {"steps": 100}}],
        training={"workers": 2, "checkpoint": {"every": "1M"}},
    )
    stages = make_plan(schedule).staged.stages
    left_at = run_workers(2, train_calmly_and_with_a_leave, stages, str(tmp_path), folder=tmp_path / "processes")
    batch = stages[0].training.global_batch_tokens
    assert left_at[0] == left_at[1] == [LEAVE_AFTER_STEPS * batch]
    calm, left = (Store(open_folder(tmp_path / name)).record(stages[0].key) for name in ("calm", "left"))
    assert [(point.steps, point.loss) for point in left.train] == [(point.steps, point.loss) for point in calm.train]
    assert [point.loss for point in left.evaluations] == [point.loss for point in calm.evaluations]
    assert [point.steps for point in calm.train][:2] == [5, 10]


@pytest.mark.end_to_end
def test_checkpoints_by_time_change_no_bit_and_no_point(tmp_path: Path) -> None:
    """At nearly every step, whichever worker's clock is ahead; and continued from one between two points."""
    text = tmp_path / "text"
    text.mkdir()
    schedule = make_schedule(
        text,
        stages=[{"name": "one", "model": {"num_layers": 1}, "until": {"steps": 60}}],
        training={"workers": 2, "checkpoint": {"every": "1M"}},
    )
    stages = make_plan(schedule).staged.stages
    folder = tmp_path / "processes"
    run_workers(2, run_plainly, stages, str(tmp_path), folder=folder)
    timed = (with_time(stages[0], 1e-9),)
    assert timed[0].key == stages[0].key
    said, other = run_workers(2, save_by_time_and_continue, timed, str(tmp_path), folder=folder)
    batch = stages[0].training.global_batch_tokens
    saved_at = {position_of(name) // batch for name in said}
    assert {7, 11, 33} <= saved_at
    assert other == []
    calm, left = (Store(open_folder(tmp_path / name)).record(stages[0].key) for name in ("calm", "timed"))
    assert [(point.steps, point.loss) for point in left.train] == [(point.steps, point.loss) for point in calm.train]
    assert [point.loss for point in left.evaluations] == [point.loss for point in calm.evaluations]


def run_plainly(stages: tuple[StagePlan, ...], folder: str) -> None:
    run_job(Job(stages, f"{folder}/calm"), lambda *message: None)
