"""What the doctor has a node do: describe itself, tell its time, write to the store and read from it, reach others.

It runs in a process on that node. It measures; `node_findings` judges.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raystage.cluster.ray_private import HealthCheck, health_check, session_folder
from raystage.errors import RaystageError
from raystage.files.filesystem import open_folder
from raystage.tools.versions import SHOWN, installed_version

FILE_BYTES = 8 * 2**20
CONNECT_SECONDS = 3.0
_CONNECTIONS_AT_A_TIME = 16
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Room:
    """How much space is free in a folder."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself. packages: versions by name; store_problem: why it does not see the store.

    temporary: the folder of Ray's sessions. health_check: as the node's environment sets it.
    """

    host: str
    python: str
    packages: dict[str, str | None]
    store_problem: str | None = None
    temporary: Room | None = None
    shared_memory: Room | None = None
    health_check: HealthCheck | None = None


@dataclass(frozen=True)
class FileWritten:
    """A file that a node has written to the store, or why it could not."""

    seconds: float = 0.0
    digest: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class FileRead:
    """What a node has read of the files that nodes have written. missing: names that it does not see."""

    seconds: float = 0.0
    missing: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Port:
    """A port of a node that other nodes must reach. host: for people; use: what listens there."""

    host: str
    address: str
    number: int
    use: str


@dataclass(frozen=True)
class Unreached:
    """A port that did not answer, and why."""

    port: Port
    reason: str


class NodeAgent:
    """What is asked of a node, one question after the other."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def describe(self, store: str | None, mark: str | None) -> NodeFacts:
        """The node's versions, its room, and whether it finds the file `mark` in the store."""
        temporary = session_folder()
        return NodeFacts(
            socket.gethostname(),
            platform.python_version(),
            {name: installed_version(name) for name in SHOWN},
            None if store is None or mark is None else _store_problem(store, mark),
            _room(Path(temporary)) if temporary else None,
            _room(_SHARED_MEMORY),
            health_check(),
        )

    def now(self) -> float:
        """Seconds since 1970, by the node's clock."""
        return time.time()

    def write(self, folder: str, name: str) -> FileWritten:
        """Write a file to the store. Its bytes are random: a file system might compress others."""
        content = os.urandom(FILE_BYTES)
        began = time.monotonic()
        try:
            open_folder(folder).write_whole(name, content)
        except RaystageError as error:
            return FileWritten(problem=str(error))
        return FileWritten(time.monotonic() - began, hashlib.sha256(content).hexdigest())

    def read(self, folder: str, names: Sequence[str], name: str, digest: str) -> FileRead:
        """Look for all `names` in the store, and read the file `name`, which should have this digest."""
        place = open_folder(folder)
        try:
            seen = set(place.file_names())
            if missing := tuple(one for one in names if one not in seen):
                return FileRead(missing=missing)
            began = time.monotonic()
            content = place.read(name)
            seconds = time.monotonic() - began
        except FileNotFoundError:
            return FileRead(missing=(name,))
        except RaystageError as error:
            return FileRead(problem=str(error))
        if hashlib.sha256(content).hexdigest() != digest:
            return FileRead(problem=f"{name}: found other bytes than were written")
        return FileRead(seconds)

    def listen(self, address: str) -> int:
        """Listen on a free port, as workers do. Nothing is ever accepted or read: the system answers by itself."""
        self._listener = socket.create_server((address, 0), backlog=128)
        return self._listener.getsockname()[1]

    def reach(self, ports: Iterable[Port]) -> tuple[Unreached, ...]:
        """The ports that cannot be reached from here."""
        with ThreadPoolExecutor(_CONNECTIONS_AT_A_TIME) as pool:
            return tuple(one for one in pool.map(_connect, ports) if one is not None)


def _connect(port: Port) -> Unreached | None:
    try:
        socket.create_connection((port.address, port.number), CONNECT_SECONDS).close()
    except OSError as error:
        return Unreached(port, error.strerror or str(error))
    return None


def _room(path: Path) -> Room | None:
    """None where the system has no such folder."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return Room(str(path), usage.free, usage.total)


def _store_problem(store: str, mark: str) -> str | None:
    try:
        open_folder(store).read(mark)
    except FileNotFoundError:
        return f"does not see what was written to {store}"
    except RaystageError as error:
        return str(error)
    return None
