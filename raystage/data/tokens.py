"""Tokens: documents turned into two streams, and batches drawn from them by position alone.

Which tokens a batch holds depends on the seed and on the position in the run, never on how many
workers there are or what was read before. So a resumed run, a grown run and a baseline read the same
tokens at the same position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.data.token_cache import open_index
from raystage.data.token_index import HELD_OUT, TRAIN, TokenIndex, cache_folder
from raystage.errors import InputError


@dataclass(frozen=True)
class Streams:
    """The tokens of all training documents laid end to end, and of all held-out ones; what is known of them."""

    train: np.ndarray
    held_out: np.ndarray
    index: TokenIndex


def open_streams(data: DataPlan, vocab_size: int, cache: Path | None = None) -> Streams:
    """The token streams of `data`, memory-mapped from this machine's cache, made there on first use.

    Raises InputError where the text on this machine is not the text that was planned with, or the
    tokenizer has ids that the model's vocabulary has not.
    """
    folder = cache_folder(data, cache)
    index = open_index(data, folder)
    if index.tokenizer_size > vocab_size:
        raise InputError(vocabulary_problem(vocab_size, data.tokenizer, index.tokenizer_size), key="model.vocab_size")
    streams = (np.memmap(folder / name, dtype=index.dtype, mode="r") for name in (TRAIN, HELD_OUT))
    return Streams(*streams, index)


class TokenWindows:
    """Sequences of `length + 1` tokens (inputs and the targets one further on).

    The stream is cut into windows of `context_length`, a run's longest; every epoch goes through all of
    them in an order of its own, drawn from (seed, epoch). The tokens of a run are those of window
    `order[n mod windows]` of epoch `n div windows`, n = 0, 1, ..., laid end to end. Where sequences are shorter than
    windows, a window is read in pieces, one after the other: so a token position holds the same text at any length.
    """

    def __init__(self, stream: np.ndarray, context_length: int, seed: int) -> None:
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.windows = (len(stream) - 1) // context_length
        if self.windows < 1:
            raise InputError(
                f"found {len(stream)} tokens, fewer than one sequence of context_length {context_length}", key="data"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def sequences(self, first: int, count: int, length: int | None = None) -> np.ndarray:
        """Sequences `first` to `first + count` of the run: int64 of shape (count, length + 1).

        length: a divisor of context_length, or all of it. Sequence n begins at token n * length of the run.
        """
        length = length or self.context_length
        return np.stack([self._piece(number * length, length) for number in range(first, first + count)])

    def spread(self, count: int) -> np.ndarray:
        """`count` windows spread evenly over the stream, each once: for evaluation."""
        count = min(count, self.windows)
        starts = [number * self.windows // count * self.context_length for number in range(count)]
        return np.stack([self._read(start, self.context_length) for start in starts])

    def _piece(self, position: int, length: int) -> np.ndarray:
        """The sequence at a token position of the run, within one window."""
        number, inside = divmod(position, self.context_length)
        return self._read(self._place(number) * self.context_length + inside, length)

    def _place(self, number: int) -> int:
        epoch, index = divmod(number, self.windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, self.windows)
        return int(self._order[index])

    def _read(self, start: int, length: int) -> np.ndarray:
        return self.stream[start : start + length + 1].astype(np.int64)


def epoch_order(seed: int, epoch: int, windows: int) -> np.ndarray:
    """A permutation of `windows`. NumPy keeps a bit generator's raw stream stable for ever (NEP 19),
    a Generator's shuffle not: so the order is that of sorted raw draws."""
    draws = np.random.Philox(key=[seed % 2**64, epoch]).random_raw(windows)
    return np.argsort(draws, kind="stable")
