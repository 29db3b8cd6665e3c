"""Starts the workers of the next job while the present one ends, so that they have loaded torch and DeepSpeed by then.

They take what nobody uses, and give it back when somebody else waits for it: another job, or the present one, which has
lost a node and starts again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from raystage.cluster.capacity import check_memory
from raystage.cluster.idle.room import Surroundings, has_room, look_around
from raystage.cluster.idle.workers import IdleWorkers
from raystage.cluster.queries import ask_cluster
from raystage.cluster.shutdown import ShutdownSignal
from raystage.errors import ResourcesMissing
from raystage.storage.jobs import Job

LOOK_SECONDS = 1.0
# Ray places a group that has room within a second, on a busy machine within three. What waits longer waits for room.
WAITING_SECONDS = 5.0
# The present job may go back to a checkpoint, and then it takes longer than was thought. Nobody else should wait for
# that.
LONGEST_SECONDS = 300.0

Coming = Callable[[], Job | None]


class StartsAhead:
    """Looks after the early workers while one job is carried out: `look` is to be called several times a second.

    present: the job. coming: the next one, once it is time to start its workers, and None before. tell: called with
    what is started, in words.
    """

    def __init__(
        self, idle: IdleWorkers, present: Job, coming: Coming, tell: Callable[[str], None], shutdown: ShutdownSignal
    ) -> None:
        self._idle, self._present, self._coming, self._tell, self._shutdown = idle, present, coming, tell, shutdown
        self._looked_at = time.monotonic()
        self._patience = Patience()
        self._is_over = False

    def look(self) -> None:
        """Raises ClusterLost."""
        if self._shutdown.received_at is not None:
            self._end()
        now = time.monotonic()
        if self._is_over or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._idle.tend()
        if self._idle.has_early:
            if self._patience.is_over(now, ask_cluster(look_around).others_wait):
                self._end()
        elif job := self._coming():
            self._start(job, ask_cluster(look_around))

    def _start(self, job: Job, surroundings: Surroundings) -> None:
        if not has_room(surroundings, self._present.training, job.training):
            return
        try:
            for stage in job.stages:
                check_memory(stage, surroundings.nodes)
        except ResourcesMissing:  # told when the job begins
            self._is_over = True
            return
        self._tell(describe_start(job))
        self._patience = Patience(time.monotonic())
        self._idle.start_early(job)
        self._is_over = not self._idle.has_early

    def _end(self) -> None:
        self._is_over = True
        self._idle.let_early_go()


class Patience:
    """How long early workers stay. began: by `time.monotonic`."""

    def __init__(self, began: float = 0.0) -> None:
        self._began = self._none_waited_at = began

    def is_over(self, now: float, others_wait: bool) -> bool:
        """others_wait: whether somebody waits for resources; for a moment that are these workers themselves."""
        if not others_wait:
            self._none_waited_at = now
        return now - self._none_waited_at >= WAITING_SECONDS or now - self._began >= LONGEST_SECONDS


def describe_start(job: Job) -> str:
    """'starting the 2 workers of stage full ahead'."""
    workers = job.training.workers.most
    return f"starting the {f'{workers} workers' if workers > 1 else 'worker'} of stage {job.stages[0].name} ahead"
