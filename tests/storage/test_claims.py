"""A driver's turn at stages that another one may be training: real leases in a real store, other hosts by name."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from claimants import elsewhere
from factories import make_record, make_schedule
from raystage.errors import StageFailed
from raystage.files.filesystem import open_folder
from raystage.plan.build import StagePlan, make_plan
from raystage.storage.claims import Turn, Turns
from raystage.storage.holder import Holder
from raystage.storage.lease import Leases
from raystage.storage.store import Store
from small_checkpoints import flat_cuts, write

TTL_SECONDS = 1.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


@pytest.fixture
def stages(tmp_path: Path) -> tuple[StagePlan, ...]:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text")).staged.stages


def leases_of(store: Store, number: int, heartbeat_seconds: float = TTL_SECONDS / 8) -> Leases:
    return Leases(store.folder / "stages", elsewhere(number), TTL_SECONDS, heartbeat_seconds)


def turns_of(store: Store) -> Turns:
    return Turns(store, leases_of(store, 1), poll_seconds=0.02)


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, stage: StagePlan, holder: Holder) -> None:
        self.calls.append((stage.name, holder.owner.host))


def check_until(turn: Turn, deadline: float) -> None:
    while time.monotonic() < deadline:
        turn.check()


def finish(store: Store, stage: StagePlan) -> None:
    folder = store.checkpoint_folder(stage.key, stage.end_tokens, "attempt")
    write(folder, flat_cuts(2), tokens=stage.end_tokens)
    store.commit_record(make_record(stage, 1.5, checkpoint=f"checkpoints/{folder.name}"))


def test_a_turn_is_all_stages_or_none(store: Store, stages: tuple[StagePlan, ...]) -> None:
    turns, others = turns_of(store), leases_of(store, 2)
    with others.acquire(stages[1].key), turns.take(stages) as turn:
        assert turn is None
        others.acquire(stages[0].key).release()  # let go again
    with turns.take(stages) as turn:
        turn.check()
        assert [others.holder(stage.key).owner.host for stage in stages] == ["node1"] * len(stages)
    assert [others.holder(stage.key) for stage in stages] == [None] * len(stages)


def test_leases_are_let_go_on_every_way_out(store: Store, stages: tuple[StagePlan, ...]) -> None:
    with pytest.raises(KeyboardInterrupt), turns_of(store).take(stages):
        raise KeyboardInterrupt
    assert leases_of(store, 2).acquire(stages[0].key).held


def test_there_is_no_turn_at_what_was_finished_a_moment_ago(store: Store, stages: tuple[StagePlan, ...]) -> None:
    finish(store, stages[0])
    with turns_of(store).take(stages) as turn:
        assert turn is None
    assert leases_of(store, 2).holder(stages[0].key) is None


def test_there_is_no_turn_at_nothing(store: Store) -> None:
    """What was free a moment ago may be somebody else's before it is taken."""
    with turns_of(store).take(()) as turn:
        assert turn is None


def test_who_is_waited_for_is_told_once(store: Store, stages: tuple[StagePlan, ...]) -> None:
    told, lease = Told(), leases_of(store, 2).acquire(stages[1].key)
    threading.Timer(0.5, lease.release).start()
    began = time.monotonic()
    assert turns_of(store).wait(stages, told)
    assert time.monotonic() - began > 0.3
    assert told.calls == [(stages[1].name, "node2")]


def test_the_waiting_ends_with_the_record(store: Store, stages: tuple[StagePlan, ...]) -> None:
    with leases_of(store, 2).acquire(stages[0].key):
        threading.Timer(0.3, finish, (store, stages[0])).start()
        assert not turns_of(store).wait(stages, Told())


def test_the_waiting_ends_when_the_other_is_dead(store: Store, stages: tuple[StagePlan, ...]) -> None:
    leases_of(store, 2, heartbeat_seconds=60.0).acquire(stages[0].key)
    turns, told = turns_of(store), Told()
    assert turns.wait(stages, told)
    with turns.take(stages) as turn:
        assert turn is not None
    assert told.calls == [(stages[0].name, "node2")]


def test_a_driver_that_was_taken_over_stops_with_one_line(store: Store, stages: tuple[StagePlan, ...]) -> None:
    mine, others = leases_of(store, 1, heartbeat_seconds=3.0), leases_of(store, 2)
    with Turns(store, mine).take(stages[:1]) as turn:
        deadline = time.monotonic() + 20
        while (other := others.acquire(stages[0].key)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        turn.check()  # before its next beat it does not know
        with pytest.raises(StageFailed, match=f"^stage {stages[0].name}: .*another took the stage over; the same"):
            check_until(turn, deadline)
        assert not other.lost


def test_a_longer_version_waits_for_a_shorter_one_that_somebody_trains(store: Store, tmp_path: Path) -> None:
    """Not for one that is finished, of which it goes on at once, and not for one whose rates are others."""
    short, long, other = first_stages(tmp_path)
    turns, others = turns_of(store), Turns(store, leases_of(store, 2), poll_seconds=0.02)
    with others.take([short]):
        assert turns.free([long]) == ()
        assert turns.free([other]) == (other,)
        told = Told()
        threading.Timer(0.3, finish, (store, short)).start()
        assert turns.wait([long], told)
        assert told.calls == [("small", "node2")]
        assert turns.free([long]) == (long,)


def test_a_shorter_version_does_not_wait_for_a_longer_one(store: Store, tmp_path: Path) -> None:
    short, long, _ = first_stages(tmp_path)
    with Turns(store, leases_of(store, 2)).take([long]):
        assert turns_of(store).free([short]) == (short,)


def test_nobody_waits_for_a_shorter_version_than_one_that_is_finished(store: Store, tmp_path: Path) -> None:
    shortest, short, long = first_stages(tmp_path, *((tokens, "constant") for tokens in (400, 600, 800)))
    with turns_of(store).take([short]):
        finish(store, short)
    with Turns(store, leases_of(store, 2)).take([shortest]):
        assert turns_of(store).free([long]) == (long,)


def first_stages(folder: Path, *rates: tuple[int, str]) -> list[StagePlan]:
    """400 tokens and 800 at one constant rate, then 800 at one that falls, unless others are given."""
    (folder / "text").mkdir()
    rates = rates or ((400, "constant"), (800, "constant"), (800, "cosine"))
    return [
        make_plan(
            make_schedule(
                folder / "text",
                training={"lr_schedule": {"kind": kind, "warmup": 100}},
                stages=[{"name": "small", "model": {"num_layers": 2}, "until": {"tokens": tokens}}],
            )
        ).staged.stages[0]
        for tokens, kind in rates
    ]
