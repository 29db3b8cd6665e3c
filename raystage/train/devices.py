"""What a worker's device can do at best, how much memory was used, and how much energy.

Energy is measured by the counters of NVIDIA's GPUs, which count what their boards have used. Without such a counter, on
a CPU or without the package nvidia-ml-py, nothing is reported. Hosts, their CPUs and cooling are not counted; the work
of others on the same GPU is.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

try:
    import pynvml
except ImportError:  # an optional extra: pip install raystage[energy]
    pynvml = None

# Dense peak FLOP/s by (part of the) device name, in bf16 and in fp32 (TF32 off), from the vendors' data sheets.
_PEAKS = (
    ("H200", 989e12, 67e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10", 125e12, 31.2e12),
)


def peak_flops_per_second(precision: str) -> float | None:
    """Peak FLOP/s of one device at a precision; None if it is not known, as for any CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    for part, bf16, fp32 in _PEAKS:
        if part in name:
            return bf16 if precision == "bf16" else fp32
    return None


# --- memory -----------------------------------------------------------------------------------


def forget_peak_memory() -> None:
    """Let `peak_memory_bytes` count from now on. If Linux does not allow that, it counts from the process's start."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory that this process has used: on its GPU if it has one, otherwise resident in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- energy -----------------------------------------------------------------------------------


class Meter(Protocol):
    """name: of the device; two workers with the same name share a device. joules: since some moment in the past."""

    name: str

    def joules(self) -> float: ...


class GpuMeter:
    """The counter of this process's GPU. Raises pynvml.NVMLError if it has none (before Volta, or a part of a GPU).

    Source: NVML's documentation; not checked on a GPU. nvmlDeviceGetTotalEnergyConsumption is in millijoules since the
    driver was loaded.
    """

    def __init__(self) -> None:
        self.name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.name)
        self.joules()

    def joules(self) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000


def open_meter() -> Meter | None:
    """This worker's meter; None if there is none."""
    if pynvml is None or not torch.cuda.is_available():
        return None
    try:
        return GpuMeter()
    except pynvml.NVMLError:
        return None


class EnergyCount:
    """The joules that the devices of all workers have used since the last call. All workers call it alike."""

    def __init__(
        self, meter: Meter | None, names: Sequence[str | None], rank: int, sum_over_workers: Callable[[float], float]
    ) -> None:
        """names: of every worker's meter, by rank; None for a worker without a meter."""
        self._is_measured = None not in names
        self._meter = meter if reads_device(names, rank) else None
        self._sum = sum_over_workers
        self._before = self._read()

    def since_last(self) -> float | None:
        """Since the last call, or since it was made; None unless every worker has a meter."""
        if not self._is_measured:
            return None
        now = self._read()
        used, self._before = now - self._before, now
        return self._sum(used)

    def _read(self) -> float:
        return self._meter.joules() if self._meter else 0.0


def reads_device(names: Sequence[str | None], rank: int) -> bool:
    """Whether the worker reads its device: the first of the workers that share a device does."""
    return names[rank] is not None and names.index(names[rank]) == rank
