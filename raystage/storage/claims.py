"""A driver's claim on the stages of a job: it may train them once no other driver trains any of them.

Drivers that share a store wait here for each other. What another driver finishes meanwhile is reused.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from raystage.errors import StageFailed
from raystage.plans.keys import key_at, trunk_key
from raystage.plans.stage import StagePlan
from raystage.storage.lease import Lease, Leases
from raystage.storage.processes import LeaseHolder
from raystage.storage.store import Store

POLL_SECONDS = 2.0

OnWaiting = Callable[[StagePlan, LeaseHolder], None]


class Claim:
    """Stages to train, and the leases of all of them."""

    def __init__(self, stages: Sequence[StagePlan], leases: Sequence[Lease], ttl_seconds: float) -> None:
        self.stages, self._leases, self._ttl_seconds = tuple(stages), leases, ttl_seconds

    def check(self) -> None:
        """Raises StageFailed if another process may have taken over a stage."""
        for stage, lease in zip(self.stages, self._leases, strict=True):
            if lease.lost:
                raise StageFailed(
                    f"stage {stage.name}: this process did not renew its lease for {self._ttl_seconds:.0f} s or more, "
                    f"and another process took the stage over; "
                    f"run the same command again: it waits for that process and reuses what it finishes"
                )


class Claims:
    """Makes claims for one driver. poll_seconds: how often it checks whether a stage is free or finished."""

    def __init__(self, store: Store, leases: Leases, poll_seconds: float = POLL_SECONDS) -> None:
        self._store, self._leases, self._poll_seconds = store, leases, poll_seconds

    def free(self, stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
        """The stages before the first one that another process trains, or whose prefix another process trains now."""
        # All are looked at: of a process that died with several, that is then noticed once, not after a wait for each.
        holders = [self._blocked_by(stage) for stage in stages]
        return tuple(stage for stage, _ in takewhile(lambda one: one[1] is None, zip(stages, holders, strict=True)))

    def wait(self, stages: Sequence[StagePlan], on_waiting: OnWaiting) -> bool:
        """Wait until no other process has one of the stages. Returns False as soon as one of them is finished.

        on_waiting: called once for each process that is waited for.
        """
        told: set[str] = set()
        while found := self._first_blocked(stages):
            stage, holder = found
            if holder.is_held and holder.ticket not in told:
                told.add(holder.ticket)
                on_waiting(stage, holder)
            time.sleep(self._poll_seconds)
            if self._any_finished(stages):
                return False
        return True

    @contextlib.contextmanager
    def take(self, stages: Sequence[StagePlan]) -> Iterator[Claim | None]:
        """Within this context only this driver has the stages.

        Gives None if there are no stages, if another process has one of them, or if one is finished meanwhile.
        """
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
                yield Claim(stages, leases, self._leases.ttl_seconds)

    def _first_blocked(self, stages: Sequence[StagePlan]) -> tuple[StagePlan, LeaseHolder] | None:
        for stage in stages:
            if holder := self._blocked_by(stage):
                return stage, holder
        return None

    def _blocked_by(self, stage: StagePlan) -> LeaseHolder | None:
        """The process that trains the stage, or the prefix that the stage would start from: a shorter version of it
        that is longer than all finished ones."""
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
