"""The first process of a host of `hosts.py`. Everything on the host ends with it.

    python -S host_init.py NAME TMP_BYTES ETC_HOSTS [SOURCE=TARGET]...

It runs in namespaces of its own, gives the host a /tmp, a /dev/shm and a home folder of its own, says "ready", and
then takes care of processes whose parents have ended. Each folder SOURCE of the machine is seen as TARGET.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

HOME = "/mnt/home"
_NEW_TMP = "/mnt/tmp"


def main(name: str, tmp_bytes: str, etc_hosts: str, *shown: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    socket.sethostname(name)
    _run("ip", "link", "set", "lo", "up")
    _mount("-t", "tmpfs", "tmpfs", "/mnt")
    for folder in (HOME, _NEW_TMP):
        Path(folder).mkdir()
    # Each folder must be read before the new /tmp hides it: so the new one gets all that it shows, and moves last.
    _mount("-t", "tmpfs", "-o", f"size={tmp_bytes}", "tmpfs", _NEW_TMP)
    _mount("--bind", etc_hosts, "/etc/hosts")
    for source, target in (one.split("=") for one in shown):
        place = _NEW_TMP + target.removeprefix("/tmp") if target.startswith("/tmp/") else target
        Path(place).mkdir(parents=True, exist_ok=True)
        _mount("--bind", source, place)
    _mount("--move", _NEW_TMP, "/tmp")
    Path("/tmp").chmod(0o1777)
    _mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that ended processes without a parent are no zombies
    print("ready", flush=True)
    while True:
        with contextlib.suppress(InterruptedError):
            signal.pause()


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
