"""The index of a file with rows: what is known of its documents after they were hashed once, in 12 bytes for each.

Of a sample it also knows the class, in 4 bytes more. A machine keeps the indexes of large files (`sources.row_cache`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from raystage.errors import InputError
from raystage.process_pool import in_processes, num_cpus
from raystage.sources import row_cache
from raystage.sources.corpus import Label, LargestToken, Sample, SourceOptions
from raystage.sources.places import Place

_LONGEST = 2**32 - 1
PARALLEL_BYTES = 2**28  # of files that are hashed; starting processes takes a second
MOST_CLASSES = 10_000


class Block(NamedTuple):
    """A part of a file that can be read by itself. start, stop: in what the format counts."""

    start: int
    stop: int


class RowFormat(Protocol):
    """A kind of file with rows, as a module. It may also have `class_names(place, options)`: the names of the classes,
    in order, where the file itself says them."""

    def blocks(self, place: Place, options: SourceOptions) -> list[Block]:
        """The parts of a file, in order. Raises InputError."""

    def rows(self, place: Place, block: Block, options: SourceOptions) -> Iterator[Any]:
        """The documents of a part: bytes, arrays of token ids, or a `Sample` of each. Empty ones do not count. Raises
        InputError."""


@dataclass(frozen=True, eq=False)
class FileSamples:
    """The samples of a file. labels: uint32 of shape (documents,), each a place in `classes`.

    classes: the labels of the file in the order in which they occur first; () without classes. names: of the classes,
    in order, where the file itself says them. image: (channels, height, width) of all of them; None of text. first:
    where the first one lies.
    """

    labels: np.ndarray
    classes: tuple[Label, ...]
    names: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
    first: str = ""


@dataclass(frozen=True, eq=False)
class FileIndex:
    """The documents of a file. rows: how many there are in each block. digests: uint64 of shape (documents,), the first
    bits of their SHA-256. lengths: uint32, in bytes, or in tokens.

    content: SHA-256 over the digests of all documents, in order, and over their labels. largest: the largest token id,
    where the documents are tokens. samples: where they are samples.
    """

    place: Place
    blocks: tuple[Block, ...]
    rows: tuple[int, ...]
    digests: np.ndarray
    lengths: np.ndarray
    content: str
    largest: LargestToken | None = None
    samples: FileSamples | None = None


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
        return _kept(place, *kept)
    began, index = time.time(), _hashed(format, place, options)
    header: dict[str, Any] = {"blocks": index.blocks, "rows": index.rows, "content": index.content}
    header["largest"] = index.largest
    arrays = [index.digests, index.lengths]
    if (found := index.samples) is not None:
        header["samples"] = {"classes": found.classes, "names": found.names, "image": found.image, "first": found.first}
        arrays.append(found.labels)
    row_cache.save(format, place, options, header, arrays, began)
    return index


def _kept(place: Place, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> FileIndex:
    digests, lengths, *labels = arrays
    largest = LargestToken(*header["largest"]) if header["largest"] else None
    samples = None
    if labels:
        found = header["samples"]
        image = tuple(found["image"]) if found["image"] else None
        samples = FileSamples(labels[0], tuple(found["classes"]), tuple(found["names"]), image, found["first"])
    blocks = tuple(Block(*block) for block in header["blocks"])
    return FileIndex(place, blocks, tuple(header["rows"]), digests, lengths, header["content"], largest, samples)


def _hashed(format: str, place: Place, options: SourceOptions) -> FileIndex:
    module: RowFormat = importlib.import_module(format)
    blocks, rows, tally = tuple(module.blocks(place, options)), [], _Tally(place)
    for block in blocks:
        before = len(tally.digests)
        for content in module.rows(place, block, options):
            if not is_empty(content):
                tally.add(content)
        rows.append(len(tally.digests) - before)
    names = getattr(module, "class_names", None)
    return tally.index(blocks, rows, names(place, options) if names else ())


class _Tally:
    """What is found in a file, document by document."""

    def __init__(self, place: Place) -> None:
        self.place, self.digests, self.lengths, self.whole = place, array("Q"), array("I"), hashlib.sha256()
        self.largest: LargestToken | None = None
        self.position = 0
        self.samples: _SampleTally | None = None

    def add(self, content: Any) -> None:
        """Raises InputError."""
        digest = digest_of(content)
        self.whole.update(digest)
        self.digests.append(short(digest))
        if isinstance(content, Sample):
            self.samples = self.samples or _SampleTally(content)
            self.samples.add(content)
            self.whole.update(json.dumps(content.label).encode())
            content = memoryview(content.content).cast("B")
        self.lengths.append(_length(self.place, content, len(self.digests)))
        if isinstance(content, np.ndarray):
            self.largest = _larger(self.largest, self.place, content, self.position)
            self.position += len(content)

    def index(self, blocks: tuple[Block, ...], rows: list[int], names: tuple[str, ...]) -> FileIndex:
        arrays = np.frombuffer(self.digests, np.uint64), np.frombuffer(self.lengths, np.uint32)
        samples = self.samples.found(names) if self.samples else None
        return FileIndex(self.place, blocks, tuple(rows), *arrays, self.whole.hexdigest(), self.largest, samples)


class _SampleTally:
    """The labels of a file, and the size of its images."""

    def __init__(self, first: Sample) -> None:
        self.first, self.image = first.name, image_of(first)
        self.labels, self.classes = array("I"), dict[Label, int]()

    def add(self, sample: Sample) -> None:
        """Raises InputError."""
        if image_of(sample) != self.image:
            raise mixed_images(self.first, self.image, sample.name, image_of(sample))
        self.labels.append(0 if sample.label is None else self.classes.setdefault(sample.label, len(self.classes)))
        if len(self.classes) > MOST_CLASSES:
            problem = f"{sample.name}: found more than {MOST_CLASSES:,} different labels, such as {sample.label!r}"
            raise InputError(f"{problem}; expected the names, or the numbers, of classes", key="data.label")

    def found(self, names: tuple[str, ...]) -> FileSamples:
        return FileSamples(np.frombuffer(self.labels, np.uint32), tuple(self.classes), names, self.image, self.first)


def image_of(sample: Sample) -> tuple[int, int, int] | None:
    return None if isinstance(sample.content, bytes) else sample.content.shape


def mixed_images(
    first: str, one: tuple[int, int, int] | None, second: str, other: tuple[int, int, int] | None
) -> InputError:
    """Two samples that cannot stand in one batch."""
    if one is None or other is None:
        problem = f"found text in {first if one is None else second} and an image in {second if one is None else first}"
        return InputError(f"{problem}; expected one kind of samples", key="data.path")
    sizes = [f"{name} has {height} x {width} pixels" for name, (_, height, width) in ((first, one), (second, other))]
    if one[1:] != other[1:]:
        return InputError(f"{', but '.join(sizes)}; expected one size, or data.resize: 32", key="data.path")
    colours = [f"{name} has {size[0]} of colour" for name, size in ((first, one), (second, other))]
    return InputError(f"{', but '.join(colours)}; expected one number, or data.channels: 3", key="data.path")


def is_empty(content: Any) -> bool:
    return not isinstance(content, Sample) and not len(content)


def digest_of(content: Any) -> bytes:
    """SHA-256 of a document. Of tokens that of their ids as 32-bit numbers, so that it is the same in every format; of
    an image that of its size and its pixels. A label has no part in it: a text with two labels is one text."""
    if isinstance(content, Sample):
        content = content.content
        if not isinstance(content, bytes):
            return hashlib.sha256(f"image {content.shape}".encode() + content.tobytes()).digest()
    return hashlib.sha256(content if isinstance(content, bytes) else content.astype("<u4").tobytes()).digest()


def short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _length(place: Place, content: Any, number: int) -> int:
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
