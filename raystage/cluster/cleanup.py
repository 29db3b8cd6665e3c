"""Sees to it that a local Ray cluster ends with its driver, however the driver ends.

Ray's processes leave by themselves, but not all of them and not always: a driver killed with SIGKILL
leaves agents behind, and now and then a Train controller hangs in its exit. So a small process of its
own keeps a list of what belongs to the cluster, and when the driver lets go of it (by closing the
pipe, or by dying) it ends the rest: at once after a shutdown, else after a few seconds.

    python guardian.py PID...               # the cluster's processes; stdin: the pipe
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

LOOK_SECONDS = 0.5
GRACE_SECONDS = 3.0
_ROOTS = ("raylet", "gcs_server")
_NOW = b"now"


class ClusterCleanup:
    """Of the local cluster that this process has started."""

    def __init__(self) -> None:
        there = with_children({child for child in psutil.Process().children() if child.name() in _ROOTS})
        # By its file, and safely: by its name Python would look for it in the working directory first.
        command = [sys.executable, "-P", __file__, *(str(process.pid) for process in there)]
        # A session of its own: what is sent to the driver's whole group (Ctrl-C) must not reach the guardian.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def dismiss(self) -> None:
        """What is left of the cluster, which was shut down, ends now."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(_NOW)
            self._process.stdin.close()
        self._process.wait()


def watch(pids: list[int]) -> None:
    """Follow a cluster, given by its first processes, until standard input closes; then end the rest of it."""
    known: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            known.add(psutil.Process(pid))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known = with_children(known)
    end(known, 0.0 if os.read(sys.stdin.fileno(), len(_NOW)) else GRACE_SECONDS)


def with_children(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that still run, and all that they have started."""
    waiting = [process for process in processes if process.is_running()]
    started_by = _by_parent()  # once for all: psutil's own way reads the whole process table for each
    found: set[psutil.Process] = set()
    while waiting:
        process = waiting.pop()
        if process not in found:
            found.add(process)
            # Older than its parent it is somebody else's, whose parent's number was given away again.
            waiting += [child for child in started_by[process.pid] if child.create_time() >= process.create_time()]
    return found


def _by_parent() -> Mapping[int, list[psutil.Process]]:
    found: dict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.ppid()].append(process)
    return found


def end(processes: set[psutil.Process], grace_seconds: float) -> None:
    """Wait a little for `processes` and what they may still start, then kill the rest."""
    deadline = time.monotonic() + grace_seconds
    processes = with_children(processes)
    while processes and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS / 5)
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
    watch([int(pid) for pid in sys.argv[1:]])
