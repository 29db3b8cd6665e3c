"""Files of text: which files there are below a path, which are no text, and where a file is split into documents."""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import mmap
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from raystage.errors import InputError

_KEY = "data.path"
_SKIPPED = {"__pycache__"}
_HEAD_BYTES = 8192
_CHUNK_BYTES = 2**24
# First bytes and names of files that are no text. Source: the specifications of the formats, as collected in file(1).
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip archive", b"BZh91AY&SY": "a bzip2 archive", b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PAR1\x15": "a Parquet file", b"ARROW1\0\0": "an Arrow file", b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"\x7fELF": "a program", b"MZ\x90\x00": "a program",
    b"\xcf\xfa\xed\xfe": "a program", b"\xca\xfe\xba\xbe": "a program", b"%PDF-": "a PDF", b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image", b"GIF87a": "an image", b"GIF89a": "an image",
    b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
_ENDINGS = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".jsonl.gz": "JSON lines", ".parquet": "a Parquet file"}
_REMEDIES = {
    "UTF-16 text": "expected UTF-8 (iconv -f UTF-16 -t UTF-8)",
    "JSON lines": "expected plain text, or source: jsonl",
    "a Parquet file": "expected plain text, or source: parquet",
    "a NumPy array": "expected plain text, or source: tokens",
}  # fmt: skip
_REMEDY = "expected plain text, or data.files with a pattern that leaves it out, such as '*.txt'"


@dataclass(frozen=True)
class DocumentSpan:
    """A document within a file. digest: SHA-256 of its bytes."""

    start: int
    num_bytes: int
    digest: str


def text_files(paths: tuple[str, ...], pattern: str | None = None, key: str = _KEY) -> list[Path]:
    """All files below these paths whose names match the pattern, without hidden ones.

    Links are followed, and each folder below a path is read once. Raises InputError for a missing path and for a link
    that leads nowhere.
    """
    files: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            files += _below(Path(path), pattern)
        elif os.path.isfile(path):
            files.append(Path(path))
        else:
            raise InputError(f"found no file or folder {path!r}; expected one that is there", key=key)
    return files


def _below(folder: Path, pattern: str | None) -> list[Path]:
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=refuse_folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # reached by another link, or by a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if _is_wanted(name, pattern)]
    for path in found:
        if path.is_symlink() and not path.exists():
            problem = f"found the link {str(path)!r} to {os.readlink(path)!r}, which is not there"
            raise InputError(f"{problem}; expected what it links to, or no link", key=_KEY)
    return [path for path in found if path.is_file()]


def _is_wanted(name: str, pattern: str | None) -> bool:
    return not name.startswith(".") and (pattern is None or fnmatch.fnmatchcase(name, pattern))


def check_text(path: Path, head: bytes, may_be_any: bool, key: str = _KEY) -> None:
    """Refuse a file that is no text by its name or its first bytes. Raises InputError.

    may_be_any: accept zero bytes.
    """
    found = next((what for ending, what in _ENDINGS.items() if path.name.lower().endswith(ending)), None)
    found = found or next((what for beginning, what in _BEGINNINGS.items() if head.startswith(beginning)), None)
    if found:
        raise InputError(f"{str(path)!r} is {found}; {_REMEDIES.get(found, _REMEDY)}", key=key)
    if not may_be_any and b"\0" in head[:_HEAD_BYTES]:
        place = head.index(b"\0")
        remedy = f"{_REMEDY}, or data.encoding_errors: replace to read it all the same"
        raise InputError(f"{str(path)!r} has a byte 0 at position {place}, so it is no text; {remedy}", key=key)


def measured(
    file: Path, separator: str | None, max_bytes: int | None, may_be_any: bool, key: str = _KEY
) -> Iterator[DocumentSpan]:
    """The documents in a file: the whole file, or the parts between separators, each split into at most `max_bytes` at
    the end of a line, else between words, else between characters. Raises InputError for what is no text."""
    try:
        with file.open("rb") as stream:
            check_text(file, stream.read(_HEAD_BYTES), may_be_any, key)
            if separator is None and max_bytes is None:
                stream.seek(0)
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                yield DocumentSpan(0, stream.tell(), digest)
            elif os.fstat(stream.fileno()).st_size:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    yield from _measured_spans(content, separator, max_bytes)
    except OSError as error:
        raise unreadable(error, key) from None


def _measured_spans(content: mmap.mmap, separator: str | None, max_bytes: int | None) -> Iterator[DocumentSpan]:
    for start, stop in _spans(content, separator):
        for first, last in _cut(content, start, stop, max_bytes or stop - start):
            yield DocumentSpan(first, last - first, hashlib.sha256(content[first:last]).hexdigest())


def _spans(content: mmap.mmap, separator: str | None) -> Iterator[tuple[int, int]]:
    if separator is None:
        yield 0, len(content)
        return
    mark, start = separator.encode(), 0
    while (stop := content.find(mark, start)) >= 0:
        yield start, stop
        start = stop + len(mark)
    yield start, len(content)


def _cut(content: mmap.mmap, start: int, stop: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    while stop - start > max_bytes:
        end = start + max_bytes
        for mark in (b"\n", b" "):
            found = content.rfind(mark, start, end)
            if found >= 0:
                end = found + 1
                break
        else:
            while end > start + 1 and content[end] & 0xC0 == 0x80:  # inside of a UTF-8 character
                end -= 1
        yield start, end
        start = end
    if start < stop:
        yield start, stop


def holds_any(file: Path, marks: Collection[bytes]) -> bool:
    """Whether one of these byte strings occurs in a file."""
    if not marks:
        return False
    beginning, longest = _beginning(marks), max(map(len, marks))
    try:
        with file.open("rb") as stream:
            last = b""
            while content := stream.read(_CHUNK_BYTES):
                content = last + content
                if beginning in content and any(mark in content for mark in marks):
                    return True
                last = content[1 - longest :] if longest > 1 else b""
    except OSError as error:
        raise unreadable(error, _KEY) from None
    return False


def check_utf8(file: Path, key: str = _KEY) -> None:
    """Raises InputError for the first byte of a file that is not UTF-8."""
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with file.open("rb") as stream:
            while content := stream.read(_CHUNK_BYTES):
                decoder.decode(content)
                start = stream.tell() - len(decoder.getstate()[0])  # the decoder holds an incomplete character
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise no_utf8(file, start + error.start, error.object[error.start], key) from None
    except OSError as error:
        raise unreadable(error, key) from None


def no_utf8(file: Path, position: int, byte: int, key: str = _KEY) -> InputError:
    found = f"{str(file)!r} has the byte 0x{byte:02x} at position {position}, which is no UTF-8"
    return InputError(f"{found}; expected UTF-8, or data.encoding_errors: replace, which puts U+FFFD there", key=key)


def _beginning(marks: Collection[bytes]) -> bytes:
    """The bytes that all of them begin with."""
    first, last = min(marks), max(marks)  # all others lie between these in order
    length = next((place for place, byte in enumerate(first) if last[place : place + 1] != bytes([byte])), len(first))
    return first[:length]


def unreadable(error: OSError, key: str) -> InputError:
    return InputError(f"{error.filename} cannot be read ({error.strerror}); expected readable files", key=key)


def refuse_folder(error: OSError) -> None:
    """For os.walk, which else leaves out a folder that it cannot read."""
    raise unreadable(error, _KEY) from None
