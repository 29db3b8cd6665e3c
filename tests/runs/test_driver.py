"""What the driver makes of what workers say: each thing told once, however often they start again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from factories import make_schedule
from playback import curved_records
from raystage.cluster.watchdog import OnEvent
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress, StageRecord
from raystage.runs.driver import Driver
from raystage.runs.events import EventReplay, in_order
from raystage.storage.jobs import Job
from raystage.storage.store import Store


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(make_schedule(tmp_path))


class Told:
    """A callback that writes down what it is told: what, of which stage, at how many tokens."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str) -> object:
        return partial(self._note, name)

    def _note(self, what: str, run: RunPlan, stage: StagePlan | tuple | None = None, *facts: object) -> None:
        stage = stage if isinstance(stage, StagePlan) else None
        tokens = getattr(facts[0], "position", None) if what in ("trained", "evaluated") else None
        self.calls.append((what, stage.name if stage else run.name, tokens))

    def of(self, what: str) -> list[tuple]:
        return [call for call in self.calls if call[0] == what]


def replay_at(plan: Plan, stage_index: int) -> tuple[EventReplay, Told, StageRecord]:
    """A replay whose next stage is one of the staged run; those before it are finished."""
    records, told = curved_records(plan), Told()
    before = {stage.key: records[stage.key] for stage in plan.staged.stages[:stage_index]}
    replay = EventReplay(plan.runs(), before, [told])
    replay.advance()
    told.calls = [call for call in told.calls if call[1] == plan.staged.stages[stage_index].name]
    return replay, told, records[plan.staged.stages[stage_index].key]


def say(replay: EventReplay, record: StageRecord, until_tokens: int | None = None) -> None:
    replay.hear("started", record.key, 0)
    for point in in_order(record.train, record.evaluations):
        if until_tokens is None or point.position <= until_tokens:
            replay.hear("trained" if hasattr(point, "lr") else "evaluated", record.key, point)


def test_a_calm_stage_is_told_from_start_to_end(plan: Plan) -> None:
    replay, told, record = replay_at(plan, 0)
    say(replay, record)
    replay.hear("saved", record.key, "000000000000800-1c2d")
    replay.hear("finished", record.key, record)
    assert len(told.of("saved")) == 1
    assert told.calls[0] == ("stage_started", "small", None)
    assert [call[2] for call in told.of("trained")] == [point.position for point in record.train]
    assert told.calls[-1] == ("stage_finished", "small", None)
    assert not told.of("restarted")


def test_workers_that_start_again_say_nothing_twice(plan: Plan) -> None:
    """They go back to their last checkpoint and train the same points again, with the same bits."""
    replay, told, record = replay_at(plan, 1)
    replay.hear("grown", record.key, record.growth)
    say(replay, record, until_tokens=record.train[2].position)
    replay.hear("grown", record.key, record.growth)
    say(replay, record)
    assert len(told.of("restarted")) == 1
    assert len(told.of("grown")) == 1
    assert [call[2] for call in told.of("trained")] == [point.position for point in record.train]


def test_what_the_watchdog_says_is_told_of_the_stage_that_is_trained(plan: Plan) -> None:
    replay, told, record = replay_at(plan, 0)
    say(replay, record)
    told.calls.clear()
    for kind in ("trouble", "note", "waiting"):
        replay.hear(kind, "", f"{kind} of a node")
    assert told.calls == [("interrupted", "small", None), ("noted", "small", None), ("waiting", "small", None)]


def test_a_driver_that_starts_again_tells_what_an_earlier_one_saw(plan: Plan) -> None:
    """So that W&B and the screen show whole curves."""
    replay, told, record = replay_at(plan, 1)
    start = replay.stage.start_steps
    half = Progress(
        0, start + 7, 0, growth=record.growth, train=list(record.train[:2]), evaluations=[record.evaluations[0]]
    )
    replay.hear("resumed", record.key, half)
    say(replay, record)
    assert [call[0] for call in told.calls[:3]] == ["stage_started", "resumed", "grown"]
    assert len(told.of("grown")) == 1
    assert [call[2] for call in told.of("trained")] == [point.position for point in record.train]
    assert [call[2] for call in told.of("evaluated")] == [point.position for point in record.evaluations]


def test_messages_of_other_stages_are_passed_over(plan: Plan) -> None:
    replay, told, record = replay_at(plan, 0)
    replay.hear("trained", "someone else's", record.train[0])
    assert told.calls == []


def test_a_stage_that_somebody_else_may_be_training_is_not_said_to_begin(plan: Plan) -> None:
    replay, told, record = replay_at(plan, 0)
    assert replay.stage.key == record.key
    assert told.calls == []
    replay.begin()
    replay.hear("started", record.key, 0)
    assert told.calls == [("stage_started", "small", None)]


def test_runs_are_told_whole_and_in_order(plan: Plan) -> None:
    """What baselines share is trained once, and told in each of them."""
    records, told = curved_records(plan), Told()
    done: dict[str, StageRecord] = {}
    replay = EventReplay(plan.runs(), done, [told])
    replay.advance()
    while replay.stage:
        record = records[replay.stage.key]
        say(replay, record)
        replay.hear("finished", record.key, record)
        done[record.key] = record
        replay.advance()
    assert [name for what, name, _ in told.calls if what == "run_started"] == [run.name for run in plan.runs()]
    assert [name for what, name, _ in told.calls if what == "run_finished"] == [run.name for run in plan.runs()]
    expected = [stage.name for run in plan.runs() for stage in run.stages]
    assert [name for _, name, _ in told.of("stage_started")] == expected
    assert [name for _, name, _ in told.of("stage_finished")] == expected
    assert len(told.of("restarted")) == 0


def test_nothing_is_told_twice_of_a_finished_run(plan: Plan) -> None:
    told = Told()
    replay = EventReplay(plan.runs(), curved_records(plan), [told])
    replay.advance()
    count = len(told.calls)
    replay.advance()
    assert replay.stage is None
    assert len(told.calls) == count


def test_who_is_asked_to_end_after_the_last_stage_ends_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no stage any more that could be marked as aborted."""
    schedule = make_schedule(tmp_path, baseline=None)
    plan, store = make_plan(schedule), Store(open_folder(tmp_path / "store"))
    records = curved_records(plan)

    def train_all(job: Job, on_event: OnEvent, *options: object) -> bool:
        for stage in job.stages:
            store.commit_record(records[stage.key])
            on_event("finished", stage.key, records[stage.key])
        raise KeyboardInterrupt("asked to end, and all is saved")

    monkeypatch.setattr("raystage.cluster.launch.run_train", train_all)
    driver = Driver(plan, schedule, store, [], is_connected=True)
    with pytest.raises(KeyboardInterrupt, match="all is saved"):
        driver.run()
    noted = store.read_run(plan.name, "run.json")
    assert noted["state"] == "ABORTED"
    assert {row["state"] for row in noted["stages"]} == {"FINISHED"}
