"""What raystage needs of a Ray cluster: it answers, its nodes agree and see the store, its workers can communicate."""

from __future__ import annotations

import contextlib
import importlib
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystage.cluster.launch import cluster, worker_failure
from raystage.cluster.placement import await_fit
from raystage.cluster.same_code import make_comparer
from raystage.cluster.train_run import TrainRun, has_train_run
from raystage.cluster.worker_environment import worker_environment
from raystage.cluster.worker_group import POLL_SECONDS
from raystage.config.training import Training
from raystage.config.types import Workers
from raystage.errors import RaystageError, WorkersLost
from raystage.files.filesystem import open_folder
from raystage.tools.findings import Finding, failed, ok, warning
from raystage.tools.machine_check import mark_in
from raystage.tools.versions import SHOWN, installed_version

WORKERS = 2
NODE_SECONDS = 60.0
TRAIN_SECONDS = 180.0
_SUMMED_ELEMENTS = 2**20
_CLUSTER_ADVICE = "`ray status` must answer on the head node; where it asks for a token, set RAY_AUTH_MODE=token here"
_OWN_ADVICE = "a run without --address needs a folder for Ray's sockets, and room in /dev/shm and on the disk"


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself. packages: versions by name; store_problem: why it does not see the store."""

    host: str
    python: str
    packages: dict[str, str | None]
    store_problem: str | None = None


class _StillWaiting(Exception):
    """Workers hang. It leaves the connection to the cluster as it is: Ray would end this process where it is shut down
    while a thread waits for a Train run."""


def check_cluster(address: str | None, store: str | None, with_train: bool = False) -> Iterator[Finding]:
    """The cluster at `address`, or a local one started for this check, node by node.

    store: its URI, which every node should see; None if the store is known to be broken.
    """
    where = f"at {address}" if address else "started on this machine"
    began = time.monotonic()
    try:
        with cluster(address, WORKERS, 0):
            yield ok("Ray cluster", f"{where} in {time.monotonic() - began:.1f} s{_resources()}")
            with _marked(store) as mark:
                yield from _check_nodes(store, mark)
                if with_train:
                    yield check_workers(store)
                if has_train_run():
                    raise _StillWaiting
    except _StillWaiting:
        return
    except RaystageError as error:
        yield failed("Ray cluster", str(error), _CLUSTER_ADVICE if address else _OWN_ADVICE)


def _resources() -> str:
    have = ray.cluster_resources()
    return f": {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"


# --- its nodes --------------------------------------------------------------------------------


@contextlib.contextmanager
def _marked(store: str | None) -> Iterator[str | None]:
    """The name of a file in the store for as long as this lasts; None where there is no store."""
    if store is None:
        yield None
    else:
        with mark_in(open_folder(store)) as (mark, _):
            yield mark


def _check_nodes(store: str | None, mark: str | None) -> Iterator[Finding]:
    """One task on each living node, all at once."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here, tell = describe(None, None), ray.remote(num_cpus=0, max_retries=0)(_make_describer())
    told = {
        node["NodeID"]: tell.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(store, mark)
        for node in nodes
    }
    ray.wait(list(told.values()), num_returns=len(told), timeout=NODE_SECONDS)
    for node in nodes:
        yield _judge_answer(node, told[node["NodeID"]], here)


def _make_describer() -> Callable[[str | None, str | None], NodeFacts | str]:
    """`describe`, or what is wrong with the raystage there. Nested, so that it comes to run whatever that is."""
    compare = make_comparer()

    def look(store: str | None, mark: str | None) -> NodeFacts | str:
        return compare() or importlib.import_module("raystage.tools.doctor_cluster").describe(store, mark)

    return look


def describe(store: str | None, mark: str | None) -> NodeFacts:
    """What runs on a node: versions, and whether it finds the file `mark` in the store."""
    return NodeFacts(
        socket.gethostname(),
        platform.python_version(),
        {name: installed_version(name) for name in SHOWN},
        None if store is None else _store_problem(store, mark),
    )


def _store_problem(store: str, mark: str) -> str | None:
    try:
        open_folder(store).read(mark)
    except FileNotFoundError:
        return f"does not see what was written to {store}"
    except RaystageError as error:
        return str(error)
    return None


