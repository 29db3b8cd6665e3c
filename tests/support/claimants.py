"""Processes that want the same lease, for tests: they say what they got, and are killed or made to stand still."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

from raystage.files.filesystem import open_folder
from raystage.storage.lease import Leases
from raystage.storage.processes import ProcessId, this_process

KEY = "5" * 64
SPAWN = multiprocessing.get_context("spawn")


def elsewhere(number: int = 1) -> ProcessId:
    """A process of another host, of which nothing is known here but what it writes."""
    return ProcessId(f"node{number}", f"machine {number}", 4711, 12.5)


def try_together(stages: str, rounds: int, together: Barrier, won: Any, number: int) -> None:
    """In every round one attempt of each process, all at the same moment; winners let go when all have tried."""
    leases = Leases(open_folder(stages))
    for index in range(rounds):
        together.wait()
        lease = leases.acquire(KEY)
        together.wait()
        won[index * together.parties + number] = lease is not None and lease.held
        if lease:
            lease.release()


def take_turns(stages: str, turns: int, marker: str) -> None:
    """Have the lease so many times, each time with a file in a place where there must be none."""
    leases = Leases(open_folder(stages))
    while turns:
        lease = leases.acquire(KEY)
        if lease is None:
            time.sleep(0.005)
            continue
        with lease:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(marker)
            turns -= 1


@dataclass(frozen=True)
class Timing:
    ttl_seconds: float
    heartbeat_seconds: float


def note_holding(stages: str, number: int, timing: Timing, over: Any, notes: Any) -> None:
    """Take the lease again and again as a process of its own host, until the event `over`, and note
    from when to when it was surely held."""
    leases = Leases(open_folder(stages), elsewhere(number), timing.ttl_seconds, timing.heartbeat_seconds)
    while not over.is_set():
        lease = leases.acquire(KEY)
        if lease is not None:
            with lease:
                notes.put((number, *_held_from_to(lease, over)))
        time.sleep(0.01)


def _held_from_to(lease: Any, over: Any) -> tuple[float, float]:
    """After the first and before the last time that it said so."""
    first, last, until = None, None, time.monotonic() + 2.5
    while not over.is_set() and time.monotonic() < until and not lease.lost:
        asked = time.monotonic()
        if lease.held:
            first, last = first or time.monotonic(), asked
        time.sleep(0.005)
    return first or 0.0, last or 0.0


def hold(stages: str, owner: ProcessId | None, timing: Timing, line: Connection) -> None:
    """Take the lease, say whether, then answer how it stands, until told to let go."""
    leases = Leases(open_folder(stages), owner, timing.ttl_seconds, timing.heartbeat_seconds)
    lease = leases.acquire(KEY)
    line.send((lease is not None, this_process()))
    while line.recv() != "release":
        line.send((lease.held, lease.lost))
    lease.release()
    line.send("released")


@contextlib.contextmanager
def held(stages: str, timing: Timing, owner: ProcessId | None = None) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that holds the lease, and the line to it; killed at the end."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(stages, owner, timing, theirs))
    process.start()
    try:
        acquired, name = ours.recv()
        assert (acquired, name.pid) == (True, process.pid)
        yield process, ours
    finally:
        process.kill()
        process.join()
