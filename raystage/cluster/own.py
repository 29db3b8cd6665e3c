"""A Ray cluster of this process's own, on this machine: nobody else can reach it, and it ends with this process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants

from raystage.cluster.cleanup import ClusterCleanup
from raystage.cluster.same_code import CodeOfThisProcess
from raystage.cluster.shutdown import SHUTDOWN, unheard
from raystage.cluster.train_notes import remove_abandoned_notes
from raystage.cluster.train_run import is_fitting
from raystage.errors import RaystageError
from raystage.files.filesystem import open_folder

OBJECT_STORE_BYTES = 200 * 2**20
LOOPBACK = "127.0.0.1"
# A helper of every Train run asks the API server whether the run's controller is alive. Without this
# address it would look for a server in whatever cluster was last started on this machine, and each
# run would end 12 s late; a refused connection it takes as it comes.
NO_API_SERVER = f"http://{LOOPBACK}:9"
# The name of a socket may have 107 bytes, on a Mac 103. Ray's session and the socket in it take 64 of them.
LONGEST_FOLDER_BYTES = 39
# Where Ray's sessions lie, for the processes of such a cluster alone.
FOLDER_VARIABLE = "RAYSTAGE_OWN_CLUSTER"


@contextlib.contextmanager
def started(cpus: int) -> Iterator[None]:
    """Within this, this process is connected to a cluster of its own; at the end of it nothing of that is left.

    After an error the cluster is left as it is: it ends when this process does. Raises RaystageError.
    """
    folder = ray_folder()
    with unheard():
        _start(folder, cpus)
        SHUTDOWN.install()  # in place of Ray's own handler
        guardian = ClusterCleanup()
    remove_abandoned_notes(open_folder(notes_folder()))
    yield
    if not is_fitting():  # else with this process
        _shut_down()
        guardian.dismiss()


def is_own() -> bool:
    """Whether the cluster that this process belongs to, as its driver or as one of its workers, is such a one."""
    return FOLDER_VARIABLE in os.environ


def notes_folder() -> str:
    """Where Ray Train may keep its notes on runs: they are of no use without the cluster."""
    return f"{os.environ[FOLDER_VARIABLE]}/train"


def _start(folder: Path, cpus: int) -> None:
    os.environ.setdefault("RAY_API_SERVER_ADDRESS", NO_API_SERVER)
    os.environ[FOLDER_VARIABLE] = str(folder)
    _bind_to_loopback()
    _make_token()
    try:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            job_config=CodeOfThisProcess(),
        )
    except Exception as error:  # Ray has none of its own for this, and raises whatever comes
        del os.environ[FOLDER_VARIABLE]
        said = " ".join(str(error).split()) or type(error).__name__
        raise RaystageError(f"no Ray cluster can be started on this machine ({said}); its logs: {folder}") from None


def _bind_to_loopback() -> None:
    """Have all of it listen on the loopback interface alone.

    On a Mac Ray does so by itself, on Linux it would take the address that others reach this machine at, and listen on
    all. A name of Ray's own; a test looks at what listens where. gloo takes the address of the host's name unless told.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == LOOPBACK for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _make_token() -> None:
    """Let only processes of this one's in: others on this machine do not know the token, which no file has.

    Ray itself asks for one unless it is told otherwise, and would write it to the home folder, for all to read. What
    the user says about tokens holds.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _shut_down() -> None:
    """Ray would end its processes by SIGTERM, which they do not hear, and wait for each of them."""
    node = ray._private.worker._global_node
    for infos in node.all_processes.values() if node else ():
        for info in infos:
            info.process.terminate = info.process.kill
    ray.shutdown()
    os.environ.pop(FOLDER_VARIABLE, None)


# --- its folder -------------------------------------------------------------------------------


def ray_folder() -> Path:
    """Where the cluster keeps sockets and logs: in the folder for temporary files unless that has too long a name, or
    cannot be written to. It is this user's alone. Raises RaystageError."""
    places = (os.environ.get("RAY_TMPDIR"), _system_folder(), "/tmp", "/var/tmp", "/dev/shm")
    tried = [Path(place).absolute() / f"raystage-{os.getuid()}" for place in dict.fromkeys(places) if place]
    for folder in tried:
        if len(os.fsencode(folder)) <= LONGEST_FOLDER_BYTES and _is_private(folder):
            return folder
    raise RaystageError(
        f"no folder for the sockets of a Ray cluster: none of {', '.join(map(str, tried))} can be written to and has a "
        f"path of {LONGEST_FOLDER_BYTES} bytes or fewer; expected such a folder in RAY_TMPDIR"
    )


def _system_folder() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None


def _is_private(folder: Path) -> bool:
    """Whether it is there, made if need be, and no one but this user can look or write into it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
