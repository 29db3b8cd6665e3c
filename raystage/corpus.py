"""Documents: where they come from, which are held out, and what identifies them. No tensors here.

A document is a file. It is held out for evaluation by the hash of its own content, so the split is
the same on every machine and worker and two copies of one text are never on both sides of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from raystage.errors import InputError

BYTE_TOKENIZER = "bytes"

_EMPTY_DIGEST = hashlib.sha256().hexdigest()
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
    """One text. `digest` is the SHA-256 of its bytes, `path` where to read them."""

    path: Path
    digest: str

    @property
    def position(self) -> float:
        """A number in [0, 1) that depends on the content alone."""
        return int(self.digest[:8], 16) / _BUCKETS

    def is_held_out(self, fraction: float) -> bool:
        return self.position < fraction


@dataclass(frozen=True)
class Corpus:
    """All documents of a source, in an order that depends on their content alone."""

    documents: tuple[Document, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the documents' digests: equal text has an equal fingerprint wherever it lies."""
        return hashlib.sha256("".join(document.digest for document in self.documents).encode()).hexdigest()

    def split(self, fraction: float) -> tuple[list[Document], list[Document]]:
        """(training, held-out) documents."""
        held = [document for document in self.documents if document.is_held_out(fraction)]
        return [document for document in self.documents if not document.is_held_out(fraction)], held

    def working_fraction(self) -> float | None:
        """The smallest fraction, in hundredths, that holds a document out and leaves one; None if there is none."""
        positions = sorted({document.position for document in self.documents})
        fraction = (math.floor(positions[0] * 100) + 1) / 100
        return fraction if fraction <= positions[-1] else None


def read_corpus(source: str, paths: tuple[str, ...]) -> Corpus:
    """The documents of a source. Raises InputError where there is nothing to read."""
    files = stdlib_files() if source == "python-stdlib" else _text_files(paths)
    documents = [Document(file, _digest(file)) for file in files]
    documents = [document for document in documents if document.digest != _EMPTY_DIGEST]
    if not documents:
        place = ", ".join(paths) or "Python's library"
        raise InputError(f"found no text in {place}; expected files with something in them", key="data.path")
    return Corpus(tuple(sorted(documents, key=lambda document: (document.digest, str(document.path)))))


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
    lines = [f"{file.name} {_digest(file, 'data.tokenizer')}\n" for file in files]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


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


def _digest(file: Path, key: str = "data.path") -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(error, key) from None


def _refuse(error: OSError) -> None:
    raise _unreadable(error, "data.path") from None


def _unreadable(error: OSError, key: str) -> InputError:
    return InputError(f"{error.filename} cannot be read ({error.strerror}); expected readable files", key=key)
