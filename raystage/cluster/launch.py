"""Connects to a cluster and carries out a job on it; the driver's interface to Ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import ray
from ray.exceptions import RayError

from raystage.cluster.capacity import check_memory
from raystage.cluster.idle.ahead import Coming, StartsAhead
from raystage.cluster.idle.workers import IdleWorkers
from raystage.cluster.joined import joined
from raystage.cluster.own import end, is_own, started
from raystage.cluster.placement import await_fit
from raystage.cluster.queries import ask_cluster, get_answer
from raystage.cluster.ray_private import logs_folder
from raystage.cluster.shutdown import SHUTDOWN
from raystage.cluster.train_notes import remove_abandoned_notes
from raystage.cluster.train_run import describe_failure, has_train_run
from raystage.cluster.watchdog import OnEvent, Watchdog
from raystage.cluster.worker_group import WorkerGroup
from raystage.config.training import Training
from raystage.errors import ClusterLost, StorageError, WorkersLost
from raystage.files.filesystem import Folder
from raystage.storage.jobs import Job

_IDLE_WORKERS = IdleWorkers()


@contextlib.contextmanager
def cluster(address: str | None, cpus: int, gpus: int) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a local cluster of this process's own.

    A local cluster has at least `cpus` CPUs, whatever the machine has: three workers can share two cores.
    After an error the connection stays open: a thread may still wait for a Train run, and Ray ends a process in which
    such a thread finds the connection closed. All of it ends with this process.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # How often the Train controller looks at its workers. With the default of 2 s every stage would end later.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with joined(address) if address else started(cpus):
        try:
            yield
        except BaseException:
            _IDLE_WORKERS.let_early_go()
            raise
        dismiss()


def starting_cluster(address: str | None, cpus: int, gpus: int) -> str:
    """What `cluster` does first, in words."""
    if address:
        return f"joining the Ray cluster at {address}"
    devices = f" and {gpus} GPUs" if gpus else ""
    return f"starting a Ray cluster on this machine, with {max(cpus, os.cpu_count() or 1)} CPUs{devices}"


def starting_workers(training: Training) -> str:
    """'2 workers, which load PyTorch and DeepSpeed'."""
    if training.workers.most == 1:
        return "1 worker, which loads PyTorch and DeepSpeed"
    return f"{training.workers!s} workers, which load PyTorch and DeepSpeed"


def run_train(job: Job, on_event: OnEvent, patience_seconds: float = 0.0, coming: Coming = lambda: None) -> bool:
    """Carry out a job, on idle workers if there are suitable ones, otherwise in a new Train run.

    on_event: called in this thread with what happens. patience_seconds: how long to wait for a cluster that is still
    growing. coming: asked about once a second; the next job, once it is time to start its workers, and None before.
    Afterwards the workers stay idle for some seconds.

    Returns whether the job is finished. It is not if the workers have saved and left because one of their nodes is
    taken away. Raises ResourcesMissing, ClusterLost, WorkersLost, or the error that a worker has stopped for;
    KeyboardInterrupt if this process, or the sweep that it belongs to, is to end, after the workers have saved.
    """
    group = _IDLE_WORKERS.take(job)
    if group is None:
        on_event("preparing", "", f"starting {starting_workers(job.training)}")
        group = _start_group(job, patience_seconds, lambda what: on_event("waiting", "", what))
    control = group.control
    watchdog = Watchdog(control, job.training, on_event, SHUTDOWN)
    ahead = StartsAhead(_IDLE_WORKERS, job, coming, lambda what: on_event("note", "", what), SHUTDOWN)

    def look() -> None:
        watchdog.look()
        ahead.look()

    try:
        SHUTDOWN.saves_first = True
        error = group.carry_out(look)
        failure, has_left = get_answer(control.failure.remote()), get_answer(control.is_leaving.remote())
        is_ending = get_answer(control.is_ending.remote())
        _IDLE_WORKERS.keep(group)
    except BaseException:
        group.abandon()
        raise
    finally:
        SHUTDOWN.saves_first = False
    if failure is not None:
        raise failure
    if error is not None:
        raise WorkersLost(f"{_stages_of(job)}: {worker_failure(error)}")
    if is_ending or SHUTDOWN.received_at is not None:
        raise KeyboardInterrupt("asked to end, and all is saved")
    return not has_left


def _start_group(job: Job, patience_seconds: float, tell: Callable[[str], None]) -> WorkerGroup:
    await_fit(job.training, patience_seconds, tell)
    nodes = ask_cluster(ray.nodes)
    for stage in job.stages:
        check_memory(stage, nodes)
    group = WorkerGroup(job)
    group.assign(job)
    return group


def _stages_of(job: Job) -> str:
    """'stage small', or 'stages small to full'."""
    first, last = job.stages[0].name, job.stages[-1].name
    return f"stage {last}" if len(job.stages) == 1 else f"stages {first} to {last}"


def dismiss() -> None:
    """Have idle workers leave."""
    _IDLE_WORKERS.dismiss()


def leave_cluster(error: BaseException) -> None:
    """After an error, in a process that goes on: have idle workers leave, and end the connection, and with it a cluster
    of this process's own. Nothing is done where the cluster is lost, or a Train run is still under way."""
    if isinstance(error, ClusterLost):
        return
    with contextlib.suppress(ClusterLost, RayError):
        dismiss()
    if has_train_run() or not ray.is_initialized():
        return
    if is_own():
        end()
    else:
        ray.shutdown()


def tidy(store: Folder) -> None:
    """Remove what killed drivers have left in the store. What cannot be removed now is removed another time."""
    with contextlib.suppress(StorageError):
        remove_abandoned_notes(store)


def worker_failure(error: Exception) -> str:
    """Which worker of a Train run failed first, its own error without Ray's wrapping, and where the logs are."""
    failures = getattr(error, "worker_failures", None) or {}
    logs = f"the workers' logs are in {logs_folder() or 'the session folder of the cluster'}"
    if failures:
        return f"{describe_failure(failures)} ({logs})"
    return f"{str(error).strip().splitlines()[-1]} ({logs})"
