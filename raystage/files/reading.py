"""Reading the files of a folder, on this machine or anywhere else; and JSON from elsewhere.

Such JSON may be broken, huge, or nested without end.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from raystage.errors import InputError

LARGEST_JSON_BYTES = 64_000_000  # an index of a million tensors; in memory it takes about ten times as much


class RangeReader(Protocol):
    """An open file."""

    def read_at(self, num_bytes: int, offset: int) -> bytes: ...


class Files(Protocol):
    """A folder that can be read, such as `files.filesystem.Folder`."""

    @property
    def uri(self) -> str: ...

    def size_of(self, name: str) -> int | None:
        """The size of a file in bytes; None where there is no regular file."""

    def read(self, name: str) -> bytes: ...

    def open_reader(self, name: str) -> AbstractContextManager[RangeReader]: ...


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine, read without a file system library."""

    path: Path

    @property
    def uri(self) -> str:
        return str(self.path)

    def size_of(self, name: str) -> int | None:
        try:
            found = os.stat(self.path / name)
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open_reader(self, name: str) -> LocalReader:
        return LocalReader((self.path / name).open("rb"))


class LocalReader:
    """An open file of this machine."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> LocalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(num_bytes)


def uri_in(files: Files, name: str) -> str:
    """The path or URI of a file; what follows the `?` of a URI stays its end."""
    if "://" not in files.uri:
        return f"{files.uri}/{name}"
    place, mark, query = files.uri.partition("?")
    return f"{place}/{name}{mark}{query}"


def parse_json(text: bytes | str) -> Any:
    """Raises ValueError, also where the JSON is nested deeper than Python reads it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(files: Files, name: str, key: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError. key: the user's key or option that names the folder."""
    place = uri_in(files, name)
    size = files.size_of(name)
    if size is None:
        raise InputError("no such file; expected JSON", key=key, file=place)
    if size > LARGEST_JSON_BYTES:
        problem = f"found {size} bytes; expected at most {LARGEST_JSON_BYTES} of JSON"
        raise InputError(problem, key=key, file=place)
    try:
        content = parse_json(files.read(name))
    except ValueError as error:
        raise InputError(f"damaged ({error}); expected JSON", key=key, file=place) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error}); expected JSON", key=key, file=place) from None
    if not isinstance(content, dict):
        raise InputError("damaged; expected a JSON object", key=key, file=place)
    return content
