"""The indexes that a machine keeps of large files, so that a second plan does not read them again.

A file is known by its place, size, times and number in the file system, an object of a store by its size and its time
of the last change (pyarrow gives no ETag). A file that changes in spite of the same stamp is noticed when it is
tokenized, because every document is hashed once more then; its index is then forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from raystage.files.file_facts import is_fresh
from raystage.files.local import user_cache
from raystage.sources.corpus import SourceOptions
from raystage.sources.places import Place, is_remote

SMALL_BYTES = 2**18  # a smaller file is hashed in some milliseconds
_SMALL_IMAGES = 2**15  # images take longer: they are decoded, and many are small
_IMAGES = "raystage.sources.labelled."  # what the formats of images alone begin with
_VERSION = 1
_TYPES = np.uint64, np.uint32, np.uint32  # digests, lengths, and of samples their labels


def has(format: str, place: Place, options: SourceOptions) -> bool:
    """Whether something is kept of a file; `load` says whether it is whole."""
    return not _is_small(format, place, options) and _path(format, place, options).is_file()


def load(format: str, place: Place, options: SourceOptions) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """(what was kept, [digests, lengths]) of a file, of samples also their labels; None where nothing is, or something
    damaged."""
    if _is_small(format, place, options):
        return None
    path = _path(format, place, options)
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            start, count = file.tell(), int(header["documents"])
        types = _TYPES if "samples" in header else _TYPES[:2]
        if path.stat().st_size != start + count * sum(map(_size, types)):
            return None
        arrays = []
        for type_ in types:
            arrays.append(np.memmap(path, type_, "r", start, (count,)))
            start += count * _size(type_)
        return (header, arrays) if header.pop("seal") == _seal(header, arrays) else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def save(
    format: str,
    place: Place,
    options: SourceOptions,
    header: dict[str, Any],
    arrays: Sequence[np.ndarray],
    began: float,
) -> None:
    """Keep an index; where that is not possible, nothing. arrays: as `load` gives them. began: when reading did."""
    count, times = len(arrays[0]), place.stamp[: 1 if is_remote(place.uri) else 2]
    if _is_small(format, place, options) or is_fresh(times, began) or not count:
        return
    path = _path(format, place, options)
    work = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    header = {**header, "documents": count}
    line = json.dumps({**header, "seal": _seal(header, arrays)}).encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with work.open("wb") as file:
                file.write(line + b" " * (-(len(line) + 1) % 8) + b"\n")  # arrays begin at a multiple of 8
                for one in arrays:
                    file.write(memoryview(one).cast("B"))
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)


def forget(format: str, place: Place, options: SourceOptions) -> None:
    """Remove the index of a file, if there is one."""
    with contextlib.suppress(OSError):
        _path(format, place, options).unlink()


def _is_small(format: str, place: Place, options: SourceOptions) -> bool:
    """Whether reading it again takes no longer than a look at the cache."""
    has_images = options.image is not None or format.startswith(_IMAGES)
    return place.num_bytes < (min(SMALL_BYTES, _SMALL_IMAGES) if has_images else SMALL_BYTES)


def _path(format: str, place: Place, options: SourceOptions) -> Path:
    """Only the options that decide what the documents of a file are have a part in it."""
    own = asdict(replace(options, validation_path=(), files=None, subset=None, split=None, validation_split=None))
    del own["only_classes"]  # the index holds all classes
    asked = [_VERSION, format, place.uri, place.num_bytes, place.stamp, own]
    return user_cache("rows") / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _seal(header: dict[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """Of all that is kept: the header has the hash that identifies a text, and the names of classes."""
    seal = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    for one in arrays:
        seal.update(memoryview(one).cast("B"))
    return seal.hexdigest()


def _size(type_: type) -> int:
    return np.dtype(type_).itemsize
