"""The worker groups of this process that have no job at the moment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ray.exceptions import RayError

from raystage.cluster.worker_group import DISMISS_SECONDS, WorkerGroup
from raystage.errors import StorageError
from raystage.storage.jobs import Job


class IdleWorkers:
    """At most one group that is done with its job, at most one that was started ahead of its job, and any number that
    have been told to leave."""

    def __init__(self) -> None:
        self._done: WorkerGroup | None = None
        self._early: WorkerGroup | None = None
        self._leaving: list[WorkerGroup] = []

    def take(self, job: Job) -> WorkerGroup | None:
        """The group that takes the job; the others leave. It does not wait for them.

        Where none takes it, this waits until they have left: the workers of the job may need their room.
        """
        taken: WorkerGroup | None = None
        for group in self._drawn():
            if taken is None and group.takes(job):
                taken = group
            else:
                self._let_go(group)
        self._see_off(0.0 if taken else DISMISS_SECONDS)
        return taken

    def keep(self, group: WorkerGroup) -> None:
        """Keep a group for another job; if it cannot have one, it leaves."""
        if group.is_available():
            group.remove_notes()
            self._done = group
        else:
            group.dismiss()

    def dismiss(self) -> None:
        """Have all leave, and wait until they have: Ray must not be shut down during a Train run."""
        for group in self._drawn():
            self._let_go(group)
        self._see_off(DISMISS_SECONDS)

    # --- a group ahead of its job -------------------------------------------------------------

    @property
    def has_early(self) -> bool:
        """Whether a group that was started ahead of its job waits for it, or is being started."""
        return self._early is not None

    def start_early(self, job: Job) -> None:
        """Start the workers of a job that comes next, without the job. What goes wrong is left for when the job comes:
        then others are started, and tell of it."""
        with contextlib.suppress(StorageError, RayError):
            group = WorkerGroup(job)
            group.start()
            self._early = group

    def tend(self) -> None:
        """Called about once a second while a job is carried out: the early group stays."""
        if self._early is not None:
            self._early.stay()
        self._see_off(0.0)

    def let_early_go(self) -> None:
        """Have the early group leave, without waiting for it."""
        group, self._early = self._early, None
        if group is not None:
            self._let_go(group)

    # --- leaving ------------------------------------------------------------------------------

    def _drawn(self) -> Iterator[WorkerGroup]:
        """The groups that wait for a job. They are not kept any longer."""
        groups, self._done, self._early = (self._done, self._early), None, None
        return (group for group in groups if group is not None)

    def _let_go(self, group: WorkerGroup) -> None:
        group.let_go()
        self._leaving.append(group)

    def _see_off(self, seconds: float) -> None:
        """Forget the groups that have left. seconds: how long to wait for all of them together."""
        deadline = time.monotonic() + seconds
        self._leaving = [one for one in self._leaving if not one.see_off(max(0.0, deadline - time.monotonic()))]
