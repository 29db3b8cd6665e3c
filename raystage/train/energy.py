"""Measured energy: the counters that NVIDIA's GPUs keep of what their boards have used.

Where there is no such counter, on a CPU or without the package nvidia-ml-py, nothing is measured and nothing made up. A
counter knows of its board alone: hosts, their CPUs and cooling are not in it, and others' work on the same GPU is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

try:
    import pynvml
except ImportError:  # it is an extra: pip install raystage[energy]
    pynvml = None


class Meter(Protocol):
    """name: of the device; two workers with the same name share one. joules: since some moment in the past."""

    name: str

    def joules(self) -> float: ...


class GpuMeter:
    """The counter of this process's GPU. Raises pynvml.NVMLError where it has none (before Volta, or a part of a GPU).

    Checked against NVML's documentation only, not on a GPU: nvmlDeviceGetTotalEnergyConsumption is in millijoules since
    the driver was loaded.
    """

    def __init__(self) -> None:
        self.name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.name)
        self.joules()

    def joules(self) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000


def open_meter() -> Meter | None:
    """This worker's meter, or None where there is none."""
    if pynvml is None or not torch.cuda.is_available():
        return None
    try:
        return GpuMeter()
    except pynvml.NVMLError:
        return None


class EnergyCount:
    """The joules of all workers' devices from one asking to the next. All workers ask alike."""

    def __init__(
        self, meter: Meter | None, names: Sequence[str | None], rank: int, sum_over_workers: Callable[[float], float]
    ) -> None:
        """names: every worker's meter's, by rank; None where one has no meter."""
        self._is_measured = None not in names
        self._meter = meter if counts(names, rank) else None
        self._sum = sum_over_workers
        self._before = self._read()

    def since_last(self) -> float | None:
        """Since it was last asked, or made; None where not every worker has a meter."""
        if not self._is_measured:
            return None
        now = self._read()
        used, self._before = now - self._before, now
        return self._sum(used)

    def _read(self) -> float:
        return self._meter.joules() if self._meter else 0.0


def counts(names: Sequence[str | None], rank: int) -> bool:
    """Whether the worker reads its device for all: every device is read by the first of those that share it."""
    return names[rank] is not None and names.index(names[rank]) == rank
