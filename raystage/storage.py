"""A folder on any file system that pyarrow opens: local, shared, S3, GCS. The same code path for all."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raystage.errors import InputError


@dataclass(frozen=True)
class Folder:
    """A folder (or key prefix). It need not exist; writing into it makes it.

    scheme, query: what stood around the path in the URI that it was opened by, such as "s3" and
    "region=eu-west-1", so that its own URI opens the same thing elsewhere.
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
        """The same folder, its local files read rather than mapped: what was read and let go is not resident."""
        return Folder(fs.LocalFileSystem(use_mmap=False), self.path) if self.is_local else self

    @property
    def uri(self) -> str:
        if not self.scheme:
            return self.path
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    def exists(self) -> bool:
        return self.system.get_file_info(self.path).type == fs.FileType.Directory

    def is_file(self) -> bool:
        return self.system.get_file_info(self.path).type == fs.FileType.File

    def names(self) -> list[str]:
        """What lies directly in the folder, sorted; nothing where there is no folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.system.get_file_info(selector))

    def size_of(self, name: str) -> int | None:
        """The size of a file in bytes, or None where there is no such file."""
        info = self.system.get_file_info(f"{self.path}/{name}")
        return info.size if info.type == fs.FileType.File else None

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        with self.system.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def open_reader(self, name: str) -> pa.NativeFile:
        """A file to read ranges from; memory-mapped where it is local."""
        return self.system.open_input_file(f"{self.path}/{name}")

    def open_writer(self, name: str) -> pa.NativeFile:
        """A new file to write from front to back."""
        self.make()
        return self.system.open_output_stream(f"{self.path}/{name}")

    def make(self) -> None:
        if self.is_local:
            self.system.create_dir(self.path, recursive=True)

    def sync(self, name: str) -> None:
        """Bring a written local file to the disk; elsewhere a closed file is already there."""
        if self.is_local:
            _fsync(f"{self.path}/{name}")

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file so that it is seen whole or not at all, and lasts.

        A local file is renamed into place; an object store shows an object only once it is complete.
        """
        if not self.is_local:
            with self.open_writer(name) as file:
                file.write(content)
            return
        temporary = f".{name}.{uuid.uuid4().hex}"
        with self.open_writer(temporary) as file:
            file.write(content)
        _fsync(f"{self.path}/{temporary}")
        os.replace(f"{self.path}/{temporary}", f"{self.path}/{name}")
        _fsync(self.path)

    def delete(self) -> None:
        """Remove the folder and all in it; nothing where there is no folder."""
        if self.exists():
            self.system.delete_dir(self.path)


def open_folder(uri: str | Path) -> Folder:
    """The folder at a local path or a URI such as s3://bucket/prefix. Raises InputError."""
    text = str(uri)
    if "://" not in text:
        return Folder(fs.LocalFileSystem(use_mmap=True), str(Path(text).expanduser().absolute()))
    try:
        system, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{text!r} cannot be opened ({str(error).splitlines()[0]})", key="store") from None
    if isinstance(system, fs.LocalFileSystem):
        return Folder(fs.LocalFileSystem(use_mmap=True), path.rstrip("/"))
    return Folder(system, path.rstrip("/"), text.partition("://")[0], text.partition("?")[2])


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
