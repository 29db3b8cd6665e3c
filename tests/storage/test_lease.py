"""Leases: real processes want one stage; never two have it, and what the dead leave is taken over."""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from claimants import KEY, SPAWN, Timing, elsewhere, held, note_holding, take_turns, try_together
from raystage.errors import StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.storage.lease import Lease, Leases
from raystage.storage.processes import ProcessId, is_gone, this_process
from s3_server import S3Server, answers, cut_after

PROCESSES, ROUNDS = 8, 50
# Seconds after which a test gives up waiting for what chance has to bring about.
LONGEST = 150.0
QUICK = Timing(ttl_seconds=2.0, heartbeat_seconds=0.2)
SLOW = Timing(ttl_seconds=60.0, heartbeat_seconds=0.2)


@pytest.fixture(params=["local", "s3"])
def stages(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store's stages, on either kind of file system."""
    if request.param == "local":
        return str(tmp_path / "stages")
    return request.getfixturevalue("s3").uri(f"bucket/{uuid.uuid4().hex}/stages")


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "stages")


def leases_of(stages: str | Folder, owner: ProcessId | None = None, timing: Timing = SLOW) -> Leases:
    folder = stages if isinstance(stages, Folder) else open_folder(stages)
    return Leases(folder, owner, timing.ttl_seconds, timing.heartbeat_seconds)


def tickets(stages: Folder) -> list[str]:
    return (stages / KEY / "leases").names()


def wait_for(found: Callable[[], object], seconds: float = 20.0) -> object:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def run_all(target: Callable, arguments: list[tuple]) -> list:
    processes = [SPAWN.Process(target=target, args=own) for own in arguments]
    for process in processes:
        process.start()
    return processes


def assert_all_ended_well(processes: list) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# --- one at a time ------------------------------------------------------------------------------


def test_of_processes_that_try_at_the_same_moment_exactly_one_gets_it(stages: str) -> None:
    rounds = ROUNDS if "://" not in stages else 5
    together, won = SPAWN.Barrier(PROCESSES), SPAWN.Array("b", PROCESSES * rounds)
    processes = run_all(try_together, [(stages, rounds, together, won, number) for number in range(PROCESSES)])
    assert_all_ended_well(processes)
    winners = [sum(won[index * PROCESSES : (index + 1) * PROCESSES]) for index in range(rounds)]
    assert winners == [1] * rounds


def test_processes_that_wait_for_each_other_all_get_their_turns_alone(local: Folder, tmp_path: Path) -> None:
    arguments = [(local.path, ROUNDS // 10, str(tmp_path / "marker"))] * PROCESSES
    assert_all_ended_well(run_all(take_turns, arguments))
    assert tickets(local) == []


def test_processes_that_stand_still_at_any_moment_never_hold_it_at_once(local: Folder) -> None:
    """Each as on a host of its own, so that only time tells who is dead; they are stopped for longer than that. It goes
    on until some have held it, for as long as a busy machine takes for that."""
    notes, over, number = SPAWN.Queue(), SPAWN.Event(), 4
    timing = Timing(ttl_seconds=0.4, heartbeat_seconds=0.1)
    processes = run_all(note_holding, [(local.path, one, timing, over, notes) for one in range(number)])
    chance, held_by, watcher, began = random.Random(0), [], leases_of(local), time.monotonic()
    while not over.is_set():
        holder = watcher.holder(KEY)
        is_holders_turn = holder is not None and holder.owner is not None and chance.random() < 0.7
        process = processes[int(holder.owner.host[4:])] if is_holders_turn else chance.choice(processes)
        if process.is_alive():
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.05, 1.2))
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.1))
        while not notes.empty():
            held_by.append(notes.get())
        seconds = time.monotonic() - began
        if seconds > LONGEST or (seconds > 10 and has_changed_hands(held_by)):
            over.set()
    assert_all_ended_well(processes)
    held_by += [notes.get() for _ in range(notes.qsize())]
    assert has_changed_hands(held_by)
    assert all(last < first for (_, last), (first, _) in pairwise(spans(held_by)))


def spans(held_by: list[tuple[int, float, float]]) -> list[tuple[float, float]]:
    """From when to when it was surely held, in order."""
    return sorted((first, last) for _, first, last in held_by if last > first)


