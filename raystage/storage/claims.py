"""A driver's turn at a job: its own once nobody else trains any of the job's stages.

Drivers that share a store wait here for each other. What another one finishes meanwhile is there to be reused.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from raystage.errors import StageFailed
from raystage.plan.build import StagePlan, key_at, trunk_key
from raystage.storage.holder import Holder
from raystage.storage.lease import Lease, Leases
from raystage.storage.store import Store

POLL_SECONDS = 2.0

OnWaiting = Callable[[StagePlan, Holder], None]


class Turn:
    """Stages to train, and the leases of all of them."""

    def __init__(self, stages: Sequence[StagePlan], leases: Sequence[Lease], ttl_seconds: float) -> None:
        self.stages, self._leases, self._ttl_seconds = tuple(stages), leases, ttl_seconds

    def check(self) -> None:
        """Raises StageFailed where somebody else may have taken over."""
        for stage, lease in zip(self.stages, self._leases, strict=True):
            if lease.lost:
                raise StageFailed(
                    f"stage {stage.name}: this process showed no life for {self._ttl_seconds:.0f} s or more, and "
                    f"another took the stage over; the same command waits for it and reuses what it finishes"
                )


class Turns:
    """Gives a driver its turns. poll_seconds: how often is looked whether a stage is free, or finished."""

    def __init__(self, store: Store, leases: Leases, poll_seconds: float = POLL_SECONDS) -> None:
        self._store, self._leases, self._poll_seconds = store, leases, poll_seconds

    def free(self, stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
        """The stages up to the first one that is somebody's, or that can go on from one that somebody trains now."""
        return tuple(takewhile(lambda stage: self._in_the_way(stage) is None, stages))

    def wait(self, stages: Sequence[StagePlan], on_waiting: OnWaiting) -> bool:
        """Wait until none of the stages is anybody's. False as soon as one is finished.

        `on_waiting` hears of everyone who is waited for, once.
        """
        told: set[str] = set()
        while found := self._somebodys(stages):
            stage, holder = found
            if holder.is_held and holder.ticket not in told:
                told.add(holder.ticket)
                on_waiting(stage, holder)
            time.sleep(self._poll_seconds)
            if self._any_finished(stages):
                return False
        return True

    @contextlib.contextmanager
    def take(self, stages: Sequence[StagePlan]) -> Iterator[Turn | None]:
        """Within this the stages are this driver's alone: all of them, or, where one is somebody else's or finished
        by now, none; nor where there are no stages."""
        with contextlib.ExitStack() as stack:
            leases: list[Lease] = []
            for stage in stages:
                lease = self._leases.acquire(stage.key)
                if lease is None:
                    break
                leases.append(stack.enter_context(lease))
            if not leases or len(leases) < len(stages) or self._any_finished(stages):
                stack.close()
                yield None
            else:
                for stage in stages:
                    self._store.note_trunk(trunk_key(stage), stage.steps, stage.key)
                yield Turn(stages, leases, self._leases.ttl_seconds)

    def _somebodys(self, stages: Sequence[StagePlan]) -> tuple[StagePlan, Holder] | None:
        for stage in stages:
            if holder := self._in_the_way(stage):
                return stage, holder
        return None

    def _in_the_way(self, stage: StagePlan) -> Holder | None:
        """Who trains the stage, or a shorter version of it that it would go on from: one that is longer than all that
        are finished."""
        if holder := self._leases.holder(stage.key):
            return holder
        for steps, key in self._store.trunk(trunk_key(stage)):
            if steps < stage.steps and key_at(stage, steps) == key:
                if self._store.readable_record(key) is not None:
                    return None
                if holder := self._leases.holder(key):
                    return holder
        return None

    def _any_finished(self, stages: Sequence[StagePlan]) -> bool:
        return any(self._store.record(stage.key) is not None for stage in stages)
