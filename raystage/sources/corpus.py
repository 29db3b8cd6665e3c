"""A corpus: the documents of a source, identified by their content, with a part of them held out. No tensors here.

The hash of a document's content decides whether it is held out. So the split is the same on every machine and worker,
and two copies of a document are never on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

BUCKETS = 2**32  # a document's place in the split is that of the first 32 bits of its digest
SHORT_DIGEST = 16  # hex digits, 64 bits: enough to find a document again
SCORE_KEY = "data.curriculum.by.column"
PIECE_BYTES = 2**25  # of documents that are read, and tokenized, in one go


@dataclass(frozen=True)
class SourceOptions:
    """How the files of a source are read, and what is held out. Each source has options of its own; others are None.

    files: a pattern of names. validation_path: separate text to hold out, in place of a share. document_separator,
    document_bytes: where files are split into documents. may_be_any: whether bytes that are no UTF-8 are read. field:
    the part of a row that is the document. are_chats: documents are conversations, and not text. subset, split: of a
    dataset; validation_split: that of `validation_path`. format: of files of tokens. end_id: the token that ends a
    document there.

    label: the part of a row that is the class of a sample. image: the part of a row that is an image, in place of text.
    classes: their names in order, where they do not follow from the labels. only_classes: those whose samples are read;
    () for all. resize: the height and width of all
    images. channels: of all images, 1 or 3. score: the part of a row with a number that a text is read together with.
    """

    files: str | None = None
    validation_path: tuple[str, ...] = ()
    document_separator: str | None = None
    document_bytes: int | None = None
    may_be_any: bool = False
    field: str | None = None
    are_chats: bool = False
    subset: str | None = None
    split: str | None = None
    validation_split: str | None = None
    format: str | None = None
    end_id: int | None = None
    label: str | None = None
    image: str | None = None
    classes: tuple[str, ...] = ()
    only_classes: tuple[str, ...] = ()
    resize: int | None = None
    channels: int | None = None
    score: str | None = None

    def with_score(self, column: str) -> SourceOptions:
        """For a reading in which every text comes as `Scored`."""
        return replace(self, score=column)

    @property
    def are_samples(self) -> bool:
        """Whether a row is a sample, which is read as a whole, and not a part of a long text."""
        return self.label is not None or self.image is not None


DEFAULTS = SourceOptions()


@dataclass(frozen=True)
class TextSize:
    """The size of one side of the split. num_tokens: where the source gives tokens."""

    documents: int
    num_bytes: int
    num_tokens: int | None = None


NO_TEXT = TextSize(0, 0)


class LargestToken(NamedTuple):
    """The largest token id of a corpus: in which file, and how many tokens stand before it there."""

    token: int
    file: str
    position: int


# As a source writes a class.
Label = str | int


class Scored(NamedTuple):
    """A text, and a number that stands beside it."""

    content: bytes
    score: float


class Sample(NamedTuple):
    """A document that is a sample. content: bytes of text, or an image: uint8 of shape (channels, height, width).

    label: its class, as its source has it; of a corpus the number of the class. None where there are no classes.
    name: where it lies, for messages.
    """

    content: Any
    label: Label | None = None
    name: str = ""


@dataclass(frozen=True)
class SampleFacts:
    """What a plan knows of samples. classes: their names in the order of their numbers; () without classes.

    image: (channels, height, width) of all of them; None where they are text. train, held_out: the number of samples of
    each class on both sides; without classes one number, that of all. only: the classes whose samples are read; () for
    all of them.
    """

    classes: tuple[str, ...]
    image: tuple[int, int, int] | None
    train: tuple[int, ...]
    held_out: tuple[int, ...]
    only: tuple[str, ...] = ()

    def counts(self) -> list[tuple[str, int, int]]:
        """(its name, samples to train on, held-out ones) of each class whose samples are read."""
        found = zip(self.classes, self.train, self.held_out, strict=False)
        return [one for one in found if not self.only or one[0] in self.only]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def majority(self) -> float:
        """The share of the most frequent held-out class: the accuracy of always answering it."""
        return max(self.held_out, default=0) / max(1, sum(self.held_out))


class Read(NamedTuple):
    """A document that was read. content: bytes of text, an array of token ids, or a `Sample`. file, start: its
    place."""

    content: Any
    is_held_out: bool
    file: Path | str
    start: int


class Piece(Protocol):
    """Some documents in a row, which one process reads. It can be pickled."""

    def read(self) -> Iterator[Read]:
        """The documents. Raises InputError where they have changed since they were hashed."""

    def identity(self) -> str:
        """The same for the same documents on the same sides, wherever they lie."""

    def __len__(self) -> int:
        """The number of documents."""


class Side(Protocol):
    """The documents on one side of the split, without their content."""

    @property
    def size(self) -> TextSize: ...

    def short_digests(self) -> Any:
        """The first 64 bits of the digest of each document: uint64 of shape (documents,)."""

    def smallest(self, count: int) -> tuple[int, list[str]]:
        """The number of different documents, and of up to `count` of them with the smallest digests the first hex
        digits, sorted."""

    def count_among(self, digests: Collection[str]) -> int:
        """How many different documents begin with one of these digits."""

    def count_shared(self, other: Side) -> int:
        """How many different documents are also in another side, which may be that of another corpus."""

    def __len__(self) -> int: ...


class Corpus(Protocol):
    """All documents of a source, in an order that depends on their content only."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in its order, and of what decides the split: equal in any place."""

    @property
    def has_own_held_out(self) -> bool:
        """Whether separate text is held out, and not a share."""

    @property
    def largest(self) -> LargestToken | None:
        """The largest token id; None where the documents are text."""

    def __len__(self) -> int:
        """The number of documents, without separate text to hold out."""

    def split(self, fraction: float) -> tuple[Side, Side]:
        """(training, held-out) documents. No copy of a held-out document is trained on, wherever it lies.

        The fraction does not matter where separate text is held out.
        """

    def samples(self, fraction: float) -> SampleFacts | None:
        """What is known of the samples; None where documents are parts of one long text. Raises InputError."""

    def pieces(self, fraction: float, piece_bytes: int = PIECE_BYTES) -> Sequence[Piece]:
        """Both sides in order, in pieces of about `piece_bytes`."""

    def working_fraction(self) -> float | None:
        """The smallest fraction, in hundredths, that leaves documents on both sides; None where there is none."""

    def holds_any(self, marks: Collection[bytes]) -> bool:
        """Whether one of these byte strings occurs in the text."""

    def check_utf8(self) -> None:
        """Raises InputError for the first byte that is not UTF-8."""


def fraction_between(smallest: float, largest: float) -> float | None:
    """The smallest fraction, in hundredths, above the first place of a document and not above the last one's."""
    fraction = (math.floor(smallest * 100) + 1) / 100
    return fraction if fraction <= largest else None


def cut(sizes: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours, each as long as its sizes add up to less than `most`, or one entry."""
    start, total, stop = 0, 0, 0
    for stop, size in enumerate(sizes):
        if total and total + size > most:
            yield start, stop
            start, total = stop, 0
        total += size
    if total:
        yield start, stop + 1
