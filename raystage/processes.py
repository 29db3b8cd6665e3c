"""Which process something was left by, and whether that process is known to have ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

# Clock ticks round start times; a process id comes round again only much later.
_SAME_START_SECONDS = 0.5


@dataclass(frozen=True)
class ProcessName:
    """A process among those of all hosts.

    host: for people. machine: equal for two processes only where each sees the other's id: one boot of one machine,
    one container. started: seconds from boot to the process's start, since ids come round again.
    """

    host: str
    machine: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ProcessName:
        """Raises ValueError, TypeError or KeyError where it is none."""
        if not 0 < content["pid"] < 2**31:
            raise ValueError(f"no process id: {content['pid']}")
        return cls(str(content["host"]), str(content["machine"]), int(content["pid"]), float(content["started"]))

    def is_gone(self) -> bool:
        """Whether it is known to have ended; of another machine's processes nothing is known."""
        return self.machine == _machine() and not _runs(self)


def this_process() -> ProcessName:
    process = psutil.Process()
    return ProcessName(platform.node(), _machine(), process.pid, _start_of(process))


def _runs(name: ProcessName) -> bool:
    try:
        process = psutil.Process(name.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(_start_of(process) - name.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False


def _start_of(process: psutil.Process) -> float:
    """Seconds since boot: unlike the time of day it does not change when the clock is set."""
    return process.create_time() - psutil.boot_time()


def _machine() -> str:
    """On Linux the boot and the space of process ids that this process is in; elsewhere the host's name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()
