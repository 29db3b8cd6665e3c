"""What a machine keeps of files that take long to read: a fact about each, for as long as the file stays as it is.

A file is known by its path, size, number in the file system and both of its times: a program may set the time of the
last change back, but not the time of the last change of status. A file that changed within FRESH_SECONDS before it was
read may change once more under the same times, as in git's index; so nothing is kept of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from raystage.files.local import user_cache
from raystage.process_pool import num_cpus

# Of all files together; less is read again in a tenth of a second.
SMALL_BYTES = 2**26
FRESH_SECONDS = 2.0
_VERSION = 1

Stamp = tuple[int, ...]
# By name, which is a file's path, the stamp that it had, and the fact.
_Kept = dict[str, tuple[Stamp, Any]]


def stamp_of(status: os.stat_result) -> Stamp:
    """Changes where the file does. The first two are its times, in nanoseconds."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def is_fresh(times_ns: Sequence[int], began: float) -> bool:
    """Whether a file with these times may change again under the same times after `began`, when its reading began."""
    return began - max(times_ns) / 1e9 < FRESH_SECONDS


def facts_of(kind: Sequence[Any], files: Sequence[Path], find: Callable[[Path], Any]) -> Iterator[tuple[Path, Any]]:
    """(file, fact) of each file, in their order: what was kept of it, or else what `find` gives, in several threads.

    kind: what the facts depend on besides the files; it and they can be written as JSON. An error of `find` is raised
    at the turn of its file. What was found up to there is kept.
    """
    stamps = {str(file): _stamped(file) for file in files}
    if sum(stamp[2] for stamp in stamps.values() if stamp) < SMALL_BYTES:
        yield from ((file, find(file)) for file in files)
        return
    # Known by a folder of them all, so that it stays the same where some are added.
    kind = (*kind, os.path.commonpath([file.absolute() for file in files]))
    for path, fact in remembered(kind, stamps, lambda path: find(Path(path)), os.path.exists):
        yield Path(path), fact


def remembered(
    kind: Sequence[Any],
    stamps: Mapping[str, Stamp | None],
    find: Callable[[str], Any],
    stays: Callable[[str], bool],
    threads: int | None = None,
) -> Iterator[tuple[str, Any]]:
    """The same of things with these names and stamps, however few. stays: whether something that is not among them may
    be asked for again. threads: that read; one for each CPU unless given."""
    place = _place(kind)
    kept = _load(place)
    known = {name: kept[name][1] for name, stamp in stamps.items() if stamp and kept.get(name, (None,))[0] == stamp}
    found: _Kept = {}
    with ThreadPoolExecutor(threads or num_cpus()) as pool:
        waiting = [name for name in stamps if name not in known] if threads != 1 else []
        tasks = {name: pool.submit(_timed, find, name) for name in waiting}
        try:
            for name, stamp in stamps.items():
                if name not in known:
                    began, known[name] = tasks[name].result() if tasks else _timed(find, name)
                    if stamp and not is_fresh(stamp[:2], began):
                        found[name] = stamp, known[name]
                yield name, known[name]
        finally:
            for task in tasks.values():
                task.cancel()
            if found:
                before = {name: one for name, one in kept.items() if name in stamps or stays(name)}
                _save(place, before | found)


def _timed(find: Callable[[str], Any], name: str) -> tuple[float, Any]:
    return time.time(), find(name)


def _stamped(file: Path) -> Stamp | None:
    try:
        return stamp_of(file.stat())
    except OSError:
        return None  # `find` says what is wrong with it


def _place(kind: Sequence[Any]) -> Path:
    return user_cache("files") / hashlib.sha256(json.dumps([_VERSION, *kind]).encode()).hexdigest()[:32]


def _load(place: Path) -> _Kept:
    """Nothing where nothing is there, or something damaged."""
    try:
        seal, _, body = place.read_bytes().partition(b"\n")
        if seal.decode() != xxhash.xxh3_128_hexdigest(body):
            return {}
        return {path: (tuple(stamp), fact) for path, stamp, fact in json.loads(body)}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _save(place: Path, kept: _Kept) -> None:
    """Where that is not possible, nothing is kept."""
    body = json.dumps([(name, *one) for name, one in kept.items()], separators=(",", ":")).encode()
    work = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.write_bytes(xxhash.xxh3_128_hexdigest(body).encode() + b"\n" + body)
            os.replace(work, place)
        finally:
            work.unlink(missing_ok=True)
