"""The cluster, and a job carried out on it: by whom, what is heard of it meanwhile, its failures put into words."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from raystage.cluster.joined import joined
from raystage.cluster.own import started
from raystage.cluster.shutdown import SHUTDOWN
from raystage.cluster.train_notes import remove_abandoned_notes
from raystage.cluster.watchdog import OnEvent, Watch, answer, await_room
from raystage.cluster.worker_group import IdleWorkers, WorkerGroup
from raystage.config.stage import Training
from raystage.errors import StorageError, WorkersLost
from raystage.files.filesystem import Folder
from raystage.plan.plan import Job

_IDLE_WORKERS = IdleWorkers()
GROWING_CLUSTER_SECONDS = 60.0


@contextlib.contextmanager
def cluster(address: str | None, cpus: int, gpus: int) -> Iterator[None]:
    """A connection to the cluster at `address`, or a local one of this process's own.

    A local cluster has at least `cpus` CPUs, whatever the machine has: three workers can share two cores.
    After an error the connection is left as it is, for a Train run may still be waited for in a thread of
    its own, and Ray ends a process whose thread finds it shut down. With the process, all of it ends.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # The controller looks after its workers this often; the default of 2 s delays every stage's end.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with joined(address) if address else started(cpus):
        yield
        dismiss()


def starting_cluster(address: str | None, cpus: int, gpus: int) -> str:
    """What `cluster` begins with, in words."""
    if address:
        return f"joining the Ray cluster at {address}"
    devices = f" and {gpus} GPUs" if gpus else ""
    return f"starting a Ray cluster on this machine, of {max(cpus, os.cpu_count() or 1)} CPUs{devices}"


def starting_workers(training: Training) -> str:
    """'2 workers, which load PyTorch and DeepSpeed'."""
    if training.workers.most == 1:
        return "1 worker, which loads PyTorch and DeepSpeed"
    return f"{training.workers!s} workers, which load PyTorch and DeepSpeed"


def run_train(job: Job, on_event: OnEvent, patience_seconds: float = 0.0) -> bool:
    """Carry out a job by the workers that are at hand, or a Ray Train run of its own; `on_event` hears of it in the
    calling thread. The workers stay at hand for a little while.

    patience_seconds: how long to wait for a cluster that is still growing.

    Returns whether it was carried out to its end: workers save and leave early when a node of theirs is to go.
    Raises ResourcesMissing, ClusterLost, WorkersLost, or what a worker stopped for on purpose; KeyboardInterrupt when
    this process, or the sweep that it belongs to, is to end, after the workers have saved.
    """
    crew = _IDLE_WORKERS.take(job)
    if crew is None:
        on_event("preparing", "", f"starting {starting_workers(job.training)}")
        crew = _engage(job, patience_seconds)
    try:
        SHUTDOWN.is_heard = True
        error = crew.carry_out(Watch(crew.mailbox, job.training, on_event, SHUTDOWN).look)
        failure, has_left = answer(crew.mailbox.failure.remote()), answer(crew.mailbox.is_leaving.remote())
        ends = answer(crew.mailbox.is_ending.remote())
        _IDLE_WORKERS.keep(crew)
    except BaseException:
        crew.abandon()
        raise
    finally:
        SHUTDOWN.is_heard = False
    if failure is not None:
        raise failure
    if error is not None:
        raise _in_words(error, job)
    if ends or SHUTDOWN.came_at is not None:
        raise KeyboardInterrupt("asked to end, and all is saved")
    return not has_left


def _engage(job: Job, patience_seconds: float) -> WorkerGroup:
    await_room(job.training, patience_seconds)
    crew = WorkerGroup(job)
    crew.take_on(job)
    return crew


def dismiss() -> None:
    """Have workers leave that are at hand."""
    _IDLE_WORKERS.dismiss()


def tidy(store: Folder) -> None:
    """Remove what drivers that were killed have left in the store; what does not go now goes another time."""
    with contextlib.suppress(StorageError):
        remove_abandoned_notes(store)


def _in_words(error: Exception, job: Job) -> WorkersLost:
    """The first worker's own error, without Ray's wrapping."""
    return WorkersLost(f"stage {job.stages[-1].name}: {worker_failure(error)}")


def worker_failure(error: Exception) -> str:
    """Which worker of a Train run failed first and why, and where more is said."""
    failures = getattr(error, "worker_failures", None) or {}
    logs = f"the workers' logs are in {logs_folder() or 'the session folder of the cluster'}"
    for rank, failure in sorted(failures.items()):
        lines = [line for line in str(failure).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else type(failure).__name__
        return f"worker {rank} failed: {reason} ({logs})"
    return f"{str(error).strip().splitlines()[-1]} ({logs})"


def logs_folder() -> str | None:
    """Where the logs of the cluster that this process is connected to lie, on each of its nodes; None without one."""
    node = ray._private.worker.global_worker.node
    return node.get_logs_dir_path() if node else None
