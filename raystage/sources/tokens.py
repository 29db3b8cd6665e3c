"""`source: tokens`: text that another program tokenized, in the files of llm.c, nanoGPT, Megatron, OLMo and datatrove.

Documents end where an index beside the file says so (Megatron's .idx, datatrove's .ds.index), else after each
`end_token`. Without both they are stretches of `STRETCH` tokens. A document keeps its tokens; where it does not end
with `end_token`, that is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raystage.errors import InputError
from raystage.sources.corpus import SourceOptions, cut
from raystage.sources.places import Place, refused
from raystage.sources.row_index import Block
from raystage.sources.rows import RowCorpus, read_rows
from raystage.sources.token_files import TokenFile, open_tokens

ENDINGS = (".bin", ".npy", ".ds")
STRETCH = 2**16
MOST_IDS = 2**32
BLOCK_TOKENS = 2**24
_CHUNK_TOKENS = 2**20


def read(paths: tuple[str, ...], options: SourceOptions) -> RowCorpus:
    """The documents below these paths. Raises InputError for a file that is not what it should be."""
    return read_rows(__name__, ENDINGS, paths, options, are_tokens=True)


def without_ends(corpus: RowCorpus) -> str | None:
    """A file whose documents are stretches of tokens, because it does not say where they end; None without one."""
    if corpus.options.end_id is not None:
        return None
    places = (file.place for file in (*corpus.files, *(corpus.held_out or ())))
    return next((place.uri for place in places if open_tokens(place, corpus.options.format).ends is None), None)


def blocks(place: Place, options: SourceOptions) -> list[Block]:
    """Ranges of documents where there is an index, else of tokens: a document belongs to that in which it begins."""
    file = open_tokens(place, options.format)
    if file.ends is not None:
        return [Block(*range_) for range_ in cut(np.diff(file.ends, prepend=0).tolist(), BLOCK_TOKENS)]
    starts = range(0, file.num_tokens, BLOCK_TOKENS)
    return [Block(start, min(start + BLOCK_TOKENS, file.num_tokens)) for start in starts]


def rows(place: Place, block: Block, options: SourceOptions) -> Iterator[np.ndarray]:
    """The token ids of each document: of an unsigned type, of shape (tokens,); empty where it has only its end."""
    file = open_tokens(place, options.format)
    try:
        with _Reader(place, file) as reader:
            for document in _documents(reader, file, block, options.end_id):
                yield _with_end(document, options.end_id)
    except OSError as error:
        raise refused(place, error) from None


@dataclass
class _Reader:
    place: Place
    file: TokenFile

    def __enter__(self) -> _Reader:
        self._stream = self.place.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), of an unsigned type of at most 32 bits. Raises InputError for a number that is no id,
        and where the file ends before."""
        size = self.file.dtype.itemsize
        content = self._stream.read_at((stop - start) * size, self.file.start + start * size)
        if len(content) != (stop - start) * size:
            problem = f"{self.place} ends before token {stop:,}; expected a file that stays as it is"
            raise InputError(problem, key="data.path")
        tokens = np.frombuffer(content, self.file.dtype)
        if self.file.dtype.kind == "u" and size <= 4:
            return tokens
        wrong = np.flatnonzero((tokens < 0) | (tokens >= MOST_IDS))
        if len(wrong):
            at = int(wrong[0])
            problem = f"{self.place} has the number {int(tokens[at])} at position {start + at:,}"
            raise InputError(f"{problem}; expected token ids, from 0 to {MOST_IDS - 1}", key="data.path")
        return tokens.astype(np.uint32)


def _documents(reader: _Reader, file: TokenFile, block: Block, end: int | None) -> Iterator[np.ndarray]:
    if file.ends is not None:
        return _indexed(reader, file.ends, block)
    return _stretches(reader, block) if end is None else _ended(reader, file.num_tokens, block, end)


def _indexed(reader: _Reader, ends: np.ndarray, block: Block) -> Iterator[np.ndarray]:
    begins = int(ends[block.start - 1]) if block.start else 0
    bounds = [begins, *ends[block.start : block.stop].tolist()]
    lengths = (stop - start for start, stop in pairwise(bounds))
    for first, last in cut(lengths, _CHUNK_TOKENS):
        tokens = reader.read(bounds[first], bounds[last])
        for number in range(first, last):
            yield tokens[bounds[number] - bounds[first] : bounds[number + 1] - bounds[first]]


def _stretches(reader: _Reader, block: Block) -> Iterator[np.ndarray]:
    for start in range(block.start, block.stop, STRETCH):
        yield reader.read(start, min(start + STRETCH, block.stop))


def _ended(reader: _Reader, num_tokens: int, block: Block, end: int) -> Iterator[np.ndarray]:
    """A document begins at the file's first token, or behind an end."""
    position = max(0, block.start - 1)
    is_first, begun = block.start > 0, reader.read(0, 0)
    while position < num_tokens:
        chunk = reader.read(position, min(position + _CHUNK_TOKENS, num_tokens))
        start = 0
        for stop in (np.flatnonzero(chunk == end) + 1).tolist():
            begins = position + start - len(begun)
            if begins >= block.stop:
                return
            if not is_first:  # else it began in the block before
                yield np.concatenate([begun, chunk[start:stop]]) if len(begun) else chunk[start:stop]
            is_first, begun, start = False, begun[:0], stop
        begun = np.concatenate([begun, chunk[start:]])
        position += len(chunk)
        if is_first:
            begun = begun[:0]
        elif position - len(begun) >= block.stop:
            return
    if len(begun) and not is_first:
        yield begun


def _with_end(document: np.ndarray, end: int | None) -> np.ndarray:
    if end is None or not len(document):
        return document
    if document[-1] != end:
        return np.append(document, np.array(end, document.dtype if end <= np.iinfo(document.dtype).max else np.uint32))
    return document if len(document) > 1 else document[:0]