def has_changed_hands(held_by: list[tuple[int, float, float]]) -> bool:
    return len({one for one, *_ in held_by}) > 1 and len(spans(held_by)) > 5


@pytest.mark.parametrize("clock_error_seconds", [-3600.0, 3600.0])
def test_a_holder_stays_whatever_the_clock_of_a_newcomer_says(
    local: Folder, clock_error_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leases_of(local, elsewhere()).acquire(KEY) as lease:
        real_ns, real = time.time_ns, time.time
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(clock_error_seconds * 1e9))
        monkeypatch.setattr(time, "time", lambda: real() + clock_error_seconds)
        newcomer = leases_of(local)
        assert newcomer.acquire(KEY) is None
        assert newcomer.holder(KEY).owner == elsewhere()
        assert lease.held
    assert newcomer.acquire(KEY).held


def test_an_earlier_ticket_that_comes_before_the_holder_has_shown_itself_waits_and_withdraws(local: Folder) -> None:
    """A claimant that listed alone holds, even if one of an earlier ticket writes it before the first beat."""
    late = Lease(local / KEY / "leases", elsewhere(), 60.0, lambda lease: None)
    late.ticket = f"9{late.ticket[1:]}"
    late.claim()
    early = SPAWN.Process(target=take_turns, args=(local.path, 1, f"{local.path}/marker"))
    early.start()
    wait_for(lambda: len(tickets(local)) == 2)
    assert late.beat()
    wait_for(lambda: len(tickets(local)) == 2 and any(name.endswith(".beat") for name in tickets(local)), 5)
    early.join(0.5)
    assert early.is_alive()
    late.release()
    assert_all_ended_well([early])


def test_stages_have_leases_of_their_own_and_one_process_is_no_exception(local: Folder) -> None:
    mine, other = leases_of(local), leases_of(local)
    with mine.acquire(KEY):
        assert mine.acquire(KEY) is None
        assert other.acquire(KEY) is None
        with other.acquire("6" * 64) as lease:
            assert lease.held


# --- let go, or dead ----------------------------------------------------------------------------


def test_a_lease_says_who_holds_it_and_is_free_after_its_release(stages: str) -> None:
    leases = leases_of(stages)
    assert leases.holder(KEY) is None
    began = time.time()
    with leases_of(stages, elsewhere()).acquire(KEY) as lease:
        holder = leases.holder(KEY)
        assert (holder.owner, holder.is_held, lease.held, lease.lost) == (elsewhere(), True, True, False)
        assert began <= holder.since <= time.time()
        assert str(holder).startswith("process 4711 on node1 (since 20")
    assert not lease.held
    assert leases.holder(KEY) is None
    assert tickets(open_folder(stages)) == []
    assert leases.acquire(KEY).held


def test_what_a_killed_process_of_this_machine_held_is_taken_over_at_once(stages: str) -> None:
    with held(stages, SLOW) as (process, _):
        leases = leases_of(stages)
        assert leases.acquire(KEY) is None
        process.kill()
        process.join()
        assert leases.acquire(KEY).held
        assert leases.holder(KEY).owner == this_process()


def test_a_killed_process_that_nobody_has_waited_for_is_dead_too(local: Folder) -> None:
    with held(local.path, SLOW) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for(lambda: leases_of(local).acquire(KEY)).held


def test_a_process_that_has_the_id_of_a_dead_one_is_not_taken_for_it(local: Folder) -> None:
    me = this_process()
    assert not is_gone(me)
    assert is_gone(ProcessId(me.host, me.machine, me.pid, me.started - 60))
    assert not is_gone(ProcessId(me.host, "another machine", me.pid, me.started - 60))


def test_what_a_killed_process_of_another_host_held_is_taken_over_when_it_has_been_still_for_long(stages: str) -> None:
    with held(stages, QUICK, elsewhere()) as (process, _):
        leases = leases_of(stages, timing=QUICK)
        process.kill()
        began = time.monotonic()
        assert leases.acquire(KEY) is None
        lease = wait_for(lambda: leases.acquire(KEY))
        assert time.monotonic() - began > QUICK.ttl_seconds
        assert lease.held


