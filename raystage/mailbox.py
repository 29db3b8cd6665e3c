"""How workers and driver talk while a Train run goes on: the class of a small Ray actor, which loads in no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raystage.errors import RaystageError


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


class Mailbox:
    """What workers have said and nobody has fetched yet; why training must not be tried again, if so; whether they
    are to save and leave; and when each of them was last heard of, by this process's clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: list[tuple[str, str, Any]] = []
        self._failure: RaystageError | None = None
        self._leaving = False
        self._heard: dict[int, tuple[float, WorkerSign]] = {}

    def put(self, kind: str, key: str, what: Any) -> None:
        self._events.append((kind, key, what))

    def take(self) -> list[tuple[str, str, Any]]:
        taken, self._events = self._events, []
        return taken

    def fail(self, error: RaystageError) -> None:
        self._failure = self._failure or error

    def failure(self) -> RaystageError | None:
        return self._failure

    def leave(self) -> None:
        self._leaving = True

    def is_leaving(self) -> bool:
        return self._leaving

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
