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
from raystage.data.token_index import HELD_OUT, TRAIN, TokenIndex, cache_folder, stream_file
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

    def sample(self, index: int, length: int) -> Arrays:
        """One sample. length: of a text in tokens, with padding; of an image it does not matter.

        "image" is uint8 of shape (channels, height, width). "tokens" is int64 and "mask" uint8 of shape (length,): 1
        for a token, 0 for padding, which lies behind. "label" is int64 of shape (); without classes it is left out.

        A text that is longer loses its end; its last token stays the one that ends a document.
        """
        label = {} if self.labels is None else {"label": np.int64(self.labels[index])}
        if self.ends is None:
            return {"image": np.asarray(self.contents[index]), **label}
        found, tokens, mask = self._text(index), np.zeros(length, np.int64), np.zeros(length, np.uint8)
        count = min(len(found), length)
        tokens[:count] = found[:count]
        tokens[count - 1] = found[-1]
        mask[:count] = 1
        return {"tokens": tokens, "mask": mask, **label}

    def _text(self, index: int) -> np.ndarray:
        return self.contents[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]

    def spread(self, count: int, length: int) -> Arrays:
        """Up to `count` samples spread evenly over all of them, always the same, for evaluation."""
        count = min(count, len(self))
        return stacked([self.sample(number * len(self) // count, length) for number in range(count)])

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
    lengths = np.memmap(folder / stream_file(f"{side}_lengths"), dtype=LABEL, mode="r")
    return StoredSamples(contents, labels, np.cumsum(lengths, dtype=np.int64))


class Samples(ABC):
    """Samples of a run by number (`objectives.learner.Reader`). seed: of their order, and of a learner's noise."""

    seed: int

    @abstractmethod
    def sample(self, number: int) -> Arrays:
        """Sample `number` of the run, as `StoredSamples.sample` gives it."""

    def read(self, first: int, count: int, length: int = 1) -> Arrays:
        """Samples `first` to `first + count`, each array with one more axis in front. length: in samples, always 1."""
        return stacked([self.sample(number) for number in range(first, first + count)])


class SampleReader(Samples):
    """The samples of one source. Every epoch reads all of them in an order of its own, drawn from (seed, epoch).

    context_length: of texts in tokens, with padding.
    """

    def __init__(self, stored: StoredSamples, seed: int, context_length: int = 0) -> None:
        self.stored, self.seed, self.context_length = stored, seed, context_length
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def sample(self, number: int) -> Arrays:
        return self.stored.sample(self.place(number), self.context_length)

    def place(self, number: int) -> int:
        """Which of the stored samples is sample `number` of the source."""
        epoch, index = divmod(number, len(self.stored))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.stored))
        return int(self._order[index])


class MixedSamples(Samples):
    """The samples of a run that reads several sources. reading: in windows of one sample. sources: by content."""

    def __init__(self, reading: Reading, sources: Mapping[str, SampleReader], seed: int) -> None:
        self.reading, self.sources, self.seed = reading, sources, seed

    def sample(self, number: int) -> Arrays:
        content, index = self.reading.at(number)
        return self.sources[content].sample(index)


def stacked(samples: Sequence[Arrays]) -> Arrays:
    """By name the arrays of several samples, with a first axis for them."""
    return {name: np.stack([one[name] for one in samples]) for name in samples[0]}
