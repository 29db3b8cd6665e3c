"""Which process this is, and whether one that left its name is known to have ended."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from raystage.storage.holder import ProcessName

# Clock ticks round start times; a process id comes round again only much later.
_SAME_START_SECONDS = 0.5


def this_process() -> ProcessName:
    process = psutil.Process()
    return ProcessName(platform.node(), _machine(), process.pid, _start_of(process))


def is_gone(name: ProcessName) -> bool:
    """Whether it is known to have ended; of another machine's processes nothing is known."""
    return name.machine == _machine() and not _runs(name)


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
