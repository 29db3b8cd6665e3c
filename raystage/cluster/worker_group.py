"""A group of workers: one Train run, which carries out one job after the other.

To start a Train run takes 12 s and more, most of it for processes to load torch and DeepSpeed. So workers whose job is
finished stay idle for some seconds. They carry out the next job of this process that needs the same workers, of the
same schedule or, in a sweep, of the next trial.

Workers and driver talk through a small actor, the `ControlActor`. Unlike `ray.train.report` it does not delay training,
and it keeps messages when a worker dies. Results, which are checkpoints and records, go through the store alone.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import pickle
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raystage.cluster.job_variables import WithVariables
from raystage.cluster.own import is_own, notes_folder
from raystage.cluster.placement import release_resources_of, resources_per_worker
from raystage.cluster.queries import ask_cluster, get_answer, here
from raystage.cluster.ray_private import FindsCoordinator
from raystage.cluster.same_code import make_comparer
from raystage.cluster.train_notes import new_notes
from raystage.cluster.train_run import TellsFailures, TrainRun, describe_setup_failure
from raystage.cluster.worker_environment import worker_environment
from raystage.config.training import Training
from raystage.errors import ClusterLost, StorageError
from raystage.files.retry import brief
from raystage.storage.jobs import Job
from raystage.train.control_actor import ControlActor, Message, Task, longest_wait_seconds

POLL_SECONDS = 0.5
# Idle workers have nothing to save.
DISMISS_SECONDS = 20.0
# Between two tries on nodes that cannot set up the job.
SETUP_SECONDS = 10.0
_CONTROL = "raystage-control-"


class WorkerGroup:
    """The workers of one Train run, as `job` needs them. They are started by `start`, or by the first call of
    `carry_out`."""

    def __init__(self, job: Job) -> None:
        self._training = job.training
        self.control = _start_control_actor()
        self._requirements = _requirements(job)
        # Where Ray Train keeps its own files about a run; none of them is needed afterwards.
        self._folder = new_notes(notes_folder() if is_own() else job.store, job.stages[-1].key)
        self._task = Task(0, b"")
        self._train_run: TrainRun | None = None

    def start(self) -> None:
        """Start the workers before they have a job. They wait for it as long as `stay` is called again and again."""
        self._train_run = TrainRun(self._trainer())

    def stay(self) -> None:
        """Have workers without a job stay for some seconds more. Does not wait for an answer."""
        self.control.stay.remote()

    def takes(self, job: Job) -> bool:
        """Give the workers a job, if they can have one."""
        return self.is_available() and self.assign(job)

    def assign(self, job: Job) -> bool:
        """Give the workers a job. Returns False if it needs other workers, or if these are about to leave."""
        self._task = Task(self._task.number + 1, pickle.dumps(job))
        has_ended = self._train_run is not None and self._train_run.is_over
        if has_ended or _requirements(job) != self._requirements:
            return False
        return get_answer(self.control.assign.remote(self._task))

    def carry_out(self, meanwhile: Callable[[], None]) -> Exception | None:
        """Return when the job is finished or the workers are gone. meanwhile: called several times a second.

        Returns the error of the Train run, if it failed. Ray Train starts failed workers again; if its controller
        dies, or a node cannot set up the job, this starts another Train run.
        """
        error, told = None, None
        tries = self._training.max_failures + 1
        while tries:
            self._train_run = self._train_run or TrainRun(self._trainer())
            while not self._train_run.is_over and not self._is_done():
                meanwhile()
                self._train_run.wait(POLL_SECONDS)
            meanwhile()
            error = self._train_run.error if self._train_run.is_over else None
            failure = describe_setup_failure(error)
            if isinstance(error, RayActorError):
                release_resources_of(error.actor_id)
            elif failure:  # not counted: `meanwhile` raises an error if no workers start for long
                tries, told = tries + 1, self._told(failure, told)
                _pause(SETUP_SECONDS, meanwhile)
            elif error is not None or not self._have_left_too_early():
                break
            tries -= 1
            self._train_run = None
        return error

    def _told(self, failure: str, before: str | None) -> str:
        """Tell the driver of a failure, unless it was the one before. Returns it."""
        if failure != before:
            again = "it is tried again (Ray itself asks a node again after 10 minutes)"
            self.control.put.remote(Message.of("trouble", "", f"{failure}; {again}"))
        return failure

    def _have_left_too_early(self) -> bool:
        """Whether the workers left because they were idle for too long, and the control actor died and forgot it."""
        is_over = self._train_run.is_over
        return is_over and not self._is_done() and not get_answer(self.control.is_over.remote())

    def _is_done(self) -> bool:
        is_done = get_answer(self.control.has_finished.remote(self._task.number))
        if is_done is None:
            get_answer(self.control.assign.remote(self._task))
        return bool(is_done)

    def is_available(self) -> bool:
        """Whether the workers can have another job. If they were started again, some of the failures that the next job
        may have are used up."""
        if self._train_run is None or self._train_run.is_over or get_answer(self.control.is_over.remote()):
            return False
        return get_answer(self.control.starts.remote()) <= 1

    def dismiss(self) -> None:
        """Have the workers leave, and wait until they have."""
        self.let_go()
        self.see_off(DISMISS_SECONDS)

    def let_go(self) -> None:
        """Have the workers leave, without waiting for anything. Those that are just being started leave once they ask
        for a job."""
        with contextlib.suppress(RayError):
            self.control.dismiss.remote()
        self.remove_notes()

    def see_off(self, seconds: float) -> bool:
        """Wait until workers that were told to leave have left, and remove what they leave behind: Ray must not be shut
        down during a Train run. Returns whether they have."""
        with contextlib.suppress(ClusterLost, RayError):
            if self._train_run is not None:
                self._train_run.wait(seconds)
                if not self._train_run.is_over:
                    # Workers that are just being started again will ask the actor, which has to tell them to leave.
                    return False
                error = self._train_run.error
                if isinstance(error, RayActorError):
                    ask_cluster(lambda: release_resources_of(error.actor_id))
            self.abandon()
        return True

    def abandon(self) -> None:
        """Leave the workers to end with this process. Does not ask the cluster, which may be lost."""
        ray.kill(self.control)
        self.remove_notes()

    def remove_notes(self) -> None:
        """Remove what would stay behind if this process ended before its workers do. A store that does not answer is
        not waited for: the next driver removes it."""
        with contextlib.suppress(StorageError):
            brief(self._folder.delete)()

    def _trainer(self) -> TorchTrainer:
        training, on_gpu = self._training, self._training.gpus_per_worker > 0
        return TorchTrainer(
            _make_train(),
            train_loop_config={"control": self.control},
            scaling_config=ScalingConfig(
                num_workers=_num_workers(training),
                use_gpu=on_gpu,
                resources_per_worker=resources_per_worker(training),
                placement_strategy=training.placement.upper(),
                label_selector=dict(training.node_labels) or None,
            ),
            torch_config=TorchConfig("nccl" if on_gpu else "gloo", timeout_s=_group_seconds(training)),
            run_config=RunConfig(
                # A new name: Ray would silently continue a run that it finds under the same name.
                name=f"{self._folder.name}-{uuid.uuid4().hex[:8]}",
                storage_path=self._folder.path,
                storage_filesystem=self._folder.system,
                failure_config=FailureConfig(max_failures=training.max_failures),
                worker_runtime_env={"env_vars": worker_environment(training)},
                callbacks=[WithVariables(), FindsCoordinator(), TellsFailures(self.control)],
            ),
        )


def _requirements(job: Job) -> tuple[Any, ...]:
    """What must be equal in two jobs for the same workers to carry out both."""
    return job.stages[0].layout, job.training.max_failures, _group_seconds(job.training)


def _pause(seconds: float, meanwhile: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()
        time.sleep(POLL_SECONDS)


# --- control actors ---------------------------------------------------------------------------


def _start_control_actor() -> Any:
    """On the driver's node, so that no lost node takes it along. If it dies all the same, Ray starts it again."""
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, label_selector=here())
    return remote(ControlActor).options(name=f"{_CONTROL}{uuid.uuid4().hex}").remote()


