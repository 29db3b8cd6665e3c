"""A Ray cluster of this process's own, on this machine. Nobody else can reach it, and it ends with this process."""

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

from raystage.cluster.cleanup import ClusterCleanup
from raystage.cluster.joined import check_token_settings
from raystage.cluster.ray_private import JobImportingFrom, kill_on_shutdown, listen_on_loopback_only
from raystage.cluster.same_code import import_path
from raystage.cluster.shutdown import SHUTDOWN, signals_blocked
from raystage.cluster.train_notes import remove_abandoned_notes
from raystage.cluster.train_run import has_train_run
from raystage.errors import RaystageError
from raystage.files.filesystem import open_folder

OBJECT_STORE_BYTES = 200 * 2**20
LOOPBACK = "127.0.0.1"
# A helper of every Train run asks Ray's API server whether the run's controller is alive. Without this address it would
# look for a server in the cluster that was last started on this machine, and each run would end 12 s later. It accepts
# that the connection is refused.
NO_API_SERVER = f"http://{LOOPBACK}:9"
# The name of a socket may have 107 bytes, on a Mac 103. Ray's session and the socket in it take 64 of them.
LONGEST_FOLDER_BYTES = 39
# The folder of Ray's sessions; set only for the processes of such a cluster.
FOLDER_VARIABLE = "RAYSTAGE_OWN_CLUSTER"
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
# Ray's monitor of logs looks for new files twice a second. Nobody reads what it finds here.
_LOG_MONITOR = ("LOG_NAME_UPDATE_INTERVAL_S", "10")
# Variables that were set for the cluster that is there now, if one is.
_SET_HERE: list[str] = []
# Of that cluster.
_CLEANUP: list[ClusterCleanup] = []


@contextlib.contextmanager
def started(cpus: int) -> Iterator[None]:
    """Within this context this process is connected to a cluster of its own, of which nothing is left afterwards.

    After an error the cluster is left as it is: it ends when this process does. Raises RaystageError.
    """
    folder = ray_folder()
    with signals_blocked():
        _start(folder, cpus)
        SHUTDOWN.install()  # in place of Ray's own handler
        _CLEANUP.append(ClusterCleanup())
    remove_abandoned_notes(open_folder(notes_folder()))
    yield
    if not has_train_run():  # otherwise it ends with this process
        end()


def end() -> None:
    """End the cluster that `started` has started; after an error, too, where no Train run is under way any more."""
    _shut_down()
    while _CLEANUP:
        _CLEANUP.pop().finish()


def is_own() -> bool:
    """Whether this process, a driver or a worker, belongs to a cluster of a run's own."""
    return FOLDER_VARIABLE in os.environ


def notes_folder() -> str:
    """Where Ray Train may keep its own files about runs. They are of no use without the cluster."""
    return f"{os.environ[FOLDER_VARIABLE]}/train"


def _start(folder: Path, cpus: int) -> None:
    os.environ.setdefault("RAY_API_SERVER_ADDRESS", NO_API_SERVER)
    _set(*_LOG_MONITOR)
    os.environ[FOLDER_VARIABLE] = str(folder)
    _bind_to_loopback()
    _make_token()
    check_token_settings()
    try:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            job_config=JobImportingFrom(import_path()),
        )
    except Exception as error:  # Ray raises errors of many types here
        del os.environ[FOLDER_VARIABLE]
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RaystageError(f"no Ray cluster can be started on this machine ({reason}); its logs: {folder}") from None


def _bind_to_loopback() -> None:
    """Have Ray and gloo listen on the loopback interface alone. gloo would use the address of the host's name."""
    listen_on_loopback_only()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == LOOPBACK for one in addresses):
            _set(_GLOO_INTERFACE, interface)


def _set(variable: str, value: str) -> None:
    """Set a variable for the time of the cluster, unless the user has set it."""
    if variable not in os.environ:
        os.environ[variable] = value
        _SET_HERE.append(variable)


def _make_token() -> None:
    """Let only processes of this driver connect: others on this machine do not know the token, which is in no file.

    Without this Ray would make a token itself and write it to the user's home folder. Settings of the user for tokens
    are kept.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _shut_down() -> None:
    kill_on_shutdown()
    ray.shutdown()
    os.environ.pop(FOLDER_VARIABLE, None)
    while _SET_HERE:  # workers of a cluster that this process joins later would get it, too
        os.environ.pop(_SET_HERE.pop(), None)


# --- its folder -------------------------------------------------------------------------------


def ray_folder() -> Path:
    """Where the cluster keeps its sockets and logs; only this user can read it.

    It is in the system's folder for temporary files, unless that has too long a path or is not writable.
    Raises RaystageError.
    """
    places = (os.environ.get("RAY_TMPDIR"), _system_folder(), "/tmp", "/var/tmp", "/dev/shm")
    tried = [Path(place).absolute() / f"raystage-{os.getuid()}" for place in dict.fromkeys(places) if place]
    for folder in tried:
        if len(os.fsencode(folder)) <= LONGEST_FOLDER_BYTES and _is_private(folder):
            return folder
    raise RaystageError(
        f"no folder for the sockets of a Ray cluster: none of {', '.join(map(str, tried))} is writable and has a path "
        f"of {LONGEST_FOLDER_BYTES} bytes or fewer; expected such a folder in RAY_TMPDIR"
    )


def _system_folder() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None


def _is_private(folder: Path) -> bool:
    """Make the folder if it does not exist. Returns whether this user alone can read it and write to it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
            return False
        folder.chmod(0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
