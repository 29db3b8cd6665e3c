"""Documents that are files, or parts of files.

Files of Python's library that belong together are held out together: see `FileCorpus.positions`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raystage.errors import InputError
from raystage.files.file_facts import facts_of
from raystage.lazy import numpy as np
from raystage.sources.corpus import (
    BUCKETS,
    PIECE_BYTES,
    SHORT_DIGEST,
    Read,
    Side,
    SourceOptions,
    TextSize,
    cut,
    fraction_between,
)
from raystage.sources.text_files import check_utf8, holds_any, measured, unreadable

MOST_DOCUMENTS = 4_000_000  # each takes a quarter of a kilobyte while a schedule is planned


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `digest` is the SHA-256 of its bytes, `num_bytes` their number, `path` their file and `start` their
    place.

    package: the package that it belongs to, where whole packages stay on one side of the split.
    """

    path: Path
    digest: str
    num_bytes: int
    package: str | None = None
    start: int = 0

    def read(self) -> bytes:
        """Its bytes. Raises InputError where they have changed since they were hashed."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.num_bytes)
        except OSError as error:
            raise unreadable(error, "data.path") from None
        if hashlib.sha256(content).hexdigest() != self.digest:
            problem = f"{str(self.path)!r} changed while it was read; expected text that stays as it was planned with"
            raise InputError(problem, key="data.path")
        return content


class Documents(tuple[Document, ...]):
    """One side of the split."""

    __slots__ = ()

    @property
    def size(self) -> TextSize:
        return TextSize(len(self), sum(document.num_bytes for document in self))

    def short_digests(self) -> np.ndarray:
        return np.array([int(document.digest[:SHORT_DIGEST], 16) for document in self], dtype=np.uint64)

    def smallest(self, count: int) -> tuple[int, list[str]]:
        digests = sorted({document.digest[:SHORT_DIGEST] for document in self})
        return len(digests), digests[:count]

    def count_among(self, digests: Collection[str]) -> int:
        return len({document.digest[:SHORT_DIGEST] for document in self} & set(digests))

    def count_shared(self, other: Side) -> int:
        if isinstance(other, Documents):  # without numpy, which takes a tenth of a second to load
            return len({document.digest for document in self} & {document.digest for document in other})
        return len(np.intersect1d(self.short_digests(), other.short_digests()))


@dataclass(frozen=True)
class DocumentPiece:
    """Some documents of one side, in order."""

    documents: tuple[Document, ...]
    is_held_out: bool

    def read(self) -> Iterator[Read]:
        for document in self.documents:
            yield Read(document.read(), self.is_held_out, document.path, document.start)

    def identity(self) -> str:
        return _sha256("".join([str(self.is_held_out), *(document.digest for document in self.documents)]))

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True)
class FileCorpus:
    """All documents of a source, in the order of their digests.

    held_out: separate text to hold out; None where a share of the documents is.
    """

    documents: tuple[Document, ...]
    held_out: tuple[Document, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the digests of the documents: equal text has an equal fingerprint, in any place.

        Packages, and separate text to hold out, are part of it, because they decide the split.
        """
        held_out = ["held out", *(document.digest for document in self.held_out)] if self.held_out else []
        return _sha256("".join([*(one.digest + (one.package or "") for one in self.documents), *held_out]))

    @property
    def has_own_held_out(self) -> bool:
        return self.held_out is not None

    @property
    def largest(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def positions(self) -> tuple[float, ...]:
        """For each document a number in [0, 1]; those below the validation fraction are held out.

        The number of a single document depends on its content only. Packages lie one after the other, in the order of
        the hashes of their names, each as long as its share of the bytes; the middle of a package counts for all of it.
        Packages are few and differ in size, so this holds out a fraction of the bytes and not of the names.
        """
        sizes: Counter[str] = Counter()
        for document in self.documents:
            if document.package is not None:
                sizes[document.package] += document.num_bytes
        middles, total, before = {}, sizes.total(), 0
        for package in sorted(sizes, key=_sha256):
            middles[package] = (before + sizes[package] / 2) / total
            before += sizes[package]
        return tuple(
            int(document.digest[:8], 16) / BUCKETS if document.package is None else middles[document.package]
            for document in self.documents
        )

    def split(self, fraction: float) -> tuple[Documents, Documents]:
        """(training, held-out) documents. No copy of a held-out document is trained on, wherever it lies.

        The fraction does not matter where separate text is held out.
        """
        if self.held_out is not None:
            held = Documents(self.held_out)
        else:
            placed = zip(self.documents, self.positions, strict=True)
            held = Documents(document for document, position in placed if position < fraction)
        digests = {document.digest for document in held}
        return Documents(document for document in self.documents if document.digest not in digests), held

    def samples(self, fraction: float) -> None:
        return None

    def pieces(self, fraction: float, piece_bytes: int = PIECE_BYTES) -> Sequence[DocumentPiece]:
        training, held_out = self.split(fraction)
        return [
            DocumentPiece(side[start:stop], is_held_out)
            for side, is_held_out in ((training, False), (held_out, True))
            for start, stop in cut((document.num_bytes for document in side), piece_bytes)
        ]

    def holds_any(self, marks: Collection[bytes]) -> bool:
        """Whether one of these byte strings occurs in the files."""
        if not marks:
            return False
        kind = "holds any", sorted(mark.hex() for mark in marks)
        return any(found for _, found in facts_of(kind, self.files, lambda file: holds_any(file, marks)))

    def check_utf8(self) -> None:
        """Raises InputError for the first byte that is not UTF-8."""
        for _ in facts_of(("UTF-8",), self.files, check_utf8):
            pass

    @property
    def files(self) -> list[Path]:
        return sorted({document.path for document in (*self.documents, *(self.held_out or ()))})

    def working_fraction(self) -> float | None:
        """The smallest fraction, in hundredths, that leaves documents on both sides; None where there is none."""
        return fraction_between(min(self.positions), max(self.positions))


def find_documents(
    files: Iterable[Path],
    options: SourceOptions,
    place: str,
    key: str = "data.path",
    package_of: Callable[[Path], str] | None = None,
) -> tuple[Document, ...]:
    """The documents in these files, in the order of their digests. Raises InputError where there is no text.

    place: for messages. package_of: the package of each file, where whole packages stay together.
    """
    found: list[Document] = []
    for file, spans in _measured(list(files), options, key):
        package = package_of(file) if package_of else None
        for start, num_bytes, digest in spans:
            if num_bytes:
                found.append(Document(file, digest, num_bytes, package, start))
            if len(found) > MOST_DOCUMENTS:
                problem = f"found more than {MOST_DOCUMENTS:,} documents; expected longer ones, or fewer"
                raise InputError(f"{problem} (data.document_separator, data.document_bytes)", key=key)
    if not found:
        raise InputError(f"found no text in {place}; expected files with something in them", key=key)
    return tuple(sorted(found, key=_order))


def _measured(files: Sequence[Path], options: SourceOptions, key: str) -> Iterator[tuple[Path, list[list[Any]]]]:
    """Each file with [start, number of bytes, digest] of its documents."""
    how = options.document_separator, options.document_bytes, options.may_be_any

    def find(file: Path) -> list[list[Any]]:
        return [[span.start, span.num_bytes, span.digest] for span in measured(file, *how, key)]

    return facts_of(("documents", *how), files, find) if files else iter(())


def _order(document: Document) -> tuple[str, str, str, int]:
    return document.digest, document.package or "", str(document.path), document.start


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
