"""Sees to it that a local Ray cluster ends with its driver, however the driver ends.

Ray's processes leave by themselves, but not all of them and not always: a driver killed with SIGKILL
leaves agents behind, and now and then a Train controller hangs in its exit. So a small process of its
own keeps a list of what belongs to the cluster, and when the driver lets go of it (by closing the
pipe, or by dying) it gives them a few seconds and ends the rest.

    python -m raystage.guardian PID...      # the cluster's processes; stdin: the pipe
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import psutil

LOOK_SECONDS = 0.5
GRACE_SECONDS = 3.0
_ROOTS = ("raylet", "gcs_server")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within this, a local cluster started by this process has a guardian; at the end of it nothing is left.

    After an error the cluster is left as it is: it ends when this process does.
    """
    there = with_children({child for child in psutil.Process().children() if child.name() in _ROOTS})
    command = [sys.executable, "-m", "raystage.guardian", *(str(process.pid) for process in there)]
    # A session of its own: what is sent to the driver's whole group (Ctrl-C) must not reach the guardian.
    guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    yield
    guardian.stdin.close()
    guardian.wait()


def watch(pids: list[int]) -> None:
    """Follow a cluster, given by its first processes, until standard input closes; then end the rest of it."""
    known: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            known.add(psutil.Process(pid))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known = with_children(known)
    end(known)


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


def end(processes: set[psutil.Process]) -> None:
    """Wait a little for `processes` and what they may still start, then kill the rest."""
    deadline = time.monotonic() + GRACE_SECONDS
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
