"""What raystage needs of this machine: devices, shared memory, the store, W&B's key."""

from __future__ import annotations

import contextlib
import netrc
import os
import queue
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch

from raystage.errors import RaystageError, StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.tools.findings import Finding, failed, ok, warning
from raystage.units import first_line, format_bytes

# Ray's object store uses it, and workers of one machine exchange data there. Docker gives only 64 MiB.
LEAST_SHARED_BYTES = 512 * 2**20
LEAST_DISK_BYTES = 5 * 2**30
STORE_SECONDS = 60.0
_WANDB_HOST = "https://api.wandb.ai"


# --- devices ----------------------------------------------------------------------------------


def check_devices() -> list[Finding]:
    """A finding for each GPU, or one that says there is none. A machine without GPUs is fine."""
    if torch.cuda.is_available():
        return [_check_gpu(index) for index in range(torch.cuda.device_count())]
    cores = f"none; stages train on {os.cpu_count()} CPU cores, over gloo"
    if not Path("/proc/driver/nvidia/version").exists():
        return [ok("GPU", cores)]
    why = "is built without CUDA" if torch.version.cuda is None else "does not reach it"
    advice = "install torch's CUDA build, with a driver that is new enough for it (https://pytorch.org)"
    return [warning("GPU", f"this machine has one, but torch {torch.__version__} {why}", advice)]


def _check_gpu(index: int) -> Finding:
    properties, check = torch.cuda.get_device_properties(index), f"GPU {index}"
    found = f"{properties.name}, {format_bytes(properties.total_memory)}"
    try:
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        reason = first_line(error)
        return failed(
            check, f"{found}, cannot compute ({reason})", "see nvidia-smi: is it taken, or the driver too old?"
        )
    if not torch.cuda.is_bf16_supported():
        return warning(check, f"{found}, without bf16", "use training.precision: fp32")
    return ok(check, f"{found}, bf16")


def check_shared_memory(place: Path = Path("/dev/shm"), least_bytes: int = LEAST_SHARED_BYTES) -> Finding:
    if not place.is_dir():
        return ok("shared memory", f"no {place} on this system")
    usage = shutil.disk_usage(place)
    found = f"{place}: {format_bytes(usage.free)} of {format_bytes(usage.total)} free"
    if usage.free >= least_bytes:
        return ok("shared memory", found)
    advice = (
        f"expected {format_bytes(least_bytes)} or more: docker run --shm-size=2g; Kubernetes: an emptyDir in Memory"
    )
    return warning("shared memory", found, advice)


# --- the store --------------------------------------------------------------------------------


def check_store(
    uri: str, least_bytes: int = LEAST_DISK_BYTES, limit_seconds: float = STORE_SECONDS
) -> Iterator[Finding]:
    """Whether a file can be written there, read again and removed, and how much space is free.

    It runs in a thread: a call into a file system whose server is gone may not return.
    """
    findings: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def look() -> None:
        for finding in _look_at_store(uri, least_bytes):
            findings.put(finding)
        findings.put(None)

    threading.Thread(target=look, name="raystage-store", daemon=True).start()
    try:
        while finding := findings.get(timeout=limit_seconds):
            yield finding
    except queue.Empty:
        advice = "see whether its server answers: a network file system waits for it without limit"
        yield failed("store", f"{uri}: no answer within {limit_seconds:g} s", advice)


def _look_at_store(uri: str, least_bytes: int) -> Iterator[Finding]:
    try:
        folder = open_folder(uri)
        with mark_in(folder) as (_, seconds):
            yield ok("store", f"{folder.uri}: written, read and removed a file in {1000 * seconds:.0f} ms")
        if folder.is_local:
            yield _check_room(Path(folder.path), least_bytes)
    except RaystageError as error:
        yield failed("store", str(error), "give another with --store, or make this one writable")


@contextlib.contextmanager
def mark_in(folder: Folder) -> Iterator[tuple[str, float]]:
    """A small new file in `folder` for other nodes to find: its name, and the seconds that writing and reading it took.

    The file is removed at the end, with the folders that were made for it. Raises StorageError.
    """
    missing = _missing(Path(folder.path)) if folder.is_local else []
    name, content = f"doctor-{uuid.uuid4().hex[:8]}.txt", uuid.uuid4().hex.encode()
    began = time.monotonic()
    try:
        folder.write_whole(name, content)
        if folder.read(name) != content:
            raise StorageError(f"{(folder / name).uri}: found other bytes than were written")
        yield name, time.monotonic() - began
        folder.delete_file(name)
    except BaseException:
        with contextlib.suppress(StorageError):
            folder.delete_file(name)
        raise
    finally:
        with contextlib.suppress(OSError):  # never made, or not empty because someone else uses it
            for made in missing:
                made.rmdir()


def _missing(path: Path) -> list[Path]:
    """The folders from `path` upwards that do not exist yet."""
    return [one for one in (path, *path.parents) if not one.exists()]


def _check_room(path: Path, least_bytes: int) -> Finding:
    there = next(one for one in (path, *path.parents) if one.exists())
    free = shutil.disk_usage(there).free
    found = f"{format_bytes(free)} free at {there}"
    if free >= least_bytes:
        return ok("disk", found)
    return warning("disk", found, "a checkpoint takes 12 bytes per parameter, and a stage keeps several; make room")


# --- Ray's token ------------------------------------------------------------------------------


def check_token(environment: Mapping[str, str], home: Path) -> Iterator[Finding]:
    """A finding if other users can read the token's file: with it they could run code on the user's clusters."""
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray/auth_token")
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        found = (
            f"{file} is open to other users of this machine (mode {mode:03o}); a run's own cluster has another token"
        )
        yield warning("Ray token", found, f"chmod 600 {file}")


# --- W&B --------------------------------------------------------------------------------------


def check_wandb(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether `--wandb online` would find a key. The key itself is never shown."""
    host = urlsplit(environment.get("WANDB_BASE_URL", _WANDB_HOST)).netloc.rpartition("@")[2]
    file = Path(environment["NETRC"]) if environment.get("NETRC") else home / ".netrc"
    if environment.get("WANDB_API_KEY"):
        found = f"a key for {host} in WANDB_API_KEY"
    elif _has_entry(file, host):
        found = f"a key for {host} in {file}"
    else:
        found = f"no key for {host} (`wandb login` makes one known)"
    return ok("W&B", f"{found}; runs are written offline, which needs none, unless --wandb online")


def _has_entry(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
