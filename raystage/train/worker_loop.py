"""What every worker of a Train run does: one job after the other, as the driver gives them out.

Only workers import this: drivers can do without DeepSpeed, which takes seconds to load.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train

from raystage.errors import GrowthRejected, NonFiniteLoss, RaystageError
from raystage.plan.plan import Job
from raystage.train.collectives import broadcast_object
from raystage.train.control_actor import Task, WorkerSign
from raystage.train.heartbeat import Heartbeat
from raystage.train.worker import join_group, run_job

ASK_SECONDS = 0.1


def train_on_worker(mailbox: Any) -> None:
    """Carry out jobs until there are no more.

    An error raystage stops for on purpose would only come again: it is left in the mailbox, and workers that
    Ray starts anew are told to leave at once.
    """
    join_group()
    is_first = ray.train.get_context().get_world_rank() == 0
    if is_first:
        mailbox.start.remote()
    while task := broadcast_object(_next_task(mailbox) if is_first else None):
        if not _carry_out(pickle.loads(task.content), mailbox):
            return
        if is_first:
            ray.get(mailbox.finish.remote(task.number))


def _next_task(mailbox: Any) -> Task | None:
    while (found := ray.get(mailbox.next_task.remote())) is True:
        time.sleep(ASK_SECONDS)
    return found or None


def _carry_out(job: Job, mailbox: Any) -> bool:
    """Whether that is done. False where all workers stopped for the same reason."""
    try:
        run_job(job, lambda kind, key, what: mailbox.put.remote(kind, key, what), _lifeline(mailbox))
    except (NonFiniteLoss, GrowthRejected) as error:  # on every worker alike, so all can leave quietly
        ray.get(mailbox.fail.remote(error))
        return False
    except RaystageError as error:  # perhaps on this worker alone: the others must be stopped
        ray.get(mailbox.fail.remote(error))
        raise
    ray.get([mailbox.put.remote("left", job.stages[-1].key, None), mailbox.forget.remote()])
    return True


def _lifeline(mailbox: Any) -> Heartbeat:
    """This worker's line to the driver."""
    runtime, train = ray.get_runtime_context(), ray.train.get_context()
    worker, node = runtime.current_actor, runtime.get_node_id()
    rank, world = train.get_world_rank(), train.get_world_size()

    def sign(doing: str, patience_seconds: float) -> None:
        mailbox.hear.remote(world, WorkerSign(rank, worker, node, doing, 0.0, patience_seconds))

    return Heartbeat(sign, Question(mailbox.is_leaving.remote))


class Question:
    """Asked of an actor without waiting: an answer is to the question before."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask, self._pending = ask, ask()

    def __call__(self) -> bool:
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready:
            return False
        answer, self._pending = ray.get(self._pending), self._ask()
        return answer
