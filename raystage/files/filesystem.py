"""A folder on any file system that pyarrow opens: local, shared, S3, GCS. The same code for all of them.

Errors that pass by themselves are retried (`files.retry`). Others become one StorageError that names the place. A
missing file stays a FileNotFoundError: that is an answer and not a failure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raystage.errors import InputError, StorageError
from raystage.files import local
from raystage.files.object_stores import check_bucket, refuse_credentials, with_backoff
from raystage.files.retry import retried
from raystage.units import first_line

Result = TypeVar("Result")
FileToWrite = pa.NativeFile


@dataclass(frozen=True, order=True)
class StoredFile:
    """A file within a folder. path: from there; changed_at: seconds since 1970."""

    path: str
    bytes: int
    changed_at: float


@dataclass(frozen=True)
class Folder:
    """A folder (or key prefix). It need not exist; writing into it creates it.

    scheme, query: the parts around the path in the URI that it was opened by, such as "s3" and "region=eu-west-1", so
    that its own URI opens the same folder elsewhere. Everything raises StorageError where the file system refuses.
    """

    system: fs.FileSystem
    path: str
    scheme: str = ""
    query: str = ""

    def __truediv__(self, name: str) -> Folder:
        return replace(self, path=f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.system, fs.LocalFileSystem)

    @property
    def unmapped(self) -> Folder:
        """The same folder with local files read and not mapped, so that data that was read does not stay in memory."""
        return Folder(fs.LocalFileSystem(use_mmap=False), self.path) if self.is_local else self

    @property
    def uri(self) -> str:
        if not self.scheme:
            return self.path
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    def exists(self) -> bool:
        return self._info().type == fs.FileType.Directory

    def is_file(self) -> bool:
        return self._info().type == fs.FileType.File

    def names(self) -> list[str]:
        """The names directly in the folder, sorted; empty where there is no folder."""
        return sorted(self._entries())

    def folder_names(self) -> list[str]:
        """The folders directly in this one, sorted. Plain files here come from other programs."""
        return sorted(name for name, is_folder in self._entries().items() if is_folder)

    def file_names(self) -> list[str]:
        """The files directly in the folder, sorted."""
        return sorted(name for name, is_folder in self._entries().items() if not is_folder)

    def files(self, follow_links: bool = True, deep: bool = True) -> list[StoredFile]:
        """All files in the folder and below, sorted by path; empty where there is no folder. deep: whether below."""
        return sorted(self._tried("listed", lambda: list(self._walk(follow_links, deep))), key=attrgetter("path"))

    def first_link(self, root: Folder) -> str | None:
        """The first symbolic link on the way from `root` to this folder; object stores have none."""
        return local.first_link(root.path, self.path) if self.is_local else None

    def links(self) -> list[str]:
        """The symbolic links in the folder and below, and the folder itself if it is one."""
        if not self.is_local:
            return []
        own = [self.path] if os.path.islink(self.path) else []

        def within() -> list[str]:
            return [one.path for one in local.walk(self.path, follow_links=False) if one.is_symlink()]

        return own + sorted(self._tried("listed", within))

    def size_of(self, name: str) -> int | None:
        """The size of a file in bytes, or None where there is no such file."""
        info = (self / name)._info()
        return info.size if info.type == fs.FileType.File else None

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """The whole file. Raises FileNotFoundError; ValueError where it has more than `at_most` bytes."""

        def content() -> bytes:
            if self.is_local and local.is_special(f"{self.path}/{name}"):
                raise OSError("it is a device or a pipe; expected a file")
            with self.system.open_input_file(f"{self.path}/{name}") as file:
                if at_most is not None and file.size() > at_most:
                    raise ValueError(f"found {file.size()} bytes; expected at most {at_most}")
                return file.read()

        return (self / name)._tried("read", content)

    def open_reader(self, name: str) -> OpenFile:
        """A file to read ranges from; memory-mapped where it is local. Raises FileNotFoundError."""
        return OpenFile(self / name)

    def write_stream(self, name: str, write: Callable[[FileToWrite], Result]) -> Result:
        """A new file that `write` writes from front to back. Where that fails, the incomplete file is removed.

        write: called again, for the file from its start, where a storage service did not answer for a while.
        """
        self.make()
        return (self / name)._tried("written", lambda: (self / name)._streamed(write))

    def make(self) -> None:
        if self.is_local:
            try:
                self._tried("made", lambda: local.make_folders(self.path))
            except FileNotFoundError as error:  # the answer of /proc, where nothing can be created
                raise _in_words(self, "made", error) from None

    def sync(self, name: str) -> None:
        """Write a local file through to disk; elsewhere a closed file is already stored."""
        if self.is_local:
            (self / name)._tried("written", lambda: local.fsync(f"{self.path}/{name}"))

    def begin_sync(self, name: str) -> None:
        """Let the system start to write a local file to disk, where it can (Linux), while more is written to it. `sync`
        then has less to wait for. Nothing is guaranteed before `sync`."""
        if self.is_local:
            local.begin_writeback(f"{self.path}/{name}")

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file so that readers see all of it or nothing, and so that it lasts.

        A local file is renamed into place; an object store shows an object only once it is complete.
        """
        if self.is_local:
            self._put_locally(local.write_in_place, name, content)
        else:
            (self / name)._tried("written", lambda: self._put(name, content))

    def write_new(self, name: str, content: bytes) -> bool:
        """The same if there is no such file yet; returns whether this content is in place now.

        If several processes write one file at the same time, a local file system gives True to one of them. pyarrow has
        no conditional write for object stores: there the last content stays. It is read again, so a process that finds
        other content returns False.
        """
        if self.is_local:
            return self._put_locally(local.write_new, name, content)
        if self.size_of(name) is not None:
            return False
        self.write_whole(name, content)
        return self.read(name) == content

    def delete(self) -> None:
        """Remove the folder and everything in it, links without their targets; nothing where there is no folder."""

        def remove() -> None:
            if self.is_local:
                local.remove_folder(self.path)
            elif self.system.get_file_info(self.path).type == fs.FileType.Directory:
                with contextlib.suppress(FileNotFoundError):  # another process removes the same folder
                    self.system.delete_dir(self.path)

        self._tried("removed", remove)

    def delete_file(self, name: str) -> None:
        """Remove one file; nothing where there is none."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.system.delete_file(f"{self.path}/{name}")

        (self / name)._tried("removed", remove)

    def _info(self) -> fs.FileInfo:
        return self._tried("looked at", lambda: self.system.get_file_info(self.path))

    def _tried(self, done: str, action: Callable[[], Result]) -> Result:
        """Do something with this folder or file. `done` says what, for the error: "cannot be `done`"."""
        try:
            return retried(action)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _in_words(self, done, error) from None

    def _streamed(self, write: Callable[[FileToWrite], Result]) -> Result:
        """Write this new file; it is removed again where writing fails.

        pyarrow cannot abort an upload: a file that is closed or dropped becomes an object, however little it holds. So
        it is closed and then removed. If this process dies in between, a part of a checkpoint is left without a
        manifest, which does not count as a checkpoint.
        """
        file = self.system.open_output_stream(self.path)
        try:
            result = write(file)
            _complete(file, self)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                self.system.delete_file(self.path)
            raise
        return result

    def _put(self, name: str, content: bytes) -> None:
        # Not `with`: after an exception pyarrow would complete the upload, too.
        file = self.system.open_output_stream(f"{self.path}/{name}")
        file.write(content)
        file.close()

    def _put_locally(self, write: Callable[[str, bytes], Result], name: str, content: bytes) -> Result:
        self.make()
        try:
            return write(f"{self.path}/{name}", content)
        except OSError as error:
            raise _in_words(self / name, "written", error) from None

    def _entries(self) -> dict[str, bool]:
        """The names directly in the folder, each with whether it is a folder."""
        if self.is_local:
            found = lambda: {entry.name: local.is_folder(entry) for entry in local.entries(self.path)}  # noqa: E731
            return self._tried("listed", found)
        selector = fs.FileSelector(self.path, allow_not_found=True)
        listed = self._tried("listed", lambda: self.system.get_file_info(selector))
        return {one.base_name: one.type == fs.FileType.Directory for one in listed}

    def _walk(self, follow_links: bool, deep: bool) -> Iterator[StoredFile]:
        prefix = len(self.path) + 1
        if self.is_local:
            for entry in local.walk(self.path, follow_links) if deep else local.entries(self.path):
                with local.LEADS_NOWHERE:
                    if entry.is_file(follow_symlinks=follow_links):
                        found = entry.stat()
                        yield StoredFile(entry.path[prefix:], found.st_size, found.st_mtime)
            return
        for one in self.system.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=deep)):
            if one.type == fs.FileType.File:
                yield StoredFile(one.path[prefix:], one.size, (one.mtime_ns or 0) / 1e9)


class OpenFile:
    """A file, open for reading ranges of it."""

    def __init__(self, place: Folder) -> None:
        self._place = place
        self._file = place._tried("read", lambda: place.system.open_input_file(place.path))

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        """The bytes [offset, offset + num_bytes), or fewer where the file ends. Raises StorageError."""
        return self._place._tried("read", lambda: self._file.read_at(num_bytes, offset))

    def view_at(self, num_bytes: int, offset: int) -> pa.Buffer:
        """The same, without a copy where the file is mapped. For one thread at a time."""

        def view() -> pa.Buffer:
            self._file.seek(offset)
            return self._file.read_buffer(num_bytes)

        return self._place._tried("read", view)

    def read_into(self, into: memoryview, offset: int) -> int:
        """The same, directly into a buffer; returns the number of bytes. For one thread at a time."""

        def fill() -> int:
            self._file.seek(offset)
            return self._file.readinto(into)

        return self._place._tried("read", fill)

    def close(self) -> None:
        self._file.close()


def _complete(file: pa.NativeFile, place: Folder) -> None:
    """Close a file. An object with its full length is complete, even if the answer of the service was lost: before that
    it does not exist at all, and its name is new."""
    written = file.tell()
    try:
        file.close()
    except OSError:
        info = place._info()
        if place.is_local or info.type != fs.FileType.File or info.size != written:
            raise


def open_folder(uri: str | Path) -> Folder:
    """The folder at a local path or a URI such as s3://bucket/prefix.

    Raises InputError, StorageError where S3 does not answer.
    """
    text = str(uri)
    if "://" not in text:
        return Folder(fs.LocalFileSystem(use_mmap=True), str(Path(text).expanduser().absolute()))
    refuse_credentials(text)
    try:
        system, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{text!r} cannot be opened ({first_line(error)})", key="store") from None
    if isinstance(system, fs.LocalFileSystem):
        return Folder(fs.LocalFileSystem(use_mmap=True), path.rstrip("/"))
    query = text.partition("?")[2]
    if not isinstance(system, fs.S3FileSystem):
        return Folder(system, path.rstrip("/"), text.partition("://")[0], query)
    folder = Folder(with_backoff(system, query), path.rstrip("/"), text.partition("://")[0], query)
    check_bucket(folder.system, folder.path, folder.uri)
    return folder


def _in_words(place: Folder, done: str, error: OSError) -> StorageError:
    return StorageError(f"{place.uri}: cannot be {done} ({first_line(error)})")
