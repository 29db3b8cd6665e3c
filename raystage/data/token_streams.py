"""Streams of tokens while they are written: the documents of a piece after each other, training and held-out apart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from raystage.data.token_index import LENGTH, StreamFile
from raystage.data.tokenizers import Tokenizer
from raystage.errors import InputError
from raystage.sources.corpus import Piece, Read
from raystage.sources.text_files import no_utf8


class TokenStream:
    """A file of tokens, and the checksum of what was written to it."""

    def __init__(self, path: Path) -> None:
        self._file, self._checksum = path.open("wb"), xxhash.xxh3_128()

    def close(self) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        self._checksum.update(content)
        self._file.write(content)

    def written(self) -> StreamFile:
        """What was written so far, synced to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        status = os.fstat(self._file.fileno())
        return StreamFile(status.st_size, self._checksum.hexdigest(), status.st_mtime_ns)


@contextlib.contextmanager
def opened(paths: Iterable[Path]) -> Iterator[list[TokenStream]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(TokenStream(path))) for path in paths]


def write_documents(
    pieces: Iterable[Piece], tokenizer: Tokenizer, dtype: np.dtype, streams: Sequence[TokenStream]
) -> None:
    """Tokenize documents into the streams of both sides, which stand in the order of `token_index.stream_names`. Raises
    InputError."""
    for piece in pieces:
        for document in piece.read():
            for part, content in enumerate(encoded(document, tokenizer, dtype)):
                streams[2 * part + document.is_held_out].write(content)


def encoded(document: Read, tokenizer: Tokenizer, dtype: np.dtype) -> tuple[bytes, ...]:
    """The tokens of a document, as bytes, and what belongs to them (`token_index.PARTS`). Raises InputError."""
    try:
        found = tokenizer.encode(document.content)
        ids, *further = found if isinstance(found, tuple) else (found,)
        further.append(np.array([len(ids)], LENGTH))
        return cast(ids, tokenizer.size, dtype).tobytes(), *(one.tobytes() for one in further)
    except UnicodeDecodeError as error:
        raise no_utf8(document.file, document.start + error.start, error.object[error.start]) from None


def cast(ids: np.ndarray, size: int, dtype: np.dtype) -> np.ndarray:
    """The ids in as few bytes as the largest id allows. Raises InputError for an id beyond the tokenizer's."""
    if ids.min() < 0 or ids.max() >= size:
        found = f"found the id {ids.max() if ids.max() >= size else ids.min()} in encoded text"
        raise InputError(f"{found}; expected ids up to the tokenizer's largest, {size - 1}", key="data.tokenizer")
    return ids.astype(dtype)
