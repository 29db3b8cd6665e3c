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
from collections.abc import Callable, Iterator, Sequence
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
# By path the stamp that a file had, and the fact.
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
    stamps = {file: _stamped(file) for file in files}
    if sum(stamp[2] for stamp in stamps.values() if stamp) < SMALL_BYTES:
        yield from ((file, find(file)) for file in files)
        return
    place = _place(kind, files)
    kept = _load(place)
    known = {file: kept[str(file)][1] for file in files if _is_known(kept, file, stamps[file])}
    found: _Kept = {}
    with ThreadPoolExecutor(num_cpus()) as pool:
        tasks = {file: pool.submit(_timed, find, file) for file in stamps if file not in known}
        try:
            for file in files:
                if file not in known:
                    began, known[file] = tasks[file].result()
                    if stamps[file] and not is_fresh(stamps[file][:2], began):
                        found[str(file)] = stamps[file], known[file]
                yield file, known[file]
        finally:
            for task in tasks.values():
                task.cancel()
            if found:
                _save(place, kept | found)


def _timed(find: Callable[[Path], Any], file: Path) -> tuple[float, Any]:
    return time.time(), find(file)


def _stamped(file: Path) -> Stamp | None:
    try:
        return stamp_of(file.stat())
    except OSError:
        return None  # `find` says what is wrong with it


def _is_known(kept: _Kept, file: Path, stamp: Stamp | None) -> bool:
    return stamp is not None and kept.get(str(file), (None,))[0] == stamp


def _place(kind: Sequence[Any], files: Sequence[Path]) -> Path:
    """One file for all files of a folder, so that it stays the same where some are added."""
    asked = [_VERSION, *kind, os.path.commonpath([file.absolute() for file in files])]
    return user_cache("files") / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


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
    """Keep this of the files that are still there; where that is not possible, nothing."""
    there = [(path, *one) for path, one in kept.items() if os.path.exists(path)]
    body = json.dumps(there, separators=(",", ":")).encode()
    work = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.write_bytes(xxhash.xxh3_128_hexdigest(body).encode() + b"\n" + body)
            os.replace(work, place)
        finally:
            work.unlink(missing_ok=True)
