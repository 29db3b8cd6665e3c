"""Files with rows: which there are below paths, globs and object stores, and how they are opened."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from raystage.errors import InputError, RaystageError
from raystage.files.file_facts import stamp_of
from raystage.files.filesystem import Folder, open_folder
from raystage.sources.text_files import text_files, unreadable
from raystage.units import first_line

_CHUNK_BYTES = 2**20
# By the ending of a file's name; pyarrow has both.
_CODECS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Place:
    """A file. uri: its absolute path, or where it is in an object store. stamp: changes where the file does, and begins
    with its times in nanoseconds: two of a file of this machine, one of an object."""

    uri: str
    num_bytes: int
    stamp: tuple[int, ...]

    def __str__(self) -> str:
        return repr(self.uri)

    @property
    def name(self) -> str:
        return _parent(self.uri)[1] if is_remote(self.uri) else os.path.basename(self.uri)

    @property
    def codec(self) -> str | None:
        """How it is compressed, by its name."""
        return next((codec for ending, codec in _CODECS.items() if self.name.endswith(ending)), None)

    def open(self) -> pa.NativeFile:
        """The file, at its beginning; it can be positioned. Raises OSError, StorageError."""
        if not is_remote(self.uri):
            return pa.OSFile(self.uri)
        folder, name = _parent(self.uri)
        return _opened(folder).system.open_input_file((_opened(folder) / name).path)

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Its bytes from `start` on, decompressed, in chunks. Raises OSError."""
        with self.open() as file:
            if self.codec:
                with pa.CompressedInputStream(file, self.codec) as stream:
                    yield from _until_empty(stream)
            else:
                file.seek(start)
                yield from _until_empty(file)


def _until_empty(stream: pa.NativeFile) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def find_places(paths: tuple[str, ...], pattern: str | None, endings: tuple[str, ...], key: str) -> list[Place]:
    """All files below these paths: files, folders and globs, on this machine or in an object store.

    pattern: of the names in folders; without it those with one of the endings. Raises InputError where a path leads to
    no file.
    """
    found: list[Place] = []
    for path in paths:
        below = _remote(path, pattern, endings, key) if is_remote(path) else _local(path, pattern, endings, key)
        if not below:
            what = pattern or ", ".join(f"*{ending}" for ending in endings)
            raise InputError(f"found no file {what} in {path!r}; expected files, or data.files with a pattern", key=key)
        found += below
    return found


def is_remote(path: str) -> bool:
    return "://" in path


def _local(path: str, pattern: str | None, endings: tuple[str, ...], key: str) -> list[Place]:
    if not os.path.exists(path) and glob.has_magic(path):
        named = sorted(glob.glob(path, recursive=True))
        return [place_of(Path(one), key) for one in named if os.path.isfile(one)]
    files = text_files((path,), pattern, key)
    if os.path.isdir(path) and pattern is None:
        files = [file for file in files if file.name.endswith(endings)]
    return [place_of(file, key) for file in files]


def place_of(file: Path, key: str) -> Place:
    """A file of this machine. Raises InputError."""
    try:
        status = file.stat()
    except OSError as error:
        raise unreadable(error, key) from None
    return Place(str(file), status.st_size, stamp_of(status))


def _remote(path: str, pattern: str | None, endings: tuple[str, ...], key: str) -> list[Place]:
    """`*` and `[` make a glob; `?` begins the options of a URI."""
    before, _, query = path.partition("?")
    magic = min((before.find(mark) for mark in "*[" if mark in before), default=-1)
    base = before[: before.rindex("/", 0, magic)] if magic >= 0 else before
    end = f"?{query}" if query else ""
    try:
        folder = open_folder(base + end)
        if magic < 0 and folder.is_file():
            return [_stored(path)]
        files = folder.files()
    except InputError as error:
        raise InputError(error.problem, key=key) from None
    wanted = glob_pattern(before[len(base) + 1 :]) if magic >= 0 else None
    return [
        Place(f"{base}/{file.path}{end}", file.bytes, (int(file.changed_at * 1e9),))
        for file in files
        if (wanted.fullmatch(file.path) if wanted else _is_wanted(file.path, pattern, endings))
    ]


def beside(place: Place, name: str) -> Place | None:
    """Another file in the same folder; None where there is none. Raises StorageError."""
    if not is_remote(place.uri):
        file = Path(place.uri).with_name(name)
        return place_of(file, "data.path") if file.is_file() else None
    folder, _ = _parent(place.uri)
    before, mark, query = folder.partition("?")
    return _stored(f"{before}/{name}{mark}{query}") if _opened(folder).size_of(name) is not None else None


def _stored(uri: str) -> Place:
    """A file of an object store that is there."""
    folder, name = _parent(uri)
    info = _opened(folder).system.get_file_info((_opened(folder) / name).path)
    return Place(uri, info.size, (info.mtime_ns or 0,))


def _is_wanted(path: str, pattern: str | None, endings: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2]
    return bool(glob_pattern(pattern).fullmatch(name)) if pattern else name.endswith(endings)


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: `**/` is any folders, `*` stays within a name."""
    parts = re.split(r"(\*\*/|\*|\[[^]]*\])", pattern)
    meanings = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(meanings.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in parts))


def _parent(uri: str) -> tuple[str, str]:
    """The URI of the folder, with its options, and the name in it."""
    before, mark, query = uri.partition("?")
    folder, _, name = before.rpartition("/")
    return folder + mark + query, name


@lru_cache
def _opened(uri: str) -> Folder:
    return open_folder(uri)


def refused(place: Place, error: Exception, key: str = "data.path") -> InputError:
    """A file that cannot be read, in words."""
    reason = str(error) if isinstance(error, RaystageError) else first_line(error)
    return InputError(f"{place} cannot be read ({reason}); expected a readable file", key=key)