def _judge_answer(node: dict[str, Any], answer: ray.ObjectRef, here: NodeFacts) -> Finding:
    check = f"node {node['NodeManagerAddress']}"
    try:
        facts = ray.get(answer, timeout=0)
    except RayError as error:  # a GetTimeoutError, too
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else type(error).__name__
        return failed(check, f"carries out no task ({reason})", "see the logs of its workers")
    if isinstance(facts, str):
        return failed(check, *facts.rsplit(": ", 1))
    return judge_node(check, node["Resources"], facts, here)


def judge_node(check: str, resources: dict[str, float], facts: NodeFacts, here: NodeFacts) -> Finding:
    """A node beside this process: Ray must be the same and Python the same minor version, the rest should be."""
    found = f"{facts.host}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, Python {facts.python}"
    if _minor(facts.python) != _minor(here.python):
        return failed(check, f"{found}, where this process has {here.python}", "use one Python on every node")
    if missing := [name for name, version in facts.packages.items() if version is None]:
        return failed(check, f"{found}, without {', '.join(missing)}", "install raystage on it")
    other = [name for name, version in facts.packages.items() if version != here.packages[name]]
    differing = ", ".join(f"{name} {facts.packages[name]} (here {here.packages[name]})" for name in other)
    if "ray" in other:
        return failed(check, f"{found}, {differing}", "install the same versions on every node: -c constraints.txt")
    if facts.store_problem:
        advice = "the store must be storage that every node sees: a shared file system, s3://, gs://"
        return failed(check, f"{found}; {facts.store_problem}", advice)
    if other:
        return warning(check, f"{found}, {differing}", "install the same versions on every node: -c constraints.txt")
    return ok(check, f"{found}, ray {facts.packages['ray']}")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


# --- its workers ------------------------------------------------------------------------------


def check_workers(store: str | None, seconds: float = TRAIN_SECONDS) -> Finding:
    """Two workers of a Train run sum a tensor over both: over NCCL where the cluster has two GPUs, else over gloo."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= WORKERS else 0
    backend = "nccl" if gpus else "gloo"
    check = f"{WORKERS} workers over {backend}"
    if store is None:
        return failed(check, "not tried, for they would write to the store", "see above")
    advice = "see what the workers' logs say; firewalls between nodes, NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME"
    began = time.monotonic()
    try:
        training = Training(workers=Workers.exactly(WORKERS), gpus_per_worker=gpus)
        await_fit(training, 0.0)
        _sum_in_train_run(training, backend, store, seconds)
    except RaystageError as error:
        return failed(check, str(error), advice)
    return ok(check, f"started, and summed {_SUMMED_ELEMENTS} numbers, in {time.monotonic() - began:.1f} s")


def _sum_in_train_run(training: Training, backend: str, store: str, seconds: float) -> None:
    """Raises WorkersLost, also where it takes longer than `seconds`."""
    folder = open_folder(store) / f"doctor-{uuid.uuid4().hex[:8]}"
    gpus = training.gpus_per_worker
    resources = {"CPU": training.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    trainer = TorchTrainer(
        _sum_over_workers,
        scaling_config=ScalingConfig(num_workers=WORKERS, use_gpu=gpus > 0, resources_per_worker=resources),
        torch_config=TorchConfig(backend=backend),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.path,
            storage_filesystem=folder.system,
            worker_runtime_env={"env_vars": worker_environment(training)},
        ),
    )
    deadline, fit = time.monotonic() + seconds, TrainRun(trainer)
    try:
        while not fit.is_over:
            if time.monotonic() > deadline:
                raise WorkersLost(f"they were not done after {seconds:g} s")
            fit.wait(POLL_SECONDS)
    finally:
        folder.delete()
    if fit.error is not None:
        raise WorkersLost(worker_failure(fit.error))


def _sum_over_workers() -> None:
    """What runs on each worker."""
    numbers = torch.ones(_SUMMED_ELEMENTS, device=get_device())
    torch.distributed.all_reduce(numbers)
    wrong = int((numbers != ray.train.get_context().get_world_size()).sum().item())
    if wrong:
        raise RuntimeError(f"{wrong} of {_SUMMED_ELEMENTS} sums over the workers are wrong")
