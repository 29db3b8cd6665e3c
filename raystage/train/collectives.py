"""The process group of a Train run's workers, and plain Python values exchanged in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import psutil
import ray
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed
from torch.distributed import distributed_c10d

from raystage.errors import RaystageError

Result = TypeVar("Result")


def broadcast_object(value: Any, group: Any = None) -> Any:
    """The first worker's value, on every worker. What was found in the store must not differ between workers. group: a
    process group; None stands for the default one, here and below."""
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]


def from_first(find: Callable[[], Result]) -> Result:
    """What the first worker finds, on every worker; the others do not look. An error of it is raised on all of them.
    A process without others is the first."""
    if not distributed.is_initialized():
        return find()
    result, own = None, None
    if distributed.get_rank() == 0:
        try:
            result = find()
        except Exception as error:  # raised below, on all workers
            own = error
    result, error = broadcast_object((result, own and portable(own)))
    if error is not None:
        raise own or error
    return result


def portable(error: Exception) -> Exception:
    """An error as the other workers get it. Errors of other packages may not be picklable: those become text."""
    if isinstance(error, RaystageError):
        return error
    return RuntimeError(f"worker {distributed.get_rank()} failed: {type(error).__name__}: {error}")


def gather_objects(value: Any, group: Any = None) -> list:
    """On the first worker every worker's value, in the order of ranks; on the others an empty list."""
    is_first = distributed.get_rank() == 0
    values: list = [None] * distributed.get_world_size() if is_first else []
    distributed.gather_object(value, values if is_first else None, dst=0, group=group)
    return values


def all_gather_objects(value: Any, group: Any = None) -> list:
    """Every worker's value, in the order of ranks."""
    values: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group)
    return values


# --- joining ----------------------------------------------------------------------------------


def join_process_group() -> None:
    """Join the process group of the workers through DeepSpeed. Further calls do nothing."""
    if get_accelerator().device_name() == "cuda":
        _use_one_gpu()
        _name_interface()
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)


def let_groups_wait(seconds: float) -> None:
    """How long the workers may wait for each other in process groups that are made from now on.

    DeepSpeed makes groups of its own and cannot be told: with NCCL, torch would end the processes after 10 minutes.
    Private names, so a test holds that they count.
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timedelta(seconds=seconds))


def _use_one_gpu() -> None:
    """Have DeepSpeed use the GPU that Ray has given to this worker.

    DeepSpeed takes number LOCAL_RANK of the GPUs that the process sees, which are those of all workers of the node. Ray
    sorts them as text: where a node has more than ten, number 2 is GPU 10. Ray has set the device before this.
    """
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())


def _name_interface() -> None:
    """Let gloo communicate over the interface of this node's address, unless the user names one. Checkpoints that are
    saved in the background use gloo beside NCCL. By itself it takes the address of the host's name, which on many
    systems is the loopback's."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and ray.is_initialized():
        found = interface_of(ray.util.get_node_ip_address())
        os.environ |= {"GLOO_SOCKET_IFNAME": found} if found else {}


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the address; None if none has."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return interface
    return None
