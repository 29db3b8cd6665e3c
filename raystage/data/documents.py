"""Documents: where they come from, which ones are held out, and what identifies them. No tensors here.

A document is a file, or a part of a file where the schedule says how to split files. The hash of its content decides
whether it is held out, so the split is the same on every machine and worker, and two copies of a text are never on both
sides. Files of Python's library that belong together are held out together: see `Corpus.positions`.
"""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raystage.data.text_files import check_utf8, holds_any, measured, stdlib_files, text_files, unreadable
from raystage.data.tokenizer_files import check_bounds
from raystage.errors import InputError
from raystage.models import hub

BYTE_TOKENIZER = "bytes"
BYTE_VOCABULARY = 257  # 256 bytes and the end of a document

_BUCKETS = 2**32
MOST_DOCUMENTS = 4_000_000  # each takes a quarter of a kilobyte while a schedule is planned
# The files that Hugging Face tokenizers of any kind read from a folder.
_TOKENIZER_FILES = (
    "added_tokens.json", "bpe.codes", "dict.txt", "merges.txt", "sentencepiece.bpe.model", "source.spm",
    "special_tokens_map.json", "spiece.model", "target.spm", "tekken.json", "tokenizer.json", "tokenizer.model",
    "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3", "tokenizer_config.json", "vocab.bpe",
    "vocab.json", "vocab.txt",
)  # fmt: skip


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


@dataclass(frozen=True)
class TextOptions:
    """Which files are read, where they are split into documents, and what is held out.

    files: a pattern of names. validation_path: separate text to hold out, in place of a share. may_be_any: whether
    files that contain zero bytes are read.
    """

    files: str | None = None
    validation_path: tuple[str, ...] = ()
    document_separator: str | None = None
    document_bytes: int | None = None
    may_be_any: bool = False


WHOLE_FILES = TextOptions()


@dataclass(frozen=True)
class Corpus:
    """All documents of a source, in an order that depends on their content only.

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
            int(document.digest[:8], 16) / _BUCKETS if document.package is None else middles[document.package]
            for document in self.documents
        )

    def split(self, fraction: float) -> tuple[list[Document], list[Document]]:
        """(training, held-out) documents. No copy of a held-out document is trained on, wherever it lies.

        The fraction does not matter where separate text is held out.
        """
        if self.held_out is not None:
            held = list(self.held_out)
        else:
            placed = zip(self.documents, self.positions, strict=True)
            held = [document for document, position in placed if position < fraction]
        digests = {document.digest for document in held}
        return [document for document in self.documents if document.digest not in digests], held

    def holds_any(self, marks: Collection[bytes]) -> bool:
        """Whether one of these byte strings occurs in the files."""
        return any(holds_any(file, marks) for file in self.files)

    def check_utf8(self) -> None:
        """Raises InputError for the first byte that is not UTF-8."""
        for file in self.files:
            check_utf8(file)

    @property
    def files(self) -> list[Path]:
        return sorted({document.path for document in (*self.documents, *(self.held_out or ()))})

    def working_fraction(self) -> float | None:
        """The smallest fraction, in hundredths, that leaves documents on both sides; None where there is none."""
        positions = sorted(set(self.positions))
        fraction = (math.floor(positions[0] * 100) + 1) / 100
        return fraction if fraction <= positions[-1] else None


def read_corpus(source: str, paths: tuple[str, ...], options: TextOptions = WHOLE_FILES) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read, or something that is no text."""
    if source == "python-stdlib":
        return Corpus(
            _ordered(_documents(stdlib_files(), WHOLE_FILES, is_stdlib=True), "Python's library", "data.path")
        )
    documents = _text(paths, options, "data.path")
    if not options.validation_path:
        return Corpus(documents)
    return Corpus(documents, _text(options.validation_path, options, "data.validation_path"))


def _text(paths: tuple[str, ...], options: TextOptions, key: str) -> tuple[Document, ...]:
    files = text_files(paths, options.files, key)
    return _ordered(_documents(files, options, key=key), ", ".join(paths), key)


def _documents(
    files: Iterable[Path], options: TextOptions, key: str = "data.path", is_stdlib: bool = False
) -> list[Document]:
    found: list[Document] = []
    for file in files:
        cuts = options.document_separator, options.document_bytes
        package = _package(file) if is_stdlib else None
        for piece in measured(file, *cuts, options.may_be_any or is_stdlib, key):
            if piece.num_bytes:
                found.append(Document(file, piece.digest, piece.num_bytes, package, piece.start))
            if len(found) > MOST_DOCUMENTS:
                problem = f"found more than {MOST_DOCUMENTS:,} documents; expected longer ones, or fewer"
                raise InputError(f"{problem} (data.document_separator, data.document_bytes)", key=key)
    return found


def _ordered(documents: list[Document], place: str, key: str) -> tuple[Document, ...]:
    if not documents:
        raise InputError(f"found no text in {place}; expected files with something in them", key=key)
    return tuple(sorted(documents, key=_order))


def _order(document: Document) -> tuple[str, str, str, int]:
    return document.digest, document.package or "", str(document.path), document.start


def _package(file: Path) -> str:
    """The top-level package or module of the library that a file belongs to: json for json/decoder.py."""
    return file.relative_to(sysconfig.get_path("stdlib")).parts[0].removesuffix(".py")


def tokenizer_fingerprint(tokenizer: str) -> str:
    """What identifies a tokenizer: "bytes", a hub name with its commit, or the hash of the files in its folder.

    Raises InputError where there is no such folder, or no tokenizer in it.
    """
    if tokenizer == BYTE_TOKENIZER:
        return tokenizer
    if os.path.isdir(tokenizer):
        return _folder_fingerprint(Path(tokenizer))
    if not hub.is_name(tokenizer):
        problem = f"found {tokenizer!r}, which is no folder here; expected 'bytes', a folder or a hub name"
        raise InputError(problem, key="data.tokenizer")
    return tokenizer


def _folder_fingerprint(folder: Path) -> str:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        problem = f"found no tokenizer in the folder {str(folder)!r}; expected tokenizer.json or the like in it"
        raise InputError(problem, key="data.tokenizer")
    try:
        check_bounds(folder)
    except ValueError as error:
        raise InputError(str(error), key="data.tokenizer", file=str(folder)) from None
    lines = [f"{file.name} {_digest(file)}\n" for file in files]
    return "sha256:" + _sha256("".join(lines))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(error, "data.tokenizer") from None