def test_a_holder_that_beats_is_never_taken_for_dead(stages: str) -> None:
    with held(stages, QUICK, elsewhere()) as (_, line):
        leases = leases_of(stages, timing=QUICK)
        for _ in range(8):
            assert leases.acquire(KEY) is None
            time.sleep(QUICK.ttl_seconds / 4)
        line.send("state")
        assert line.recv() == (True, False)
        line.send("release")
        assert line.recv() == "released"
        assert leases.acquire(KEY).held


def test_a_suspended_holder_has_lost_the_lease_when_it_wakes(stages: str) -> None:
    with held(stages, QUICK) as (process, line):
        leases = leases_of(stages, timing=QUICK)
        os.kill(process.pid, signal.SIGSTOP)
        lease = wait_for(lambda: leases.acquire(KEY))
        os.kill(process.pid, signal.SIGCONT)
        line.send("state")
        assert line.recv()[0] is False  # before its next beat, too

        def is_lost() -> bool:
            line.send("state")
            return line.recv()[1]

        wait_for(is_lost)
        assert lease.held
        assert leases.holder(KEY).owner == this_process()


def test_a_suspended_holder_that_nobody_missed_goes_on(local: Folder) -> None:
    with held(local.path, QUICK) as (process, line):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5 * QUICK.ttl_seconds)
        os.kill(process.pid, signal.SIGCONT)

        def is_held() -> bool:
            line.send("state")
            return line.recv() == (True, False)

        wait_for(is_held)


def test_a_holder_whose_ticket_came_and_went_meanwhile_has_lost(local: Folder) -> None:
    """Another held the stage and is through with it: what was trained since is not this one's to go on with."""
    lease = leases_of(local, timing=Timing(0.2, 60.0)).acquire(KEY)
    others = leases_of(local, elsewhere(), Timing(0.2, 60.0))
    wait_for(lambda: others.acquire(KEY)).release()
    assert not lease.beat()
    assert (lease.lost, lease.held, tickets(local)) == (True, False, [])


# --- damage -------------------------------------------------------------------------------------


DAMAGED = [b"", b"{", b"[]", b"\xff", b'{"owner": 3, "since": 0}', b'{"owner": {"pid": -1}}']


def test_a_damaged_ticket_is_somebodys_until_it_has_been_still_for_long(local: Folder) -> None:
    """Of a stage for each kind of damage, so that all are waited for at once."""
    keys = {f"{number:064x}": content for number, content in enumerate(DAMAGED)}
    leases = leases_of(local, timing=QUICK)
    for key, content in keys.items():
        (local / key / "leases").write_whole("00000000000000000001-damaged.json", content)
        assert leases.acquire(key) is None, content
        holder = str(leases.holder(key))
        assert holder == "an unknown process, whose lease 00000000000000000001-damaged.json is damaged", content
    for key, content in keys.items():
        assert wait_for(lambda key=key: leases.acquire(key)).held, content
        assert not any("damaged" in name for name in (local / key / "leases").names()), content


def test_beats_that_the_store_refuses_for_a_moment_do_no_harm_and_for_long_are_not_held(s3: S3Server) -> None:
    folder = open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))
    lease = leases_of(folder, timing=Timing(2.0, 60.0)).acquire(KEY)
    with s3.faults.injected(answers("403 Forbidden", "AccessDenied")):
        with pytest.raises(StorageError):
            lease.beat()
        assert lease.held
        time.sleep(2.0)
        assert (lease.held, lease.lost) == (False, False)
    assert lease.beat()
    assert lease.held
    with s3.faults.injected(cut_after, every=3):
        assert lease.beat()
    lease.release()
    assert tickets(folder) == []


def test_a_lease_that_cannot_be_written_is_an_error_and_leaves_nothing(s3: S3Server) -> None:
    folder = open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))
    forbidden = answers("403 Forbidden", "AccessDenied")
    with (
        s3.faults.injected(forbidden, chosen=lambda environ: environ["REQUEST_METHOD"] in ("PUT", "POST")),
        pytest.raises(StorageError, match=r"leases/.*cannot be written"),
    ):
        leases_of(folder).acquire(KEY)
    assert tickets(folder) == []
