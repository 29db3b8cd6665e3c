"""Workers that stay together: one Train run, which carries out one job after the other.

To start a Train run takes 12 s and more, most of it for processes to load torch and DeepSpeed. So workers whose job is
done stay for some seconds. The next job of this process that needs the same workers is theirs, whether it is of the
same schedule or, in a sweep, of the trial after.

Workers tell the driver how they do through a small actor: unlike `ray.train.report` it does not hold the training up,
and it keeps what was said when a worker dies. What counts, checkpoints and records, goes through the store alone.
"""

from __future__ import annotations

import contextlib
import importlib
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.cluster.own import is_own, notes_folder
from raystage.cluster.placement import give_back_room
from raystage.cluster.same_code import make_comparer
from raystage.cluster.train_notes import new_notes
from raystage.cluster.train_run import Fit
from raystage.cluster.watchdog import answer, in_time
from raystage.config.stage import Training
from raystage.errors import ClusterLost
from raystage.plan.plan import Job
from raystage.train.control_actor import ControlActor, Task

POLL_SECONDS = 0.2
# Workers that have nothing to do need not even save.
DISMISS_SECONDS = 20.0
_MAILBOX = "raystage-mailbox-"


class WorkerGroup:
    """The workers of one Train run, as a job needs them. They are started with the first job that is carried out."""

    def __init__(self, job: Job) -> None:
        self._training = job.training
        self.mailbox = _open_mailbox()
        self._terms = _terms(job)
        # Where Ray Train keeps its own notes on a run; none of them are needed afterwards.
        self._folder = new_notes(notes_folder() if is_own() else job.store, job.stages[-1].key)
        self._task = Task(0, b"")
        self._fit: Fit | None = None

    def take_on(self, job: Job) -> bool:
        """Whether the job is theirs from here on. Not where it needs others, or these are about to leave."""
        self._task = Task(self._task.number + 1, pickle.dumps(job))
        has_ended = self._fit is not None and self._fit.is_over
        return _terms(job) == self._terms and not has_ended and answer(self.mailbox.assign.remote(self._task))

    def carry_out(self, meanwhile: Callable[[], None]) -> Exception | None:
        """Until the job is done or the workers are gone; `meanwhile` is called several times a second. Returns what a
        Train run failed with. Ray Train starts workers again; where its controller dies, another run is begun."""
        error: Exception | None = None
        for _ in range(self._training.max_failures + 1):
            self._fit = self._fit or Fit(self._trainer())
            while not self._fit.is_over and not self._is_done():
                meanwhile()
                self._fit.wait(POLL_SECONDS)
            meanwhile()
            error = self._fit.error if self._fit.is_over else None
            if isinstance(error, RayActorError):
                give_back_room(error.actor_id)
            elif error is not None or not self._have_left_too_early():
                break
            self._fit = None
        return error

    def _have_left_too_early(self) -> bool:
        """Whether they had been idle for long enough to leave, and the mailbox, which died then, forgot it."""
        return self._fit.is_over and not self._is_done() and not answer(self.mailbox.is_over.remote())

    def _is_done(self) -> bool:
        is_done = answer(self.mailbox.has.remote(self._task.number))
        if is_done is None:
            answer(self.mailbox.assign.remote(self._task))
        return bool(is_done)

    def is_at_hand(self) -> bool:
        """Whether the workers can have another job. Those that were started again have used up some of its failures."""
        has_ended = self._fit is None or self._fit.is_over
        return not has_ended and not answer(self.mailbox.is_over.remote()) and answer(self.mailbox.starts.remote()) <= 1

    def dismiss(self) -> None:
        """Have the workers leave, and wait for it: Ray must not be shut down under a Train run."""
        with contextlib.suppress(ClusterLost, RayError):
            if self._fit is not None and not self._fit.is_over:
                answer(self.mailbox.dismiss.remote())
                self._fit.wait(DISMISS_SECONDS)
            error = self._fit.error if self._fit is not None else None
            if isinstance(error, RayActorError):
                in_time(lambda: give_back_room(error.actor_id))
            # Where workers are just being started again, they will ask, and must hear that they are to leave.
            if self._fit is None or self._fit.is_over:
                self.abandon()

    def abandon(self) -> None:
        """Leave the workers to end with this process, unless they have. Asks the cluster nothing: it may be lost."""
        ray.kill(self.mailbox)
        self._folder.delete()

    def tidy(self) -> None:
        """Leave nothing that somebody would have to remove, for where this process ends before its workers do."""
        self._folder.delete()

    def _trainer(self) -> TorchTrainer:
        training, on_gpu = self._training, self._training.gpus_per_worker > 0
        resources = {"CPU": training.cpus_per_worker, **({"GPU": training.gpus_per_worker} if on_gpu else {})}
        return TorchTrainer(
            _make_train(),
            train_loop_config={"mailbox": self.mailbox},
            scaling_config=ScalingConfig(num_workers=_wanted(training), use_gpu=on_gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            run_config=RunConfig(
                # A name of its own: Ray would go on silently with a run that it finds under the same one.
                name=f"{self._folder.name}-{uuid.uuid4().hex[:8]}",
                storage_path=self._folder.path,
                storage_filesystem=self._folder.system,
                failure_config=FailureConfig(max_failures=training.max_failures),
                worker_runtime_env={"env_vars": worker_environment(training)},
            ),
        )


class IdleWorkers:
    """The workers of this process that have no job at the moment, if there are any."""

    def __init__(self) -> None:
        self._crew: WorkerGroup | None = None

    def take(self, job: Job) -> WorkerGroup | None:
        """Them, where they have taken the job on; else none, and none are left."""
        crew, self._crew = self._crew, None
        if crew is None or crew.take_on(job):
            return crew
        crew.dismiss()
        return None

    def keep(self, crew: WorkerGroup) -> None:
        """For another job, where they can have one; else they leave."""
        if crew.is_at_hand():
            crew.tidy()
            self._crew = crew
        else:
            crew.dismiss()

    def dismiss(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.dismiss()


def _terms(job: Job) -> tuple[Any, ...]:
    """What two jobs must agree in for the same workers to carry them out."""
    return job.stages[0].layout, job.training.max_failures


def _open_mailbox() -> Any:
    """Beside the driver, so that no node that is lost takes it along; one that dies all the same starts again."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    return remote(ControlActor).options(name=f"{_MAILBOX}{uuid.uuid4().hex}").remote()


def have_all_leave(check: Callable[[], None]) -> bool:
    """Have the workers of all crews of this job of Ray's save and leave for good, and wait until those have that were
    at work: a sweep's trials have theirs in processes of their own. `check` is called meanwhile.

    Returns whether any were at work. Raises ClusterLost, and what `check` raises.
    """
    mailboxes = _open_mailboxes()
    at_work = [mailbox for mailbox in mailboxes if _ask(mailbox.is_at_work, check)]
    for mailbox in mailboxes:
        _ask(mailbox.leave, check, for_good=True)
    for mailbox in at_work:
        while _ask(mailbox.is_at_work, check):
            time.sleep(POLL_SECONDS)
    return bool(at_work)


def _open_mailboxes() -> list[Any]:
    found = []
    for name in in_time(ray.util.list_named_actors):
        if name.startswith(_MAILBOX):
            with contextlib.suppress(ValueError):  # gone meanwhile
                found.append(in_time(partial(ray.get_actor, name)))
    return found


def _ask(method: Any, check: Callable[[], None], **options: Any) -> Any:
    """What a mailbox answers; None where it is gone: its crew is, too."""
    try:
        return answer(method.remote(**options), check)
    except RayActorError:
        return None


def _wanted(training: Training) -> int | tuple[int, int]:
    """How many workers, as Ray Train takes it."""
    workers = training.workers
    return (workers.least, workers.most) if workers.is_elastic else workers.most


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


def _make_train() -> Callable[[dict[str, Any]], None]:
    """What Ray Train runs on each worker. Nested, so that it comes to run there whatever raystage is there."""
    compare = make_comparer()

    def train(config: dict[str, Any]) -> None:
        mailbox = config["mailbox"]
        if ray.get(mailbox.is_refused.remote()):
            return
        if difference := compare():
            ray.get(mailbox.refuse.remote(difference))
            raise RuntimeError(difference)
        # By its name, so that DeepSpeed is loaded there and not here.
        importlib.import_module("raystage.train.worker_loop").train_on_worker(mailbox)

    return train
