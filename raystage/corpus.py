"""Documents: where they come from, which are held out, and what identifies them. No tensors here.

A document is a file. It is held out for evaluation by the hash of its own content, so the split is
the same on every machine and worker and two copies of one text are never on both sides of it. Files of Python's
library that belong together are held out together: see `Corpus.split`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raystage.errors import InputError

BYTE_TOKENIZER = "bytes"

_SKIPPED_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_BUCKETS = 2**32
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
# All that Hugging Face tokenizers of any kind read from a folder.
_TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One text. `digest` is the SHA-256 of its bytes, `num_bytes` how many they are, `path` where to read them.

    package: what it is a part of, where such parts stay on one side of the split.
    """

    path: Path
    digest: str
    num_bytes: int
    package: str | None = None


@dataclass(frozen=True)
class Corpus:
    """All documents of a source, in an order that depends on their content alone."""

    documents: tuple[Document, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the documents' digests: equal text has an equal fingerprint wherever it lies.

        The packages are in it, where there are any: they decide the split.
        """
        return _sha256("".join(document.digest + (document.package or "") for document in self.documents))

    @cached_property
    def positions(self) -> tuple[float, ...]:
        """By document a number in [0, 1]; those below the validation fraction are held out.

        That of a document on its own depends on its content alone. Packages lie one after the other in an order that
        the hashes of their names give, each as long as its share of the bytes, and its middle counts for all of it:
        packages are few and of very different size, and so a fraction of the bytes is held out, not of the names.
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
        """(training, held-out) documents; what is held out is in no package trained on, under whatever name."""
        placed = list(zip(self.documents, self.positions, strict=True))
        held = [document for document, position in placed if position < fraction]
        digests = {document.digest for document in held}
        rest = [document for document, position in placed if position >= fraction and document.digest not in digests]
        return rest, held

    def working_fraction(self) -> float | None:
        """The smallest fraction, in hundredths, that holds a document out and leaves one; None if there is none."""
        positions = sorted(set(self.positions))
        fraction = (math.floor(positions[0] * 100) + 1) / 100
        return fraction if fraction <= positions[-1] else None


def read_corpus(source: str, paths: tuple[str, ...]) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read."""
    files = stdlib_files() if source == "python-stdlib" else _text_files(paths)
    documents = [_document(file, _package(file) if source == "python-stdlib" else None) for file in files]
    documents = [document for document in documents if document.num_bytes]
    if not documents:
        place = ", ".join(paths) or "Python's library"
        raise InputError(f"found no text in {place}; expected files with something in them", key="data.path")
    return Corpus(tuple(sorted(documents, key=_order)))


def _order(document: Document) -> tuple[str, str, str]:
    return document.digest, document.package or "", str(document.path)


def _document(file: Path, package: str | None) -> Document:
    digest, num_bytes = _digest(file)
    return Document(file, digest, num_bytes, package)


def _package(file: Path) -> str:
    """The top-level package or module of the library that a file belongs to: json/decoder.py to json."""
    return file.relative_to(sysconfig.get_path("stdlib")).parts[0].removesuffix(".py")


def stdlib_files() -> list[Path]:
    """The running Python's own library sources, without its tests."""
    return _walk(Path(sysconfig.get_path("stdlib")), ".py", _SKIPPED_STDLIB)


def tokenizer_fingerprint(tokenizer: str) -> str:
    """What identifies a tokenizer: "bytes", a hub name, or the hash of the files in its folder, wherever it lies.

    Raises InputError where there is no such folder, or no tokenizer in it.
    """
    if tokenizer == BYTE_TOKENIZER:
        return tokenizer
    if os.path.isdir(tokenizer):
        return _folder_fingerprint(Path(tokenizer))
    if not _HUB_NAME.fullmatch(tokenizer):
        problem = f"found {tokenizer!r}, which is no folder here; expected 'bytes', a folder or a hub name"
        raise InputError(problem, key="data.tokenizer")
    return tokenizer


def _folder_fingerprint(folder: Path) -> str:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        problem = f"found no tokenizer in the folder {str(folder)!r}; expected tokenizer.json or the like in it"
        raise InputError(problem, key="data.tokenizer")
    lines = [f"{file.name} {_digest(file, 'data.tokenizer')[0]}\n" for file in files]
    return "sha256:" + _sha256("".join(lines))


def _text_files(paths: tuple[str, ...]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            files += _walk(Path(path), "", {"__pycache__"})
        elif os.path.isfile(path):
            files.append(Path(path))
        else:
            raise InputError(f"found no file or folder {path!r}; expected one that is there", key="data.path")
    return files


def _walk(folder: Path, suffix: str, skipped: set[str]) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(file: Path, key: str = "data.path") -> tuple[str, int]:
    """SHA-256 of a file, and of how many bytes."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    except OSError as error:
        raise _unreadable(error, key) from None


def _refuse(error: OSError) -> None:
    raise _unreadable(error, "data.path") from None


def _unreadable(error: OSError, key: str) -> InputError:
    return InputError(f"{error.filename} cannot be read ({error.strerror}); expected readable files", key=key)
