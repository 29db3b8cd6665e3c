"""How workers and driver talk during a Train run: the class of a small Ray actor. It imports nothing slow."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from raystage.errors import OtherCode, RaystageError

# How long workers stay idle before they leave. New workers would take 12 s to start.
KEEP_SECONDS = 10.0
# Building an engine, evaluating and saving take long, and send no heartbeats meanwhile.
PATIENCE_BETWEEN_STEPS = 10
# The time-out of torch's process groups, unless workers may be silent for longer.
GROUP_SECONDS = 1800.0


def longest_wait_seconds(hang_seconds: float) -> float:
    """How long a worker may wait for the others: as long as one of them may take for something other than steps. torch
    must not end them earlier; what hangs, the driver ends."""
    return max(GROUP_SECONDS, PATIENCE_BETWEEN_STEPS * hang_seconds)


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker last said it does, and how long ago.

    worker: its Ray actor. node: its node's id. patience_seconds: after so long without a heartbeat it hangs.
    """

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
    """A job for a group of workers. number: counts the group's jobs, from 1.

    content: the pickled job, so that this actor need not import what a job consists of.
    """

    number: int
    content: bytes


@dataclass(frozen=True)
class Message:
    """What workers tell the driver. kind: such as 'trained'. key: of the stage; '' if it is of none.

    content: pickled, so that this actor need not import what it consists of. Use `of` and `what`.
    """

    kind: str
    key: str
    content: bytes

    @classmethod
    def of(cls, kind: str, key: str, what: Any) -> Message:
        return cls(kind, key, pickle.dumps(what))

    @property
    def what(self) -> Any:
        return pickle.loads(self.content)


class ControlActor:
    """What the workers are to do, their messages for the driver, and when each worker was last heard of.

    If it dies, Ray starts it again and it knows nothing: the driver asks whether its task is finished, and assigns it
    again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._messages: list[Message] = []
        self._failure: RaystageError | None = None
        self._is_leaving = self._is_ending = self._is_dismissed = self._is_refused = False
        self._heard: dict[int, tuple[float, WorkerStatus]] = {}
        self._task: Task | None = None
        self._finished, self._idle_since, self._starts = 0, clock(), 0

    # --- tasks --------------------------------------------------------------------------------

    def assign(self, task: Task) -> bool:
        """Called by the driver: give the workers a task, or the same one again. Returns False if they have been told to
        leave."""
        if not self.is_over():
            self._task = task
        return not self.is_over()

    def next_task(self) -> Task | bool:
        """Called by the workers: a task; True for asking again later; False for leaving."""
        is_idle = not self.is_at_work()
        if is_idle and self._clock() - self._idle_since > KEEP_SECONDS:
            self.dismiss()
        return not self.is_over() and (is_idle or self._task)

    def stay(self) -> None:
        """Called by the driver: a task will come, so idle workers stay for some seconds more."""
        self._idle_since = self._clock()

    def finish(self, number: int) -> None:
        """Called by the workers: the task is carried out as far as possible."""
        self._finished, self._idle_since = max(number, self._finished), self._clock()

    def has_finished(self, number: int) -> bool | None:
        """Whether a task is finished; None if this actor does not know the task."""
        is_known = self._task is not None and self._task.number == number
        return self._finished >= number or (False if is_known else None)

    def is_at_work(self) -> bool:
        """Whether the workers have a task that is not finished and has not failed."""
        return self._task is not None and self._task.number > self._finished and self._failure is None

    def has_to_save(self) -> bool:
        """Whether workers train. Those that are just being started have not been heard of, and have nothing to save."""
        return self.is_at_work() and bool(self._heard)

    # --- the end ------------------------------------------------------------------------------

    def dismiss(self) -> None:
        """There are no more tasks: the workers leave when they ask for one."""
        self._is_dismissed = True

    def leave(self, for_good: bool = False) -> None:
        """The workers are to save and leave now. for_good: no others are to be started in their place."""
        self._is_leaving, self._is_ending = True, self._is_ending or for_good

    def is_leaving(self) -> bool:
        return self._is_leaving

    def is_ending(self) -> bool:
        """Whether they are to leave for good."""
        return self._is_ending

    def fail(self, error: RaystageError) -> None:
        """Called by a worker: training failed, and would fail again. The first error is kept."""
        self._failure = self._failure or error

    def refuse(self, difference: str) -> None:
        """Called by a worker whose raystage differs from the driver's. It may lack the exceptions to report this."""
        self._is_refused = True
        self.fail(OtherCode(difference))

    def is_refused(self) -> bool:
        return self._is_refused

    def failure(self) -> RaystageError | None:
        return self._failure

    def is_over(self) -> bool:
        """Whether workers that ask for a task are told to leave."""
        return self._is_dismissed or self._is_leaving or self._failure is not None

    # --- messages and heartbeats --------------------------------------------------------------

    def start(self) -> None:
        """Called by the first worker when the workers start, or start again."""
        self._starts += 1

    def starts(self) -> int:
        return self._starts

    def put(self, message: Message) -> None:
        """Called by the first worker."""
        self._messages.append(message)

    def take(self) -> list[Message]:
        """The messages since the last call."""
        taken, self._messages = self._messages, []
        return taken

    def hear(self, world: int, status: WorkerStatus) -> None:
        """A heartbeat of one of `world` workers. They may be fewer than before."""
        self._heard = {rank: heard for rank, heard in self._heard.items() if rank < world}
        self._heard[status.rank] = self._clock(), status

    def statuses(self) -> list[WorkerStatus]:
        """By rank; their time by this actor's clock."""
        now = self._clock()
        return [replace(status, silent_seconds=now - heard_at) for _, (heard_at, status) in sorted(self._heard.items())]

    def forget(self) -> None:
        """The workers are gone; others may come."""
        self._heard.clear()