def have_all_leave(check: Callable[[], None]) -> bool:
    """Have the workers of all groups of this Ray job save and leave for good, and wait until they have.

    The trials of a sweep have their groups in processes of their own. check: called meanwhile. Returns whether any
    workers had something to save. Raises ClusterLost, and what `check` raises.
    """
    actors = _control_actors()
    saving = [actor for actor in actors if _ask(actor.has_to_save, check)]
    for actor in actors:
        _ask(actor.leave, check, for_good=True)
    for actor in saving:
        while _ask(actor.has_to_save, check):
            time.sleep(POLL_SECONDS)
    return bool(saving)


def _control_actors() -> list[Any]:
    found = []
    for name in ask_cluster(ray.util.list_named_actors):
        if name.startswith(_CONTROL):
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                found.append(ask_cluster(partial(ray.get_actor, name)))
    return found


def _ask(method: Any, check: Callable[[], None], **options: Any) -> Any:
    """What a control actor answers; None if it has ended, and with it its workers."""
    try:
        return get_answer(method.remote(**options), check)
    except RayActorError:
        return None


# --- what a Train run is made of --------------------------------------------------------------


def _num_workers(training: Training) -> int | tuple[int, int]:
    """The number of workers in the form of Ray Train."""
    workers = training.workers
    return (workers.least, workers.most) if workers.is_elastic else workers.most


def _group_seconds(training: Training) -> int:
    return math.ceil(longest_wait_seconds(training.hang_seconds))


def _make_train() -> Callable[[dict[str, Any]], None]:
    """What Ray Train runs on each worker. Nested, so that its code reaches the worker whatever raystage is there."""
    compare = make_comparer()

    def train(config: dict[str, Any]) -> None:
        control = config["control"]
        if ray.get(control.is_refused.remote()):
            return
        if difference := compare():
            ray.get(control.refuse.remote(difference))
            raise RuntimeError(difference)
        importlib.import_module("raystage.cluster.job_variables").get_variables()
        # Imported by name, so that DeepSpeed is loaded by the workers and not by the driver.
        importlib.import_module("raystage.train.worker").train_on_worker(control)

    return train
