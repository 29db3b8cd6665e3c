"""The process group of a Train run's workers, and plain Python values exchanged in it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import deepspeed
import psutil
import ray
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed
from torch.distributed import distributed_c10d


def broadcast_object(value: Any) -> Any:
    """The first worker's value, on every worker. What was found in the store must not differ between workers."""
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_objects(value: Any, group: Any = None) -> list:
    """Every worker's value, in the order of ranks. group: a process group; None stands for the default one."""
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
