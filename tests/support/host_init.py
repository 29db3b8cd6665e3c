"""The first process of a host of `hosts.py`. Everything on the host ends with it.

    python -S host_init.py NAME TMP_BYTES FOLDER...

It runs in namespaces of its own, gives the host a /tmp, a /dev/shm and a home folder of its own, says "ready", and
then takes care of processes whose parents have ended. Those of the folders that are in /tmp stay visible.
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


def main(name: str, tmp_bytes: str, *folders: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    socket.sethostname(name)
    _run("ip", "link", "set", "lo", "up")
    _mount("-t", "tmpfs", "tmpfs", "/mnt")
    for folder in (HOME, _NEW_TMP):
        Path(folder).mkdir()
    # The new /tmp hides the folders in the old one: so it gets them first, and is moved to its place last.
    _mount("-t", "tmpfs", "-o", f"size={tmp_bytes}", "tmpfs", _NEW_TMP)
    for folder in folders:
        if folder.startswith("/tmp/"):
            place = Path(_NEW_TMP, folder.removeprefix("/tmp/"))
            place.mkdir(parents=True, exist_ok=True)
            _mount("--bind", folder, str(place))
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
