"""A worker of a Train run: carries out the jobs that the driver gives, and the stages of each job one after the other.

Only workers import this: drivers do not need DeepSpeed, which takes seconds to load.
"""

from __future__ import annotations

import pickle
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import ray.train
import torch

from raystage.errors import GrowthRejected, InputError, NonFiniteLoss, RaystageError
from raystage.files.filesystem import open_folder
from raystage.plans.stage import StagePlan
from raystage.results.acceptance import reasons_against
from raystage.results.record import where_it_begins, with_real_ends
from raystage.storage.jobs import Job, continues
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE
from raystage.train.collectives import broadcast_object, from_first, join_process_group, let_groups_wait
from raystage.train.control_actor import Message, Task, WorkerStatus, longest_wait_seconds
from raystage.train.heartbeat import Heartbeat
from raystage.train.saving import Saver, Send
from raystage.train.stage_runner import JobContext, StageRunner

POLL_SECONDS = 0.1


# --- the jobs of a Train run ------------------------------------------------------------------


def train_on_worker(control: Any) -> None:
    """Carry out jobs until there are no more. control: the Train run's `ControlActor`.

    An error that raystage raises on purpose would only come again: it is left in the control actor, which tells workers
    that Ray starts again to leave at once.
    """
    join_process_group()
    is_first = ray.train.get_context().get_world_rank() == 0
    if is_first:
        control.start.remote()
    while task := broadcast_object(_next_task(control) if is_first else None):
        if not _carry_out(pickle.loads(task.content), control):
            return
        if is_first:
            ray.get(control.finish.remote(task.number))


def _next_task(control: Any) -> Task | None:
    while (found := ray.get(control.next_task.remote())) is True:
        time.sleep(POLL_SECONDS)
    return found or None


def _carry_out(job: Job, control: Any) -> bool:
    """Returns False if all workers stopped for the same reason."""
    try:
        run_job(job, lambda *message: control.put.remote(Message.of(*message)), _make_heartbeat(control))
    except (NonFiniteLoss, GrowthRejected) as error:  # raised on all workers alike, so all can leave without an error
        ray.get(control.fail.remote(error))
        return False
    except RaystageError as error:  # perhaps on this worker alone: Ray must stop the others
        ray.get(control.fail.remote(error))
        raise
    ray.get([control.put.remote(Message.of("left", job.stages[-1].key, None)), control.forget.remote()])
    return True


def _make_heartbeat(control: Any) -> Heartbeat:
    runtime, train = ray.get_runtime_context(), ray.train.get_context()
    worker, node = runtime.current_actor, runtime.get_node_id()
    rank, world = train.get_world_rank(), train.get_world_size()

    def send(doing: str, patience_seconds: float) -> None:
        control.hear.remote(world, WorkerStatus(rank, worker, node, doing, 0.0, patience_seconds))

    return Heartbeat(send, PolledAnswer(control.is_leaving.remote))


class PolledAnswer:
    """Asks an actor a yes-no question without waiting. Each call returns the answer to an earlier question."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask, self._pending = ask, ask()

    def __call__(self) -> bool:
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready:
            return False
        answer, self._pending = ray.get(self._pending), self._ask()
        return answer


# --- the stages of a job ----------------------------------------------------------------------


def run_job(job: Job, send: Send, heartbeat: Heartbeat | None = None) -> None:
    """Train the job's unfinished stages; if the driver asks for it, save and leave before that.

    send(kind, stage key, what): called on the first worker only.

    Raises NonFiniteLoss and GrowthRejected on all workers alike; CheckpointError, InputError.
    """
    join_process_group()
    let_groups_wait(longest_wait_seconds(job.training.hang_seconds))
    torch.set_num_threads(job.training.cpus_per_worker)
    # Deterministic algorithms would fill all new memory with NaN otherwise: DeepSpeed's buckets of GBs in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    store = Store(open_folder(job.store))
    check_store(store, job.run)
    # A new name for what this attempt writes: it never writes into what an earlier attempt left unfinished.
    attempt = broadcast_object(uuid.uuid4().hex[:8])
    in_background = any(stage.training.checkpoint.background for stage in job.stages)
    with Saver(store, attempt, send, in_background) as saver:
        train_stages(job, JobContext(job.run, store, saver, send, heartbeat or Heartbeat()))


def check_store(store: Store, run: str) -> None:
    """Raises InputError if this node does not see what the driver has written into the store before it started workers.

    The first worker would otherwise write the manifest of a checkpoint whose other shards are on other nodes.
    run: the name of a run; '' if there is no driver.
    """
    if run and store.run_folder(run).size_of(RUN_FILE) is None:
        missing = (store.run_folder(run) / RUN_FILE).uri
        raise InputError(
            f"node {socket.gethostname()} does not see what the driver has written there: found no {missing}; "
            f"expected storage that every node sees under the same name, such as a shared file system or s3://",
            key="--store",
        )


def train_stages(job: Job, context: JobContext) -> None:
    """Train the job's unfinished stages, one after the other."""
    store = context.store
    runner: StageRunner | None = None
    for planned in job.stages:
        context.heartbeat.enter("entering a stage", planned.training.hang_seconds)
        is_finished, is_rejected = from_first(partial(_look_up, planned, store))
        if is_rejected:
            break  # the driver decides what to train instead
        if is_finished:
            continue
        stage = from_first(partial(_as_it_begins, planned, store))
        if runner is not None and continues(runner.stage, stage):
            runner = runner.into(stage)
        else:
            if runner is not None:
                runner.leave()
            runner = StageRunner.enter(stage, context)
        if not runner.train():
            return  # asked to leave
        if stage.accept and from_first(partial(_look_up, stage, store))[1]:
            break
    if runner is not None:
        runner.leave()  # another job may come


def _as_it_begins(planned: StagePlan, store: Store) -> StagePlan:
    """The stage with the positions at which the stages before it have really ended."""
    parent = store.record(planned.parent_key) if planned.parent_key else None
    return with_real_ends(where_it_begins(planned, parent), store.record)


def _look_up(stage: StagePlan, store: Store) -> tuple[bool, bool]:
    """Whether a stage is finished, and whether its gate rejects it."""
    record = store.record(stage.key)
    return record is not None, bool(record and reasons_against(stage, record))
