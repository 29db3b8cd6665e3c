"""A driver's claim at stages that another one may be training: real leases in a real store, other hosts by name."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from claimants import elsewhere
from factories import make_record, make_schedule
from raystage.errors import StageFailed
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.storage.claims import Claim, Claims
from raystage.storage.lease import Leases
from raystage.storage.processes import LeaseHolder
from raystage.storage.store import Store
from small_checkpoints import flat_cuts, write

TTL_SECONDS = 1.0
# Of a driver that is dead. Its thread would go on beating through later tests.
NEVER = 1e6


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


@pytest.fixture
def stages(tmp_path: Path) -> tuple[StagePlan, ...]:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text")).staged.stages


def leases_of(store: Store, number: int, heartbeat_seconds: float = TTL_SECONDS / 8) -> Leases:
    return Leases(store.folder / "stages", elsewhere(number), TTL_SECONDS, heartbeat_seconds)


def claims_of(store: Store) -> Claims:
    return Claims(store, leases_of(store, 1), poll_seconds=0.02)


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, stage: StagePlan, holder: LeaseHolder) -> None:
        self.calls.append((stage.name, holder.owner.host))


def check_until(claim: Claim, deadline: float) -> None:
    while time.monotonic() < deadline:
        claim.check()


def finish(store: Store, stage: StagePlan) -> None:
    folder = store.checkpoint_folder(stage.key, stage.end, "attempt")
    write(folder, flat_cuts(2), tokens=stage.end)
    store.commit_record(make_record(stage, 1.5, checkpoint=f"checkpoints/{folder.name}"))


def test_a_turn_is_all_stages_or_none(store: Store, stages: tuple[StagePlan, ...]) -> None:
    claims, others = claims_of(store), leases_of(store, 2)
    with others.acquire(stages[1].key), claims.take(stages) as claim:
        assert claim is None
        others.acquire(stages[0].key).release()  # let go again
    with claims.take(stages) as claim:
        claim.check()
        assert [others.holder(stage.key).owner.host for stage in stages] == ["node1"] * len(stages)
    assert [others.holder(stage.key) for stage in stages] == [None] * len(stages)


def test_leases_are_let_go_on_every_way_out(store: Store, stages: tuple[StagePlan, ...]) -> None:
    with pytest.raises(KeyboardInterrupt), claims_of(store).take(stages):
        raise KeyboardInterrupt
    assert leases_of(store, 2).acquire(stages[0].key).held


def test_there_is_no_turn_at_what_was_finished_a_moment_ago(store: Store, stages: tuple[StagePlan, ...]) -> None:
    finish(store, stages[0])
    with claims_of(store).take(stages) as claim:
        assert claim is None
    assert leases_of(store, 2).holder(stages[0].key) is None


def test_there_is_no_turn_at_nothing(store: Store) -> None:
    """What was free a moment ago may be somebody else's before it is taken."""
    with claims_of(store).take(()) as claim:
        assert claim is None


def test_who_is_waited_for_is_told_once(store: Store, stages: tuple[StagePlan, ...]) -> None:
    told, lease = Told(), leases_of(store, 2).acquire(stages[1].key)
    threading.Timer(0.5, lease.release).start()
    began = time.monotonic()
    assert claims_of(store).wait(stages, told)
    assert time.monotonic() - began > 0.3
    assert told.calls == [(stages[1].name, "node2")]


def test_the_waiting_ends_with_the_record(store: Store, stages: tuple[StagePlan, ...]) -> None:
    with leases_of(store, 2).acquire(stages[0].key):
        threading.Timer(0.3, finish, (store, stages[0])).start()
        assert not claims_of(store).wait(stages, Told())


def test_the_waiting_ends_when_the_other_is_dead(store: Store, stages: tuple[StagePlan, ...]) -> None:
    leases_of(store, 2, heartbeat_seconds=NEVER).acquire(stages[0].key)
    claims, told = claims_of(store), Told()
    assert claims.wait(stages, told)
    with claims.take(stages) as claim:
        assert claim is not None
    assert told.calls == [(stages[0].name, "node2")]


def test_a_driver_that_died_with_several_stages_is_waited_for_once(store: Store, stages: tuple[StagePlan, ...]) -> None:
    dead = leases_of(store, 2, heartbeat_seconds=NEVER)
    assert all(dead.acquire(stage.key) for stage in stages)
    claims = claims_of(store)
    assert claims.free(stages) == ()
    assert claims.wait(stages[:1], Told())
    assert claims.free(stages) == stages


def test_a_driver_that_was_taken_over_stops_with_one_line(store: Store, stages: tuple[StagePlan, ...]) -> None:
    mine, others = leases_of(store, 1, heartbeat_seconds=3.0), leases_of(store, 2)
    with Claims(store, mine).take(stages[:1]) as claim:
        deadline = time.monotonic() + 20
        while (other := others.acquire(stages[0].key)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        claim.check()  # before its next beat it does not know
        with pytest.raises(
            StageFailed, match=f"^stage {stages[0].name}: .*another process took the stage over; run the same"
        ):
            check_until(claim, deadline)
        assert not other.lost


def test_a_longer_version_waits_for_a_shorter_one_that_somebody_trains(store: Store, tmp_path: Path) -> None:
    """Not for one that is finished, of which it goes on at once, and not for one whose rates are others."""
    short, long, other = first_stages(tmp_path)
    claims, others = claims_of(store), Claims(store, leases_of(store, 2), poll_seconds=0.02)
    with others.take([short]):
        assert claims.free([long]) == ()
        assert claims.free([other]) == (other,)
        told = Told()
        threading.Timer(0.3, finish, (store, short)).start()
        assert claims.wait([long], told)
        assert told.calls == [("small", "node2")]
        assert claims.free([long]) == (long,)


def test_a_shorter_version_does_not_wait_for_a_longer_one(store: Store, tmp_path: Path) -> None:
    short, long, _ = first_stages(tmp_path)
    with Claims(store, leases_of(store, 2)).take([long]):
        assert claims_of(store).free([short]) == (short,)


def test_nobody_waits_for_a_shorter_version_than_one_that_is_finished(store: Store, tmp_path: Path) -> None:
    shortest, short, long = first_stages(tmp_path, *((tokens, "constant") for tokens in (400, 600, 800)))
    with claims_of(store).take([short]):
        finish(store, short)
    with Claims(store, leases_of(store, 2)).take([shortest]):
        assert claims_of(store).free([long]) == (long,)


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
