"""The cluster, and a job carried out on it: by whom, what is heard of it meanwhile, its failures put into words."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import ray

from raystage.crew import Crew, Standby, is_fitting
from raystage.errors import InputError, WorkersLost
from raystage.guardian import guarded
from raystage.planned import Job
from raystage.schedule import Training
from raystage.watch import Notice, OnEvent, Watch, answer, await_room

_NOTICE = Notice()
_STANDBY = Standby()
CONNECT_SECONDS = 10.0
GROWING_CLUSTER_SECONDS = 60.0
# A helper of every Train run asks the API server whether the run's controller is alive. Without this
# address it would look for a server in whatever cluster was last started on this machine, and each
# run would end 12 s late; a refused connection it takes as it comes.
NO_API_SERVER = "http://127.0.0.1:9"
_OTHER_VERSIONS = "Version mismatch"  # Ray has no error of its own for it
OBJECT_STORE_BYTES = 200 * 2**20


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
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _check_address(address)
            ray.init(address=address, **quiet)
        else:
            os.environ.setdefault("RAY_API_SERVER_ADDRESS", NO_API_SERVER)
            ray.init(
                address="local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
    except RuntimeError as error:
        if not str(error).startswith(_OTHER_VERSIONS):
            raise
        raise InputError(f"found another Ray or Python there ({_in_one_line(error)})", key="--address") from None
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {address!r} ({_first_line(error)})", key="--address") from None
    _NOTICE.install()
    with contextlib.nullcontext() if address else guarded():
        yield
        dismiss()
        if not is_fitting():
            ray.shutdown()


def starting_cluster(address: str | None, cpus: int, gpus: int) -> str:
    """What `cluster` begins with, in words."""
    if address:
        return f"joining the Ray cluster at {address}"
    devices = f" and {gpus} GPUs" if gpus else ""
    return f"starting a Ray cluster on this machine, of {max(cpus, os.cpu_count() or 1)} CPUs{devices}"


def starting_workers(training: Training) -> str:
    """'2 workers, which load PyTorch and DeepSpeed'."""
    if training.workers == 1:
        return "1 worker, which loads PyTorch and DeepSpeed"
    return f"{training.workers!s} workers, which load PyTorch and DeepSpeed"


def _check_address(address: str) -> None:
    """Refuse at once what Ray would try for minutes. Raises InputError."""
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"found {address!r}, which is where jobs are submitted to; expected the cluster's own address, "
            f"such as {urlsplit(address).hostname}:6379 or auto (or no RAY_ADDRESS in the environment)",
            key="--address",
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise InputError(
                f"no Ray cluster answers at {address!r} ({error.strerror or error})", key="--address"
            ) from None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def run_train(job: Job, on_event: OnEvent, patience_seconds: float = 0.0) -> bool:
    """Carry out a job by the workers that are at hand, or a Ray Train run of its own; `on_event` hears of it in the
    calling thread. The workers stay at hand for a little while.

    patience_seconds: how long to wait for a cluster that is still growing.

    Returns whether it was carried out to its end: workers save and leave early when a node of theirs is to go.
    Raises ResourcesMissing, ClusterLost, WorkersLost, or what a worker stopped for on purpose; KeyboardInterrupt when
    this process is to end, after the workers have saved.
    """
    crew = _STANDBY.take(job)
    if crew is None:
        on_event("preparing", "", f"starting {starting_workers(job.training)}")
        crew = _engage(job, patience_seconds)
    try:
        _NOTICE.is_heard = True
        error = crew.carry_out(Watch(crew.mailbox, job.training, on_event, _NOTICE).look)
        failure, has_left = answer(crew.mailbox.failure.remote()), answer(crew.mailbox.is_leaving.remote())
        _STANDBY.keep(crew)
    except BaseException:
        crew.abandon()
        raise
    finally:
        _NOTICE.is_heard = False
    if failure is not None:
        raise failure
    if error is not None:
        raise _in_words(error, job)
    if _NOTICE.came_at is not None:
        raise KeyboardInterrupt("asked to end, and all is saved")
    return not has_left


def _engage(job: Job, patience_seconds: float) -> Crew:
    await_room(job.training, patience_seconds)
    crew = Crew(job)
    crew.take_on(job)
    return crew


def dismiss() -> None:
    """Have workers leave that are at hand."""
    _STANDBY.dismiss()


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
