"""Documents that are rows of files, of which there may be far more than fit into memory.

Files are read twice, row by row: once to hash every document, when a schedule is planned, and once to tokenize. In
between a document is 12 bytes: the first 64 bits of its digest and its length. Documents stay in the order of their
rows, and files come in the order of their content, so that files are read from front to back; other sources order
documents by their digests. A chance that two of a billion documents share 64 bits is 3 %; the second one is then held
out, or left out, together with the first.
"""

from __future__ import annotations

import hashlib
import importlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from raystage.errors import InputError
from raystage.process_pool import in_processes, num_cpus
from raystage.sources import row_cache
from raystage.sources.corpus import (
    BUCKETS,
    PIECE_BYTES,
    SHORT_DIGEST,
    LargestToken,
    Read,
    Side,
    SourceOptions,
    TextSize,
    fraction_between,
)
from raystage.sources.places import Place, find_places

TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2
_LONGEST = 2**32 - 1
PARALLEL_BYTES = 2**28  # of files that are hashed; starting processes takes a second


class Block(NamedTuple):
    """A part of a file that can be read by itself. start, stop: in what the format counts."""

    start: int
    stop: int


class RowFormat(Protocol):
    """A kind of file with rows, as a module."""

    def blocks(self, place: Place, options: SourceOptions) -> list[Block]:
        """The parts of a file, in order. Raises InputError."""

    def rows(self, place: Place, block: Block, options: SourceOptions) -> Iterator[Any]:
        """The documents of a part: bytes, or arrays of token ids. Empty ones do not count. Raises InputError."""


@dataclass(frozen=True, eq=False)
class FileIndex:
    """The documents of a file. rows: how many there are in each block. digests: uint64 of shape (documents,), the first
    bits of their SHA-256. lengths: uint32, in bytes, or in tokens.

    content: SHA-256 over the digests of all documents, in order. largest: the largest token id, where the documents are
    tokens.
    """

    place: Place
    blocks: tuple[Block, ...]
    rows: tuple[int, ...]
    digests: np.ndarray
    lengths: np.ndarray
    content: str
    largest: LargestToken | None = None


@dataclass(frozen=True)
class RowSide:
    """One side of the split. digests: uint64, one array for each file."""

    digests: tuple[np.ndarray, ...]
    size: TextSize

    def __len__(self) -> int:
        return self.size.documents

    def short_digests(self) -> np.ndarray:
        return np.concatenate(self.digests) if self.digests else np.empty(0, np.uint64)

    def smallest(self, count: int) -> tuple[int, list[str]]:
        different = np.unique(self.short_digests())
        return len(different), [f"{digest:0{SHORT_DIGEST}x}" for digest in different[:count].tolist()]

    def count_among(self, digests: Collection[str]) -> int:
        wanted = np.array([int(digest, 16) for digest in digests], dtype=np.uint64)
        return len(np.intersect1d(self.short_digests(), wanted))

    def count_shared(self, other: Side) -> int:
        return len(np.intersect1d(self.short_digests(), other.short_digests()))


