"""What workers that stay together are told to do next: by the control, which may die and begin anew."""

from __future__ import annotations

import pytest

from raystage.cluster.worker_group import WorkerGroup
from raystage.errors import NonFiniteLoss, StorageError
from raystage.files import retry
from raystage.files.retry import BRIEF, Retries
from raystage.train.control_actor import KEEP_SECONDS, ControlActor, Task, WorkerStatus

FIRST, SECOND = Task(1, b"first"), Task(2, b"second")
STATUS = WorkerStatus(0, None, "node", "training", 0.0, 60.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(clock: Clock) -> ControlActor:
    control = ControlActor(clock)
    assert control.assign(FIRST)
    return control


def test_a_task_is_given_until_it_is_finished_and_then_they_ask_again(control: ControlActor) -> None:
    assert [control.next_task(), control.next_task()] == [FIRST, FIRST]  # to workers that were started again, too
    assert control.has_finished(1) is False
    control.finish(1)
    assert control.has_finished(1) is True
    assert control.next_task() is True
    assert control.assign(SECOND)
    assert (control.next_task(), control.has_finished(2)) == (SECOND, False)


def test_who_has_waited_long_enough_leaves_and_takes_on_nothing(control: ControlActor, clock: Clock) -> None:
    clock.now += 10 * KEEP_SECONDS
    control.finish(1)
    clock.now += KEEP_SECONDS
    assert control.next_task() is True
    clock.now += 0.1
    assert control.next_task() is False
    assert not control.assign(SECOND)
    assert control.next_task() is False


def test_a_task_that_comes_before_they_ask_keeps_them(control: ControlActor, clock: Clock) -> None:
    control.finish(1)
    clock.now += 2 * KEEP_SECONDS  # nobody asked meanwhile
    assert control.assign(SECOND)
    assert control.next_task() == SECOND


def test_who_is_told_to_stay_waits_for_as_long_again(control: ControlActor, clock: Clock) -> None:
    """As long as the driver wants them for a job that is to come. They leave when nothing more is heard of it."""
    control.finish(1)
    for _ in range(10):
        clock.now += KEEP_SECONDS
        control.stay()
        assert control.next_task() is True
    clock.now += KEEP_SECONDS + 0.1
    assert control.next_task() is False
    control.stay()
    assert control.next_task() is False


@pytest.mark.parametrize("why", ["dismissed", "failed", "asked to leave"])
def test_then_there_are_no_more_tasks(control: ControlActor, why: str) -> None:
    match why:
        case "dismissed":
            control.dismiss()
        case "failed":
            control.fail(NonFiniteLoss("the loss is nan"))
        case "asked to leave":
            control.leave()
    assert control.next_task() is False
    assert not control.assign(SECOND)


def test_one_that_died_is_given_the_task_again(clock: Clock) -> None:
    reborn = ControlActor(clock)
    assert reborn.has_finished(2) is None
    assert reborn.next_task() is True
    assert reborn.assign(SECOND)
    assert (reborn.has_finished(2), reborn.next_task()) == (False, SECOND)


def test_what_was_finished_before_it_was_given_again_is_finished(clock: Clock) -> None:
    reborn = ControlActor(clock)
    reborn.finish(2)
    assert reborn.has_finished(2) is True
    assert reborn.assign(SECOND)
    assert reborn.next_task() is True


def test_workers_have_something_to_save_until_their_task_is_finished_or_has_failed(control: ControlActor) -> None:
    assert not control.has_to_save()  # they are just being started
    control.hear(1, STATUS)
    assert control.has_to_save()
    control.finish(1)
    assert not control.has_to_save()
    control.assign(SECOND)
    assert control.has_to_save()
    control.fail(NonFiniteLoss("the loss is nan"))
    assert not control.has_to_save()


def test_workers_that_are_started_again_have_nothing_to_save(control: ControlActor) -> None:
    control.hear(1, STATUS)
    control.forget()
    assert not control.has_to_save()


def test_who_leaves_for_good_is_not_started_again_elsewhere(control: ControlActor) -> None:
    control.leave()
    assert (control.is_leaving(), control.is_ending()) == (True, False)  # their node is to go
    control.leave(for_good=True)
    control.leave()
    assert (control.is_leaving(), control.is_ending()) == (True, True)


class Away:
    """A folder of a store that does not answer. attempts: how long each of its requests would be repeated."""

    def __init__(self) -> None:
        self.attempts: list[Retries | None] = []

    def delete(self) -> None:
        self.attempts.append(retry._retries.get())
        raise StorageError("the store does not answer")


def test_a_store_that_is_away_hides_no_other_error_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystage.cluster.worker_group.ray.kill", lambda actor: None)
    group = object.__new__(WorkerGroup)
    group.control, group._folder = None, Away()
    group.abandon()
    assert group._folder.attempts == [BRIEF]
