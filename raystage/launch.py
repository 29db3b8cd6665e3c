"""A job as a Ray Train run: started, listened to, its failures put into words.

Workers tell the driver how they do through a small actor: unlike `ray.train.report` it does not hold
the training up, and it keeps what was said when a worker dies. What counts, checkpoints and records,
goes through the store alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.errors import BrokenPromise, InputError, NonFiniteLoss, RaystageError, WorkersLost
from raystage.guardian import guarded
from raystage.lifeline import Lifeline
from raystage.mailbox import Mailbox, WorkerSign
from raystage.room import give_back_room
from raystage.schedule import Training
from raystage.storage import open_folder
from raystage.watch import Notice, OnEvent, Watch, answer, await_room
from raystage.worker import Job, run_job

_FIT_THREAD = "raystage-fit"
_NOTICE = Notice()
POLL_SECONDS = 0.2
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
        ray.shutdown()


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
    """Carry out a job as one Ray Train run; `on_event` hears of it in the calling thread.

    patience_seconds: how long to wait for a cluster that is still growing.

    Returns whether it was carried out to its end: workers save and leave early when a node of theirs is to go.
    Raises ResourcesMissing, ClusterLost, WorkersLost, or what a worker stopped for on purpose; KeyboardInterrupt when
    this process is to end, after the workers have saved.
    """
    training = job.stages[0].training
    await_room(training, patience_seconds)
    mailbox = _open_mailbox()
    try:
        _NOTICE.is_heard = True
        error = _fit_again(job, training, mailbox, Watch(mailbox, training, on_event, _NOTICE).look)
        failure, has_left = answer(mailbox.failure.remote()), answer(mailbox.is_leaving.remote())
    finally:
        _NOTICE.is_heard = False
        ray.kill(mailbox)
        _run_folder(job).delete()
    if failure is not None:
        raise failure
    if error is not None:
        raise _in_words(error, job)
    if _NOTICE.came_at is not None:
        raise KeyboardInterrupt("asked to end, and all is saved")
    return not has_left


def _open_mailbox() -> Any:
    """Beside the driver, so that no node that is lost takes it along; one that dies all the same starts again."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    return remote(Mailbox).remote()


def _trainer(job: Job, training: Training, mailbox: Any) -> TorchTrainer:
    folder = _run_folder(job)
    on_gpu = training.gpus_per_worker > 0
    resources = {"CPU": training.cpus_per_worker, **({"GPU": training.gpus_per_worker} if on_gpu else {})}
    return TorchTrainer(
        train_on_worker,
        train_loop_config={"job": job, "mailbox": mailbox},
        scaling_config=ScalingConfig(num_workers=_wanted(training), use_gpu=on_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            # A name of its own: Ray would go on silently with a run that it finds under the same one.
            name=f"{job.stages[-1].key[:12]}-{uuid.uuid4().hex[:8]}",
            storage_path=folder.path,
            storage_filesystem=folder.system,
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": worker_environment(training)},
        ),
    )


def _wanted(training: Training) -> int | tuple[int, int]:
    """How many workers, as Ray Train takes it."""
    workers = training.workers
    return (workers.least, int(workers)) if workers.is_elastic else int(workers)


def worker_environment(training: Training) -> dict[str, str]:
    """What must be set before a worker imports torch and DeepSpeed."""
    variables = {
        "OMP_NUM_THREADS": str(training.cpus_per_worker),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Nothing here is compiled, but DeepSpeed would load the whole compiler to find out (2 s).
        "TORCHDYNAMO_DISABLE": "1",
    }
    return {**variables, "DS_ACCELERATOR": "cuda" if training.gpus_per_worker else "cpu"}


def train_on_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker.

    An error raystage stops for on purpose would only come again: it is left in the mailbox, and workers that
    Ray starts anew leave at once when they find it there.
    """
    job, mailbox = config["job"], config["mailbox"]
    if ray.get(mailbox.failure.remote()) is not None:
        return
    try:
        run_job(job, lambda kind, key, what: mailbox.put.remote(kind, key, what), _lifeline(mailbox))
    except (NonFiniteLoss, BrokenPromise) as error:  # on every worker alike, so all can leave quietly
        ray.get(mailbox.fail.remote(error))
    except RaystageError as error:  # perhaps on this worker alone: the others must be stopped
        ray.get(mailbox.fail.remote(error))
        raise
    ray.get([mailbox.put.remote("left", job.stages[-1].key, None), mailbox.forget.remote()])


def _lifeline(mailbox: Any) -> Lifeline:
    """This worker's line to the driver."""
    runtime, train = ray.get_runtime_context(), ray.train.get_context()
    worker, node = runtime.current_actor, runtime.get_node_id()
    rank, world = train.get_world_rank(), train.get_world_size()

    def sign(doing: str, patience_seconds: float) -> None:
        mailbox.hear.remote(world, WorkerSign(rank, worker, node, doing, 0.0, patience_seconds))

    return Lifeline(sign, Question(mailbox.is_leaving.remote))


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


def _fit_again(job: Job, training: Training, mailbox: Any, meanwhile: Callable[[], None]) -> Exception | None:
    """Run a trainer, and another where its controller dies: Ray Train starts workers again, but not that."""
    error: Exception | None = None
    for _ in range(training.max_failures + 1):
        error = fit_in_thread(_trainer(job, training, mailbox), meanwhile)
        if not isinstance(error, RayActorError):
            break
        give_back_room(error.actor_id)
    return error


def fit_in_thread(trainer: TorchTrainer, meanwhile: Callable[[], None]) -> Exception | None:
    """Run the trainer in a thread of its own, so that this one stays free to listen. Returns its error."""
    outcome: list[Exception | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except Exception as error:  # handed to the calling thread, which puts it into words
            outcome.append(error)

    thread = threading.Thread(target=fit, name=_FIT_THREAD, daemon=True)
    thread.start()
    while thread.is_alive():
        meanwhile()
        thread.join(POLL_SECONDS)
    meanwhile()
    return outcome[0]


def is_waiting() -> bool:
    """Whether a Train run is still being waited for: after an interruption, say."""
    return any(thread.name == _FIT_THREAD for thread in threading.enumerate())


def _run_folder(job: Job) -> Any:
    """Where Ray Train keeps its own notes on a run; none of them are needed afterwards."""
    return open_folder(job.store) / "ray" / job.stages[-1].key[:12]


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
