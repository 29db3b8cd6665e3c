"""Samples: documents that are read as a whole, texts with a class or images, by their number in the run alone.

Sample n of a run is entry `n mod size` of the order of epoch `n div size`, which is drawn from (seed, epoch). So it
does not depend on the number of workers, on the batch, or on what was read before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.data.reading import Reading
from raystage.data.token_cache import open_index
from raystage.data.token_index import HELD_OUT, LENGTH, TRAIN, TokenIndex, cache_folder, stream_file
from raystage.data.tokenizers import LABEL
from raystage.data.tokens import epoch_order
from raystage.errors import InputError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class StoredSamples:
    """The samples of one side, as they lie on disk, in an order of their own.

    contents: images as uint8 of shape (samples, channels, height, width), or the tokens of all texts in a row. labels:
    int32 of shape (samples,), the number of the class of each; None without classes. ends: of texts, where each ends in
    `contents`: int64 of shape (samples,).
    """

    contents: np.ndarray
    labels: np.ndarray | None
    ends: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.contents if self.ends is None else self.ends)

    def samples(self, indices: Sequence[int], length: int) -> Arrays:
        """Some samples. length: of a text in tokens, with padding; of an image it does not matter.

        "image" is uint8 of shape (samples, channels, height, width). "tokens" is int64 and "mask" uint8 of shape
        (samples, length): 1 for a token, 0 for padding, which lies behind. "label" is int64 of shape (samples,);
        without classes it is left out.

        A text that is longer loses its end; its last token stays the one that ends a document.
        """
        places = np.asarray(indices, np.int64)
        found = {"image": self.contents[places]} if self.ends is None else self._texts(places, length)
        return found if self.labels is None else found | {"label": self.labels[places].astype(np.int64)}

    def _texts(self, places: np.ndarray, length: int) -> Arrays:
        tokens = np.zeros((len(places), length), np.int64)
        ends = self.ends[places]
        starts = np.where(places > 0, self.ends[places - 1], 0)
        counts = np.minimum(ends - starts, length)
        for row, start, end, count in zip(tokens, starts.tolist(), ends.tolist(), counts.tolist(), strict=True):
            row[:count] = self.contents[start : start + count]
            row[count - 1] = self.contents[end - 1]
        return {"tokens": tokens, "mask": (np.arange(length) < counts[:, None]).astype(np.uint8)}

    def spread(self, count: int, length: int) -> Arrays:
        """Up to `count` samples spread evenly over all of them, always the same, for evaluation."""
        count = min(count, len(self))
        return self.samples([number * len(self) // count for number in range(count)], length)

    def longer_than(self, length: int) -> int:
        """How many texts have more tokens."""
        return 0 if self.ends is None else int((np.diff(self.ends, prepend=0) > length).sum())


@dataclass(frozen=True)
class SampleStreams:
    """The samples of both sides, and the index of their files."""

    train: StoredSamples
    held_out: StoredSamples
    index: TokenIndex


def open_samples(data: DataPlan, vocab_size: int | None = None, cache: Path | None = None) -> SampleStreams:
    """The samples of `data`, memory-mapped from this machine's cache, which is filled on first use.

    vocab_size: of a model that reads text. Raises InputError where the samples on this machine are not those that were
    planned with, or where the tokenizer has ids beyond the model's vocabulary.
    """
    folder = cache_folder(data, cache)
    index = open_index(data, folder)
    if vocab_size is not None and not data.samples.image and index.tokenizer_size > vocab_size:
        raise InputError(vocabulary_problem(vocab_size, data.tokenizer, index.tokenizer_size), key="model.vocab_size")
    return SampleStreams(*(_stored(data, index, folder, name) for name in (TRAIN, HELD_OUT)), index)


def _stored(data: DataPlan, index: TokenIndex, folder: Path, name: str) -> StoredSamples:
    side = name.removesuffix(stream_file(""))
    contents = np.memmap(folder / name, dtype=index.dtype, mode="r")
    labels = None
    if data.samples.classes:
        labels = np.memmap(folder / stream_file(f"{side}_labels"), dtype=LABEL, mode="r")
    if data.samples.image:
        return StoredSamples(contents.reshape(-1, *data.samples.image), labels)
    lengths = np.memmap(folder / stream_file(f"{side}_lengths"), dtype=LENGTH, mode="r")
    return StoredSamples(contents, labels, np.cumsum(lengths, dtype=np.int64))


class Samples(ABC):
    """Samples of a run by number (`objectives.learner.Reader`). seed: of their order, and of a learner's noise.

    context_length: of texts in tokens, with padding.
    """

    seed: int
    context_length: int

    @abstractmethod
    def place(self, number: int) -> tuple[StoredSamples, int]:
        """Which of whose samples is sample `number` of the run."""

    def read(self, first: int, count: int, length: int = 1) -> Arrays:
        """Samples `first` to `first + count`, as `StoredSamples.samples` gives them. length: in samples, always 1."""
        places = [self.place(number) for number in range(first, first + count)]
        by_source: dict[int, list[int]] = {}
        for row, (stored, _) in enumerate(places):
            by_source.setdefault(id(stored), []).append(row)
        found: Arrays = {}
        for rows in by_source.values():
            stored, _ = places[rows[0]]
            part = stored.samples([places[row][1] for row in rows], self.context_length)
            if len(rows) == count:
                return part
            for name, values in part.items():
                found.setdefault(name, np.empty((count, *values.shape[1:]), values.dtype))[rows] = values
        return found


class SampleReader(Samples):
    """The samples of one source. Every epoch reads all of them in an order of its own, drawn from (seed, epoch)."""

    def __init__(self, stored: StoredSamples, seed: int, context_length: int = 0) -> None:
        self.stored, self.seed, self.context_length = stored, seed, context_length
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def place(self, number: int) -> tuple[StoredSamples, int]:
        epoch, index = divmod(number, len(self.stored))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.stored))
        return self.stored, int(self._order[index])


class MixedSamples(Samples):
    """The samples of a run that reads several sources. reading: in windows of one sample. sources: by content."""

    def __init__(self, reading: Reading, sources: Mapping[str, SampleReader], seed: int) -> None:
        self.reading, self.sources, self.seed = reading, sources, seed
        self.context_length = next(iter(sources.values())).context_length

    def place(self, number: int) -> tuple[StoredSamples, int]:
        content, index = self.reading.at(number)
        return self.sources[content].place(index)
