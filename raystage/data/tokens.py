"""Tokens: documents as two streams, and batches that are read from them by position alone.

The tokens of a batch follow from the seed and the position in the run, not from the number of workers or from what was
read before. So resumed, grown and baseline runs read the same tokens at the same position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystage.data.order.documents import DocumentSpans, SortedStream, Starts
from raystage.data.order.pool import PacedOrder
from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.data.reading import Reading
from raystage.data.token_cache import open_index
from raystage.data.token_index import LENGTH, TokenIndex, cache_folder, stream_file
from raystage.errors import InputError


@dataclass(frozen=True)
class Streams:
    """The tokens of all training documents in a row, those of all held-out documents, and their index.

    train_documents, held_out_documents: where they begin. train_marks, held_out_marks: uint8 of the same shapes, 1 for
    every token of an answer; None for other text than conversations.
    """

    train: np.ndarray
    held_out: np.ndarray
    index: TokenIndex
    train_documents: DocumentSpans
    held_out_documents: DocumentSpans
    train_marks: np.ndarray | None = None
    held_out_marks: np.ndarray | None = None


def open_streams(data: DataPlan, vocab_size: int, cache: Path | None = None) -> Streams:
    """The token streams of `data`, memory-mapped from this machine's cache, which is filled on first use.

    Raises InputError where the text on this machine is not the one that was planned with, or where the tokenizer has
    ids beyond the model's vocabulary.
    """
    folder = cache_folder(data, cache)
    index = open_index(data, folder)
    if index.tokenizer_size > vocab_size:
        raise InputError(vocabulary_problem(vocab_size, data.tokenizer, index.tokenizer_size), key="model.vocab_size")

    def mapped(kind: str, dtype: object) -> list[np.ndarray]:
        return [np.memmap(folder / stream_file(f"{side}{kind}"), dtype, "r") for side in ("train", "held_out")]

    documents = map(DocumentSpans, mapped("_lengths", LENGTH))
    marks = mapped("_marks", np.uint8) if "train_marks" in index.further else ()
    return Streams(*mapped("", index.dtype), index, *documents, *marks)


# Something for each token of a text, read in slices: an array, or what is made where it is read.
Stream = np.ndarray | SortedStream | Starts


class Windows(ABC):
    """Sequences of a run, read by position. context_length: the length of a window."""

    context_length: int

    @abstractmethod
    def piece(self, position: int, length: int) -> np.ndarray:
        """The sequence at a token position of the run; it lies within one window."""

    def read(self, first: int, count: int, length: int) -> dict[str, np.ndarray]:
        """Samples of an objective (`objectives.learner.Reader`): "tokens" are the sequences."""
        return {"tokens": self.sequences(first, count, length)}

    def field(self, name: str, first: int, count: int, length: int) -> np.ndarray | None:
        """One of the arrays of `read`; None where there is none of that name."""
        return self.sequences(first, count, length) if name == "tokens" else None

    def sequences(self, first: int, count: int, length: int | None = None) -> np.ndarray:
        """Sequences `first` to `first + count` of the run: int64 of shape (count, length + 1).

        length: a divisor of context_length, or all of it. Sequence n begins at token n * length of the run.
        """
        length = length or self.context_length
        return np.stack([self.piece(number * length, length) for number in range(first, first + count)])


class TokenWindows(Windows):
    """Sequences of `length + 1` tokens: the inputs, and the targets one position further on.

    The stream is cut into windows of `context_length`, the longest of the run. Every epoch reads all windows in an
    order of its own, drawn from (seed, epoch). The tokens of a run are those of window `order[n mod windows]` of epoch
    `n div windows`, n = 0, 1, ..., in a row. Where sequences are shorter than windows, a window is read in parts, one
    after the other, so that a token position holds the same text with any sequence length.
    """

    def __init__(self, stream: Stream, context_length: int, seed: int, order: PacedOrder | None = None) -> None:
        """order: of the windows of a text whose documents are sorted."""
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.windows = num_windows(stream, context_length)
        if self.windows < 1:
            raise InputError(
                f"found {len(stream)} tokens, fewer than one sequence of context_length {context_length}", key="data"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._paced = order

    def spread(self, count: int) -> np.ndarray:
        """`count` windows spread evenly over the stream, for evaluation: int64 of shape (count, context_length + 1)."""
        count = min(count, self.windows)
        starts = [number * self.windows // count * self.context_length for number in range(count)]
        return np.stack([self._read(start, self.context_length) for start in starts])

    def piece(self, position: int, length: int) -> np.ndarray:
        number, inside = divmod(position, self.context_length)
        return self._read(self._place(number) * self.context_length + inside, length)

    def _place(self, number: int) -> int:
        if self._paced is not None:
            return self._paced.at(number)
        epoch, index = divmod(number, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.windows)
        return int(self._order[index])

    def _read(self, start: int, length: int) -> np.ndarray:
        return self.stream[start : start + length + 1].astype(np.int64)


class MixedWindows(Windows):
    """Sequences of a run that reads several sources, as `TokenWindows` gives those of one.

    reading: says for every window of the run which window of which source it is. sources: by content those that it
    names; each has its own order of epochs.
    """

    def __init__(self, reading: Reading, sources: Mapping[str, TokenWindows], seed: int) -> None:
        self.reading, self.sources, self.seed, self.context_length = reading, sources, seed, reading.window

    def piece(self, position: int, length: int) -> np.ndarray:
        number, inside = divmod(position, self.context_length)
        content, index = self.reading.at(number)
        return self.sources[content].piece(index * self.context_length + inside, length)


@dataclass(frozen=True)
class SampleWindows:
    """Samples with more than their tokens. flags: by name windows of further streams, which say something of each
    token; all of one seed, so that they read the same places."""

    tokens: Windows
    flags: Mapping[str, Windows]

    @property
    def seed(self) -> int:
        return self.tokens.seed

    def read(self, first: int, count: int, length: int) -> dict[str, np.ndarray]:
        """Samples of an objective: "tokens" are the sequences. Others are uint8 of the same shape: "mask" is 1 for
        every token of an answer, "starts" for every token that begins a document."""
        found = {name: self.field(name, first, count, length) for name in self.flags}
        return {"tokens": self.tokens.sequences(first, count, length), **found}

    def field(self, name: str, first: int, count: int, length: int) -> np.ndarray | None:
        if name in self.flags:
            return self.flags[name].sequences(first, count, length).astype(np.uint8)
        return self.tokens.field(name, first, count, length)


def held_out_samples(
    streams: Streams, context_length: int, count: int, within_documents: bool = False
) -> dict[str, np.ndarray]:
    """`count` samples of the held-out text, spread evenly over it; as `SampleWindows` reads them.

    within_documents: whether they say where documents begin.
    """
    found = {"tokens": TokenWindows(streams.held_out, context_length, seed=0).spread(count)}
    flags = {"mask": streams.held_out_marks, "starts": Starts(streams.held_out_documents) if within_documents else None}
    for name, stream in flags.items():
        if stream is not None:
            found[name] = TokenWindows(stream, context_length, seed=0).spread(count).astype(np.uint8)
    return found


def num_windows(stream: Stream, length: int) -> int:
    """How many windows of `length` tokens a stream has, each with a target behind its last token."""
    return (len(stream) - 1) // length


def epoch_order(seed: int, epoch: int, windows: int) -> np.ndarray:
    """A permutation of `windows`.

    NumPy guarantees the raw stream of a bit generator for ever (NEP 19), but not the shuffle of a Generator. So the
    order is that of sorted raw draws.
    """
    draws = np.random.Philox(key=[seed % 2**64, epoch]).random_raw(windows)
    return np.argsort(draws, kind="stable")
