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
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from raystage.errors import InputError
from raystage.sources import row_cache
from raystage.sources.corpus import (
    BUCKETS,
    PIECE_BYTES,
    SHORT_DIGEST,
    Label,
    LargestToken,
    Read,
    Sample,
    SampleFacts,
    Side,
    SourceOptions,
    TextSize,
    fraction_between,
)
from raystage.sources.labelled.classes import class_names, classes_of, find_only, image_size, named, numbered
from raystage.sources.places import Place, find_places
from raystage.sources.row_index import Block, FileIndex, digest_of, index_files, is_empty, short

TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2


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
    """The documents of one block. sides: for each of them TRAIN, HELD_OUT or LEFT_OUT: uint8 of shape (documents,).

    classes: of samples, as their source has them, in the order of their numbers. labels: the number of the class of
    each: int32.
    """

    format: str
    place: Place
    block: Block
    options: SourceOptions
    digests: np.ndarray
    sides: np.ndarray
    classes: tuple[Label, ...] = ()
    labels: np.ndarray | None = None

    def read(self) -> Iterator[Read]:
        number = 0
        for content in importlib.import_module(self.format).rows(self.place, self.block, self.options):
            if is_empty(content):
                continue
            if number >= len(self.digests) or short(digest_of(content)) != int(self.digests[number]):
                raise self._changed()
            if isinstance(content, Sample):
                content = self._numbered(content, number)
            if self.sides[number] != LEFT_OUT:
                yield Read(content, bool(self.sides[number] == HELD_OUT), self.place.uri, number)
            number += 1
        if number < len(self.digests):
            raise self._changed()

    def scores(self, column: str) -> Iterator[float]:
        """The numbers of a column beside the documents to train on. Raises InputError."""
        options, number = self.options.with_score(column), 0
        for content in importlib.import_module(self.format).rows(self.place, self.block, options):
            if is_empty(content):
                continue
            if number >= len(self.digests) or short(digest_of(content.content)) != int(self.digests[number]):
                raise self._changed()
            if self.sides[number] == TRAIN:
                yield content.score
            number += 1
        if number < len(self.digests):
            raise self._changed()

    def identity(self) -> str:
        labels = b"" if self.labels is None else self.labels.tobytes()
        return hashlib.sha256(self.digests.tobytes() + self.sides.tobytes() + labels).hexdigest()

    def _numbered(self, sample: Sample, number: int) -> Sample:
        """A sample with the number of its class."""
        if not self.classes:
            return sample._replace(label=None)
        label = int(self.labels[number])
        if self.classes[label] != sample.label:
            raise self._changed()
        return sample._replace(label=label)

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
    _scores: dict[tuple[str, float], np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        kind = "samples" if self._are_samples else "tokens" if self.are_tokens else "rows"
        held_out = ["held out", *(file.content for file in self.held_out)] if self.held_out else []
        classes = [json.dumps(self._names)] if self._are_samples else []
        if self._only:
            classes.append(f"only {json.dumps(self._only)}")
        parts = [kind, *classes, *(file.content for file in self.files), *held_out]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def _all(self) -> tuple[FileIndex, ...]:
        return (*self.files, *(self.held_out or ()))

    @property
    def _are_samples(self) -> bool:
        return self.files[0].samples is not None

    @cached_property
    def _classes(self) -> tuple[Label, ...]:
        """As the source has them. Raises InputError."""
        return classes_of(self._all, self.options.classes)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return class_names(self._classes)

    @cached_property
    def _only(self) -> tuple[str, ...]:
        """The classes whose samples are read, in the order of their numbers; () for all of them. Raises InputError."""
        if not self.options.only_classes:
            return ()
        names = self._names if self._are_samples else ()
        only = find_only(self.options.only_classes, names)
        for files, key in ((self.files, "data.path"), (self.held_out or (), "data.validation_path")):
            if files and not any(self._is_of(file, only).any() for file in files):
                problem = f"found no sample of {named(only)} in {key}"
                raise InputError(f"{problem}; expected classes of which there are some", key="data.only_classes")
        return only if len(only) < len(names) else ()

    def _is_read(self, file: FileIndex) -> np.ndarray:
        """Whether each document is of a class whose samples are read."""
        return self._is_of(file, self._only) if self._only else np.ones(len(file.digests), bool)

    def _is_of(self, file: FileIndex, classes: Sequence[str]) -> np.ndarray:
        return np.isin(self._names, classes)[numbered(file, self._classes)]

    def samples(self, fraction: float) -> SampleFacts | None:
        if not self._are_samples:
            return None
        counts = []
        for side in (TRAIN, HELD_OUT):
            found = np.zeros(max(1, len(self._classes)), np.int64)
            for file, sides in self._sides(fraction):
                found += np.bincount(numbered(file, self._classes)[sides == side], minlength=len(found))
            counts.append(tuple(found.tolist()))
        return SampleFacts(self._names, image_size(self._all), *counts, only=self._only)

    @property
    def has_own_held_out(self) -> bool:
        return self.held_out is not None

    @property
    def largest(self) -> LargestToken | None:
        """The largest token id of all; None where the documents are text."""
        found = [file.largest for file in self._all if file.largest]
        return max(found, key=lambda one: one.token, default=None)

    def __len__(self) -> int:
        return sum(int(self._is_read(file).sum()) for file in self.files)

    def split(self, fraction: float) -> tuple[RowSide, RowSide]:
        sides = self._sides(fraction)
        return self._side(sides, TRAIN), self._side(sides, HELD_OUT)

    def pieces(self, fraction: float, piece_bytes: int = PIECE_BYTES) -> Sequence[RowPiece]:
        """One for each block of a file: the format says how long it is, and `piece_bytes` does not matter."""
        return [
            self._piece(file, block, slice(start, stop), sides)
            for file, sides in self._sides(fraction)
            for block, start, stop in _ranges(file)
            if stop > start
        ]

    def _piece(self, file: FileIndex, block: Block, where: slice, sides: np.ndarray) -> RowPiece:
        digests = np.asarray(file.digests[where])
        if not self._are_samples:
            return RowPiece(self.format, file.place, block, self.options, digests, sides[where])
        labels = numbered(file, self._classes, where)
        return RowPiece(self.format, file.place, block, self.options, digests, sides[where], self._classes, labels)

    def scores(self, column: str, fraction: float) -> np.ndarray:
        if (column, fraction) not in self._scores:
            found = (score for piece in self.pieces(fraction) for score in piece.scores(column))
            self._scores[column, fraction] = np.fromiter(found, np.float64)
        return self._scores[column, fraction]

    def working_fraction(self) -> float | None:
        found = (_positions(file.digests[self._is_read(file)]) for file in self.files)
        positions = [one for one in found if len(one)]
        if not positions:
            return None
        return fraction_between(*(float(pick(pick(one) for one in positions)) for pick in (min, max)))

    def holds_any(self, marks: Collection[bytes]) -> bool:
        """Not looked at: it would take reading all of the text once more. Control tokens are encoded as text."""
        return False

    def check_utf8(self) -> None:
        """Every row was decoded when it was read first."""

    def _sides(self, fraction: float) -> list[tuple[FileIndex, np.ndarray]]:
        """Every file, those with separate text to hold out at the end, with the side of each document."""
        found = self._sides_of_all(fraction)
        if not self._only:
            return found
        return [(file, np.where(self._is_read(file), side, np.uint8(LEFT_OUT))) for file, side in found]

    def _sides_of_all(self, fraction: float) -> list[tuple[FileIndex, np.ndarray]]:
        """The same with the samples of all classes: which of them are read moves none to the other side."""
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
