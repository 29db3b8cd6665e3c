"""Ends the processes of a local Ray cluster after its driver has ended, however that happened.

Ray's processes usually end by themselves, but a driver killed with SIGKILL leaves agents behind, and now and then a
Train controller hangs at its exit. So a small separate process keeps a list of the processes of the cluster. When the
driver closes the pipe to it, or dies, it ends those that are left: at once after a shutdown, otherwise after a few
seconds.

    python cleanup.py PID...                # the first processes of the cluster; standard input is the pipe
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping

import psutil

# A look reads the whole process table, and what trains on the machine needs the CPU.
LOOK_SECONDS = 2.0
_END_SECONDS = 0.1
GRACE_SECONDS = 3.0
_FIRST_PROCESSES = ("raylet", "gcs_server")
_NOW = b"now"


class ClusterCleanup:
    """The cleanup process of the local cluster that this process has started."""

    def __init__(self) -> None:
        children = {child for child in psutil.Process().children() if child.name() in _FIRST_PROCESSES}
        # Given as a file and with -P: Python would look for a module in the working directory first.
        command = [sys.executable, "-P", __file__, *(str(process.pid) for process in with_children(children))]
        # A new session: signals sent to the driver's process group, such as Ctrl-C, must not reach it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def finish(self) -> None:
        """End at once what is left of the cluster, which was shut down, and wait for that."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(_NOW)
            self._process.stdin.close()
        self._process.wait()


def follow(pids: list[int]) -> None:
    """Follow a cluster, given by its first processes, until standard input is closed; then end what is left of it."""
    known: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            known.add(psutil.Process(pid))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known = with_children(known)
    end(known, 0.0 if os.read(sys.stdin.fileno(), len(_NOW)) else GRACE_SECONDS)


def with_children(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those of `processes` that still run, with all their descendants."""
    waiting = [process for process in processes if process.is_running()]
    children = _by_parent()  # read once: psutil's own method reads the whole process table for each process
    found: set[psutil.Process] = set()
    while waiting:
        process = waiting.pop()
        if process not in found:
            found.add(process)
            # A child that is older than its parent belongs to an earlier process with the same id.
            waiting += [child for child in children[process.pid] if child.create_time() >= process.create_time()]
    return found


def _by_parent() -> Mapping[int, list[psutil.Process]]:
    found: dict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.ppid()].append(process)
    return found


def end(processes: set[psutil.Process], grace_seconds: float) -> None:
    """Wait up to `grace_seconds` for `processes` and their descendants to end, then kill the rest."""
    deadline = time.monotonic() + grace_seconds
    processes = with_children(processes)
    while processes and time.monotonic() < deadline:
        time.sleep(_END_SECONDS)
        processes = {process for process in with_children(processes) if not _is_zombie(process)}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    follow([int(pid) for pid in sys.argv[1:]])
