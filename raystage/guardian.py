"""Sees to it that a local Ray cluster ends with its driver, however the driver ends.

Ray's processes leave by themselves, but not all of them and not always: a driver killed with SIGKILL
leaves agents behind, and now and then a Train controller hangs in its exit. So a small process of its
own keeps a list of what belongs to the cluster, and when the driver lets go of it (by closing the
pipe, or by dying) it gives them a few seconds and ends the rest.

    python -m raystage.guardian DRIVER_PID      # stdin: the pipe
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator

import psutil

LOOK_SECONDS = 0.5
GRACE_SECONDS = 3.0
_ROOTS = ("raylet", "gcs_server")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within this, a local cluster started by this process has a guardian; at the end of it nothing is left."""
    command = [sys.executable, "-m", "raystage.guardian", str(psutil.Process().pid)]
    # A session of its own: what is sent to the driver's whole group (Ctrl-C) must not reach the guardian.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guardian:
        try:
            yield
        finally:
            guardian.stdin.close()


def watch(driver_pid: int) -> None:
    """Follow the driver's cluster until standard input closes, then end what does not end by itself."""
    known: set[psutil.Process] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(driver_pid)
        while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            known = {process for process in known | cluster_of(driver) if process.is_running()}
        known |= cluster_of(driver)
    end(known)


def cluster_of(driver: psutil.Process) -> set[psutil.Process]:
    """The Ray processes that this driver started, and all of theirs."""
    found: set[psutil.Process] = set()
    for child in driver.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in _ROOTS:
                found |= {child, *child.children(recursive=True)}
    return found


def end(processes: set[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
