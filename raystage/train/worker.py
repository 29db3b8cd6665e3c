"""What a worker does of a job: its stages, one after the other, in one process and one Train run."""

from __future__ import annotations

import uuid

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from raystage.files.filesystem import open_folder
from raystage.plan.plan import Job, StagePlan, continues
from raystage.results.acceptance import judge
from raystage.results.record import where_it_begins
from raystage.storage.store import Store
from raystage.train.collectives import broadcast_object
from raystage.train.heartbeat import Heartbeat
from raystage.train.saving import Saver, Send
from raystage.train.stage_runner import Place, StageRunner


def run_job(job: Job, send: Send, line: Heartbeat | None = None) -> None:
    """Train the job's unfinished stages, or as much as is done when the driver asks to save and leave.

    `send(kind, stage key, what)` is called on the first worker only.

    Raises NonFiniteLoss and GrowthRejected on every worker alike, CheckpointError, InputError.
    """
    join_group()
    torch.set_num_threads(job.training.cpus_per_worker)
    store = Store(open_folder(job.store))
    attempt = broadcast_object(uuid.uuid4().hex[:8])  # what an earlier attempt left half written is never written into
    in_background = any(stage.training.checkpoint.background for stage in job.stages)
    with Saver(store, attempt, send, in_background) as saver:
        train_stages(job, Place(job.run, store, saver, send, line or Heartbeat()))


def join_group() -> None:
    """Be one of the workers of this process group, as DeepSpeed wants it; once is as good as several times."""
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)


def train_stages(job: Job, place: Place) -> None:
    """Train the job's unfinished stages, one after the other."""
    store, line = place.store, place.line
    runner: StageRunner | None = None
    for planned in job.stages:
        line.enter("entering a stage", planned.training.hang_seconds)
        is_finished, is_rejected = broadcast_object(_looked_up(planned, store))
        if is_rejected:
            break  # the driver says what comes instead
        if is_finished:
            continue
        stage = broadcast_object(
            where_it_begins(planned, store.record(planned.parent_key) if planned.parent_key else None)
        )
        if runner is not None and continues(runner.stage, stage):
            runner = runner.into(stage)
        else:
            if runner is not None:
                runner.leave()
            runner = StageRunner.enter(stage, place)
        if not runner.train():
            return  # asked to leave
        if stage.accept and broadcast_object(_looked_up(stage, store))[1]:
            break
    if runner is not None:
        runner.leave()  # another job may come


def _looked_up(stage: StagePlan, store: Store) -> tuple[bool, bool]:
    """Whether a stage is finished, and whether what came of it is not accepted."""
    record = store.record(stage.key)
    return record is not None, bool(record and stage.accept and judge(stage.accept, record))
