"""Whether workers of a Train run can communicate, and how fast: one on each of several nodes, over NCCL or gloo."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from raystage.cluster.launch import worker_failure
from raystage.cluster.placement import fits, places_on, resources_per_worker, too_small
from raystage.cluster.queries import ask_cluster
from raystage.cluster.train_run import TrainRun
from raystage.cluster.worker_environment import worker_environment
from raystage.cluster.worker_group import POLL_SECONDS
from raystage.config.training import Training
from raystage.config.types import Workers
from raystage.errors import RaystageError, WorkersLost
from raystage.files.filesystem import Folder, open_folder
from raystage.tools.findings import Finding, failed, ok, warning
from raystage.tools.node_findings import format_rate
from raystage.units import format_bytes

FEWEST_WORKERS = 2
MOST_WORKERS = 8
TRAIN_SECONDS = 180.0
# Of 1 and 10 Gbit/s about a half.
LEAST_BYTES_PER_SECOND = {"gloo": 60 * 10**6, "nccl": 600 * 10**6}
_FIRST_ELEMENTS = 2**20
_MOST_ELEMENTS = 2**26
_ROUND_SECONDS = 1.0
_ROUNDS = 3
_MEASURED = "bandwidth.json"
_ELEMENT_BYTES = 4
_ADVICE = (
    "see what the workers' logs say; firewalls between nodes, NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME"
)


@dataclass(frozen=True)
class Bandwidth:
    """An all-reduce over all workers. nodes: their addresses; seconds: that the fastest of several took."""

    workers: int
    nodes: tuple[str, ...]
    bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """What every worker sends, and receives, in a ring: the bus bandwidth of NCCL's own tests."""
        return 2 * (self.workers - 1) / self.workers * self.bytes / self.seconds


def check_workers(store: str | None, seconds: float = TRAIN_SECONDS) -> Finding:
    """Workers of a Train run, spread over the nodes, sum tensors: over NCCL where enough GPUs are there, else gloo."""
    training = choose_workers(ask_cluster(ray.nodes))
    backend = "nccl" if training.gpus_per_worker else "gloo"
    check = f"{training.workers!s} workers over {backend}"
    if store is None:
        return failed(check, "not tried, for they would write to the store", "see above")
    began = time.monotonic()
    try:
        if not ask_cluster(lambda: fits(training)):
            raise too_small(training)
        bandwidth = _measure(training, backend, store, seconds)
    except RaystageError as error:
        return failed(check, str(error), _ADVICE)
    return judge_bandwidth(check, backend, bandwidth, time.monotonic() - began)


def choose_workers(nodes: Sequence[Mapping[str, Any]]) -> Training:
    """As many workers as there are nodes that have room for one, but at least two; with GPUs where two have one."""
    gpus = 1 if sum(node["Resources"].get("GPU", 0) for node in nodes if node["Alive"]) >= FEWEST_WORKERS else 0
    one = Training(gpus_per_worker=gpus)
    roomy = sum(places_on(dict(node), one) > 0 for node in nodes)
    count = min(MOST_WORKERS, max(FEWEST_WORKERS, roomy))
    return Training(workers=Workers.exactly(count), gpus_per_worker=gpus, placement="spread")


def judge_bandwidth(check: str, backend: str, found: Bandwidth, total_seconds: float) -> Finding:
    """total_seconds: with the start of the workers."""
    nodes = len(set(found.nodes))
    speed = format_rate(found.bytes_per_second)
    size = format_bytes(found.bytes)
    said = f"{speed} for each worker, in an all-reduce of {size}; with the start {total_seconds:.1f} s"
    if nodes == 1:
        return ok(check, f"{said}; all on one node, so no network was tried")
    if found.bytes_per_second >= LEAST_BYTES_PER_SECOND[backend]:
        return ok(check, f"{said}; on {nodes} nodes")
    advice = (
        f"expected {format_rate(LEAST_BYTES_PER_SECOND[backend])} or more: every step sends 2 to 4 bytes for each "
        "parameter; name the fast interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), see NCCL_DEBUG=INFO, or keep "
        "workers on one node (training.placement: pack)"
    )
    return warning(check, f"{said}; on {nodes} nodes", advice)


# --- the Train run ----------------------------------------------------------------------------


def _measure(training: Training, backend: str, store: str, seconds: float) -> Bandwidth:
    """Raises WorkersLost, also where it takes longer than `seconds`."""
    folder = open_folder(store) / f"doctor-{uuid.uuid4().hex[:8]}"
    deadline, fit = time.monotonic() + seconds, TrainRun(_trainer(training, backend, folder))
    try:
        while not fit.is_over:
            if time.monotonic() > deadline:
                raise WorkersLost(f"they were not done after {seconds:g} s; free now: {_free()}")
            fit.wait(POLL_SECONDS)
        if fit.error is not None:
            raise WorkersLost(worker_failure(fit.error))
        found = json.loads(folder.read(_MEASURED))
    finally:
        folder.delete()
    return Bandwidth(found["workers"], tuple(found["nodes"]), found["bytes"], found["seconds"])


def _free() -> str:
    """Workers that wait for resources, which others use, do not start at all."""
    free = ask_cluster(ray.available_resources)
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"


def _trainer(training: Training, backend: str, folder: Folder) -> TorchTrainer:
    return TorchTrainer(
        _measure_on_worker,
        train_loop_config={"folder": folder.uri},
        scaling_config=ScalingConfig(
            num_workers=training.workers.most,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=resources_per_worker(training),
            placement_strategy=training.placement.upper(),
        ),
        torch_config=TorchConfig(backend=backend),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.path,
            storage_filesystem=folder.system,
            worker_runtime_env={"env_vars": worker_environment(training)},
        ),
    )


def _measure_on_worker(config: dict[str, Any]) -> None:
    """What runs on each worker. The first one writes down what was measured."""
    context, device = ray.train.get_context(), get_device()
    workers = context.get_world_size()
    numbers = torch.ones(_FIRST_ELEMENTS, device=device)
    torch.distributed.all_reduce(numbers)
    wrong = int((numbers != workers).sum().item())
    if wrong:
        raise RuntimeError(f"{wrong} of {_FIRST_ELEMENTS} sums over the workers are wrong")
    elements = int(_FIRST_ELEMENTS * _ROUND_SECONDS / _seconds_of_sum(_FIRST_ELEMENTS, device))
    elements = min(_MOST_ELEMENTS, max(_FIRST_ELEMENTS, elements))
    seconds = min(_seconds_of_sum(elements, device) for _ in range(_ROUNDS))
    nodes: list[Any] = [None] * workers
    torch.distributed.all_gather_object(nodes, ray.util.get_node_ip_address())
    if context.get_world_rank() == 0:
        found = Bandwidth(workers, tuple(nodes), elements * _ELEMENT_BYTES, seconds)
        open_folder(config["folder"]).write_whole(_MEASURED, json.dumps(asdict(found)).encode())


def _seconds_of_sum(elements: int, device: torch.device) -> float:
    """Of the slowest worker, so that all of them get the same answer."""
    numbers = torch.zeros(elements, device=device)
    torch.distributed.barrier()
    began = time.monotonic()
    torch.distributed.all_reduce(numbers)
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = torch.tensor([time.monotonic() - began], device=device)
    torch.distributed.all_reduce(taken, torch.distributed.ReduceOp.MAX)
    return max(1e-6, float(taken))
