"""Where and when a report was made: the driver's host, its hardware, the versions, the command."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from raystage.safe_text import without_secrets

PACKAGES = ("raystage", "ray", "deepspeed", "torch", "transformers", "wandb")


def surroundings(began: float, command: str | None) -> dict[str, Any]:
    """Of the driver. Workers may run elsewhere: the record of each stage has their host and device.

    began: in seconds since 1970.
    """
    return {
        "date": datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat(timespec="seconds"),
        "command": None if command is None else without_secrets(command),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpu_names(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES if _installed(package)},
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor on Linux, otherwise its kind."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def gpu_names(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of this host's NVIDIA GPUs, from their driver, without loading CUDA."""
    found = []
    for file in sorted(drivers.glob("*/information")):
        with contextlib.suppress(OSError):
            named = (line.partition(":")[2].strip() for line in file.read_text().splitlines() if "Model:" in line)
            found.append(next(named, "unknown"))
    return found


def _installed(package: str) -> bool:
    return any(True for _ in metadata.distributions(name=package))