@dataclass(frozen=True, eq=False)
class RowPiece:
    """The documents of one block. sides: for each of them TRAIN, HELD_OUT or LEFT_OUT: uint8 of shape (documents,)."""

    format: str
    place: Place
    block: Block
    options: SourceOptions
    digests: np.ndarray
    sides: np.ndarray

    def read(self) -> Iterator[Read]:
        number = 0
        for content in importlib.import_module(self.format).rows(self.place, self.block, self.options):
            if not len(content):
                continue
            if number >= len(self.digests) or _short(_digest(content)) != int(self.digests[number]):
                raise self._changed()
            if self.sides[number] != LEFT_OUT:
                yield Read(content, bool(self.sides[number] == HELD_OUT), self.place.uri, number)
            number += 1
        if number < len(self.digests):
            raise self._changed()

    def identity(self) -> str:
        return hashlib.sha256(self.digests.tobytes() + self.sides.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def _changed(self) -> InputError:
        """Where the file was indexed earlier, it is indexed again the next time."""
        row_cache.forget(self.format, self.place, self.options)
        problem = f"{self.place} changed after it was planned with; expected text that stays as it is (start again)"
        return InputError(problem, key="data.path")


@dataclass(frozen=True, eq=False)
class RowCorpus:
    """All documents of a source. files: in the order of their content. held_out: separate documents to hold out."""

    format: str
    options: SourceOptions
    files: tuple[FileIndex, ...]
    held_out: tuple[FileIndex, ...] | None = None
    are_tokens: bool = False

    @cached_property
    def fingerprint(self) -> str:
        kind = "tokens" if self.are_tokens else "rows"
        held_out = ["held out", *(file.content for file in self.held_out)] if self.held_out else []
        return hashlib.sha256("\n".join([kind, *(file.content for file in self.files), *held_out]).encode()).hexdigest()

    @property
    def has_own_held_out(self) -> bool:
        return self.held_out is not None

    @property
    def largest(self) -> LargestToken | None:
        """The largest token id of all; None where the documents are text."""
        found = [file.largest for file in (*self.files, *(self.held_out or ())) if file.largest]
        return max(found, key=lambda one: one.token, default=None)

    def __len__(self) -> int:
        return sum(len(file.digests) for file in self.files)

    def split(self, fraction: float) -> tuple[RowSide, RowSide]:
        sides = self._sides(fraction)
        return self._side(sides, TRAIN), self._side(sides, HELD_OUT)

    def pieces(self, fraction: float, piece_bytes: int = PIECE_BYTES) -> Sequence[RowPiece]:
        """One for each block of a file: the format says how long it is, and `piece_bytes` does not matter."""
        return [
            RowPiece(
                self.format, file.place, block, self.options, np.asarray(file.digests[start:stop]), sides[start:stop]
            )
            for file, sides in self._sides(fraction)
            for block, start, stop in _ranges(file)
            if stop > start
        ]

    def working_fraction(self) -> float | None:
        positions = [_positions(file.digests) for file in self.files if len(file.digests)]
        return fraction_between(*(float(pick(pick(one) for one in positions)) for pick in (min, max)))

    def holds_any(self, marks: Collection[bytes]) -> bool:
        """Not looked at: it would take reading all of the text once more. Control tokens are encoded as text."""
        return False

    def check_utf8(self) -> None:
        """Every row was decoded when it was read first."""

    def _sides(self, fraction: float) -> list[tuple[FileIndex, np.ndarray]]:
        """Every file, those with separate text to hold out at the end, with the side of each document."""
        if self.held_out is None:
            return [(file, (_positions(file.digests) < fraction).astype(np.uint8)) for file in self.files]
        held = np.unique(np.concatenate([file.digests for file in self.held_out]))
        return [
            *((file, _among(file.digests, held).astype(np.uint8) * np.uint8(LEFT_OUT)) for file in self.files),
            *((file, np.full(len(file.digests), HELD_OUT, np.uint8)) for file in self.held_out),
        ]

    def _side(self, sides: list[tuple[FileIndex, np.ndarray]], side: int) -> RowSide:
        chosen = [(file, of == side) for file, of in sides]
        digests = tuple(file.digests[here] for file, here in chosen)
        total = sum(int(file.lengths[here].sum(dtype=np.int64)) for file, here in chosen)
        count = sum(map(len, digests))
        return RowSide(digests, TextSize(count, 0, total) if self.are_tokens else TextSize(count, total))


def read_rows(
    format: str,
    endings: tuple[str, ...],
    paths: tuple[str, ...],
    options: SourceOptions,
    are_tokens: bool = False,
) -> RowCorpus:
    """The documents of files with rows. format: the name of the module that reads them. Raises InputError."""
    places = find_places(paths, options.files, endings, "data.path")
    files = index_files(format, places, options, ", ".join(paths))
    held_out = None
    if options.validation_path:
        places = find_places(options.validation_path, options.files, endings, "data.validation_path")
        held_out = index_files(format, places, options, ", ".join(options.validation_path), "data.validation_path")
    return RowCorpus(format, options, files, held_out, are_tokens)


def index_files(
    format: str, places: Sequence[Place], options: SourceOptions, named: str, key: str = "data.path"
) -> tuple[FileIndex, ...]:
    """The indexes of files with documents in them, in the order of their content. named: for messages."""
    found = [index for index in _indexes(format, places, options) if len(index.digests)]
    if not found:
        raise InputError(f"found no text in {named}; expected files with something in them", key=key)
    return tuple(sorted(found, key=lambda index: (index.content, index.place.uri)))


def _indexes(format: str, places: Sequence[Place], options: SourceOptions) -> Iterator[FileIndex]:
    """In any order: by several processes where there is much to hash."""
    new = [place for place in places if not row_cache.has(format, place, options)]
    if len(new) < 2 or sum(place.num_bytes for place in new) < PARALLEL_BYTES or num_cpus() < 2:
        yield from (index_file(format, place, options) for place in places)
        return
    tasks = [(format, place, options) for place in sorted(new, key=lambda place: -place.num_bytes)]
    for _, index in in_processes(f"{__name__}:index_file", tasks, num_cpus()):
        yield index
    yield from (index_file(format, place, options) for place in places if place not in new)


def index_file(format: str, place: Place, options: SourceOptions) -> FileIndex:
    """The documents of a file: read from the cache of this machine, where the file is as it was, or hashed."""
    kept = row_cache.load(format, place, options)
    if kept is not None:
        header, digests, lengths = kept
        largest = LargestToken(*header["largest"]) if header["largest"] else None
        blocks = tuple(Block(*block) for block in header["blocks"])
        return FileIndex(place, blocks, tuple(header["rows"]), digests, lengths, header["content"], largest)
    index = _hashed(format, place, options)
    header = {"blocks": index.blocks, "rows": index.rows, "content": index.content, "largest": index.largest}
    row_cache.save(format, place, options, header, index.digests, index.lengths)
    return index


def _hashed(format: str, place: Place, options: SourceOptions) -> FileIndex:
    module: RowFormat = importlib.import_module(format)
    blocks, rows = tuple(module.blocks(place, options)), []
    digests, lengths, whole = array("Q"), array("I"), hashlib.sha256()
    largest: LargestToken | None = None
    position = 0
    for block in blocks:
        before = len(digests)
        for content in module.rows(place, block, options):
            if not len(content):
                continue
            digest = _digest(content)
            whole.update(digest)
            digests.append(_short(digest))
            lengths.append(_length(place, content, len(digests)))
            if not isinstance(content, bytes):
                largest = _larger(largest, place, content, position)
                position += len(content)
        rows.append(len(digests) - before)
    arrays = np.frombuffer(digests, np.uint64), np.frombuffer(lengths, np.uint32)
    return FileIndex(place, blocks, tuple(rows), *arrays, whole.hexdigest(), largest)


def _digest(content: bytes | np.ndarray) -> bytes:
    """Of tokens that of their ids as 32-bit numbers, so that it is the same in every format."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.astype("<u4").tobytes()).digest()


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _length(place: Place, content: bytes | np.ndarray, number: int) -> int:
    if len(content) > _LONGEST:
        problem = f"{place}: found {len(content):,} bytes or tokens in document {number:,}"
        raise InputError(f"{problem}; expected at most {_LONGEST:,}", key="data.path")
    return len(content)


def _larger(largest: LargestToken | None, place: Place, content: np.ndarray, position: int) -> LargestToken:
    at = int(content.argmax())
    token = int(content[at])
    if largest is not None and token <= largest.token:
        return largest
    return LargestToken(token, place.uri, position + at)


def _positions(digests: np.ndarray) -> np.ndarray:
    """For each document its place in [0, 1), as that of documents that are files."""
    return (digests >> np.uint64(32)).astype(np.float64) / BUCKETS


def _among(digests: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Whether each is among the sorted ones. Quicker, and in less memory, than np.isin for many files."""
    places = np.searchsorted(held, digests)
    places[places == len(held)] = 0
    return held[places] == digests


def _ranges(file: FileIndex) -> Iterator[tuple[Block, int, int]]:
    start = 0
    for block, count in zip(file.blocks, file.rows, strict=True):
        yield block, start, start + count
        start += count
