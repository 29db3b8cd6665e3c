"""Work that takes one worker long: the others wait without a limit, and say that they are alive."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from torch import distributed

from distributed import run_workers
from raystage.errors import InputError
from raystage.train.collectives import broadcast_object
from raystage.train.heartbeat import Heartbeat
from raystage.train.timing.together import done_together

POLL_SECONDS = 0.05
POLLS = 5


class Beats:
    """A heartbeat that counts, by a clock on which every beat is due."""

    def __init__(self) -> None:
        self.count, self.now = 0, 0.0
        self.heartbeat = Heartbeat(self._send, clock=self._tick)

    def _send(self, doing: str, patience_seconds: float) -> None:
        self.count += 1

    def _tick(self) -> float:
        self.now += 10
        return self.now


def waits(folder: str) -> tuple[str, int]:
    """The first worker's work ends when the second one has sent some heartbeats while it waited."""
    beats, sign, rank = Beats(), Path(folder, "sign"), distributed.get_rank()

    def work() -> str:
        while rank == 0 and not sign.exists():
            time.sleep(POLL_SECONDS)
        return f"done by {rank}"

    class Watched(Heartbeat):
        def goes_on(self) -> None:
            beats.heartbeat.goes_on()
            if rank == 1 and beats.count >= POLLS:
                sign.touch()

    return done_together(work, Watched(), POLL_SECONDS), beats.count


def fails_on_the_second(kind: str) -> str:
    rank = distributed.get_rank()

    def work() -> None:
        if rank == 0:
            threading.Event().wait()  # in a thread that ends with the process: nobody waits for it
        raise {"raystage": InputError("found nothing", key="data"), "other": ValueError("no number")}[kind]

    with pytest.raises((InputError, RuntimeError, ValueError)) as caught:
        done_together(work, Heartbeat(), POLL_SECONDS)
    broadcast_object(None)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_worker_that_waits_sends_heartbeats(tmp_path: Path) -> None:
    (first, _), (second, beats) = run_workers(2, waits, str(tmp_path), folder=tmp_path / "run")
    assert (first, second) == ("done by 0", "done by 1")
    assert beats >= POLLS


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("raystage", "InputError: data: found nothing", "InputError: data: found nothing"),
        ("other", "RuntimeError: worker 1 failed: ValueError: no number", "ValueError: no number"),
    ],
)
def test_an_error_is_raised_on_all_at_once(kind: str, first: str, second: str, tmp_path: Path) -> None:
    assert run_workers(2, fails_on_the_second, kind, folder=tmp_path) == [first, second]
