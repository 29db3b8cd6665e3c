"""Processes of all hosts: which one this is, whether another one has ended, which one holds the lease of a stage.

`ProcessId` and `LeaseHolder` are plain values, which are written into files and shown to people.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

# The kernel counts start times in clock ticks. A process id is used again only much later.
_SAME_START_SECONDS = 0.5


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process among those of all hosts.

    host: for people. machine: equal for two processes only if each can see the other's process id: the same boot of
    the same machine, the same container. started: seconds from boot to the start of the process, because the system
    uses process ids again.
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
    def from_json(cls, content: Mapping[str, Any]) -> ProcessId:
        """Raises ValueError, TypeError or KeyError if `content` does not describe a process."""
        if not 0 < content["pid"] < 2**31:
            raise ValueError(f"no process id: {content['pid']}")
        try:
            return cls(str(content["host"]), str(content["machine"]), int(content["pid"]), float(content["started"]))
        except OverflowError:
            raise ValueError(f"no start time: {content['started']}") from None


@dataclass(frozen=True)
class LeaseHolder:
    """Who has a ticket for a stage.

    is_held: True if the process holds the lease, False if it only claims it. since: in seconds since 1970.
    owner, since: None if the ticket is damaged.
    """

    ticket: str
    is_held: bool
    owner: ProcessId | None
    since: float | None

    def __str__(self) -> str:
        if self.owner is None:
            return f"an unknown process, whose lease {self.ticket}.json is damaged"
        return f"{self.owner} (since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))})"


def this_process() -> ProcessId:
    process = psutil.Process()
    return ProcessId(platform.node(), _machine(), process.pid, _started(process))


def is_gone(process_id: ProcessId) -> bool:
    """Whether the process is known to have ended. Nothing is known about processes of other machines."""
    return process_id.machine == _machine() and not _is_running(process_id)


def _is_running(process_id: ProcessId) -> bool:
    try:
        process = psutil.Process(process_id.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(_started(process) - process_id.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False


def _started(process: psutil.Process) -> float:
    """Seconds since boot. Unlike the time of day, this does not change when the clock is set."""
    return process.create_time() - psutil.boot_time()


def _machine() -> str:
    """On Linux the id of the boot and the PID namespace of this process; on other systems the host name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()
