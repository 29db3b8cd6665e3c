"""How workers and driver talk while a Train run goes on: the class of a small Ray actor, which loads in no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raystage.errors import OtherCode, RaystageError

# How long workers stay for another job. Some seconds of theirs are well spent where others take 12 s to come.
KEEP_SECONDS = 10.0


@dataclass(frozen=True)
class WorkerSign:
    """What a worker was last heard to do, and how long ago. worker, node: whatever it is known by."""

    rank: int
    worker: Any
    node: str
    doing: str
    silent_seconds: float
    patience_seconds: float

    @property
    def is_late(self) -> bool:
        return self.silent_seconds > self.patience_seconds


@dataclass(frozen=True)
class Task:
    """A job to carry out, the how manieth of its workers. content: pickled, so that the mailbox need not load what it
    consists of."""

    number: int
    content: bytes


class ControlActor:
    """What workers are to do next; what they have said and nobody has fetched yet; why training must not be tried
    again, if so; whether they are to save and leave; and when each was last heard of, by this process's clock.

    One that dies begins anew and knows nothing: who gave out a task asks whether it is finished, and gives it again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: list[tuple[str, str, Any]] = []
        self._failure: RaystageError | None = None
        self._leaving = self._ends = self._is_dismissed = self._is_refused = False
        self._heard: dict[int, tuple[float, WorkerSign]] = {}
        self._task: Task | None = None
        self._finished, self._idle_since, self._starts = 0, clock(), 0

    def assign(self, task: Task) -> bool:
        """Give out a task, or the same one again. False where the workers were told to leave, and none will come."""
        if not self.is_over():
            self._task = task
        return not self.is_over()

    def next_task(self) -> Task | bool:
        """What the workers are to do: a task; ask again (True); leave (False)."""
        is_idle = not self.is_at_work()
        if is_idle and self._clock() - self._idle_since > KEEP_SECONDS:
            self.dismiss()
        return not self.is_over() and (is_idle or self._task)

    def finish(self, number: int) -> None:
        """A task is carried out, or as much of it as can be."""
        self._finished, self._idle_since = max(number, self._finished), self._clock()

    def has(self, number: int) -> bool | None:
        """Whether a task is finished; None where it is not known here."""
        is_known = self._task is not None and self._task.number == number
        return self._finished >= number or (False if is_known else None)

    def is_at_work(self) -> bool:
        """Whether there is a task that is not finished, and may be."""
        return self._task is not None and self._task.number > self._finished and self._failure is None

    def dismiss(self) -> None:
        """There are no more tasks."""
        self._is_dismissed = True

    def is_over(self) -> bool:
        """Whether workers that ask are told to leave."""
        return self._is_dismissed or self._leaving or self._failure is not None

    def start(self) -> None:
        """Workers begin, or begin anew."""
        self._starts += 1

    def starts(self) -> int:
        return self._starts

    def put(self, kind: str, key: str, what: Any) -> None:
        self._events.append((kind, key, what))

    def take(self) -> list[tuple[str, str, Any]]:
        taken, self._events = self._events, []
        return taken

    def fail(self, error: RaystageError) -> None:
        self._failure = self._failure or error

    def refuse(self, difference: str) -> None:
        """A worker has other code than the driver; it may not even have the errors that it could say so with."""
        self._is_refused = True
        self.fail(OtherCode(difference))

    def is_refused(self) -> bool:
        return self._is_refused

    def failure(self) -> RaystageError | None:
        return self._failure

    def leave(self, for_good: bool = False) -> None:
        """Have the workers save and leave. for_good: no others are to come in their place."""
        self._leaving, self._ends = True, self._ends or for_good

    def is_leaving(self) -> bool:
        return self._leaving

    def is_ending(self) -> bool:
        """Whether they were told to leave for good."""
        return self._ends

    def hear(self, world: int, sign: WorkerSign) -> None:
        """A sign of life of one of `world` workers. They may be fewer than before."""
        self._heard = {rank: heard for rank, heard in self._heard.items() if rank < world}
        self._heard[sign.rank] = self._clock(), sign

    def signs(self) -> list[WorkerSign]:
        now = self._clock()
        return [_aged(sign, now - heard_at) for _, (heard_at, sign) in sorted(self._heard.items())]

    def forget(self) -> None:
        """The workers are gone; others may come."""
        self._heard.clear()


def _aged(sign: WorkerSign, seconds: float) -> WorkerSign:
    return WorkerSign(sign.rank, sign.worker, sign.node, sign.doing, seconds, sign.patience_seconds)
