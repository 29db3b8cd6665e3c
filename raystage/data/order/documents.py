"""Where the documents of a stream of tokens begin and end, and the same stream in another order of its documents."""

from __future__ import annotations

from functools import cached_property

import numpy as np


class DocumentSpans:
    """The documents of a stream, one after the other. lengths: in tokens, of shape (documents,), each at least 1."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    @cached_property
    def begins(self) -> np.ndarray:
        """The token at which each document begins, and behind the last one the number of tokens: int64 of shape
        (documents + 1,)."""
        begins = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=begins[1:])
        return begins

    def at(self, token: int) -> int:
        """The document that a token is in."""
        return int(np.searchsorted(self.begins, token, side="right")) - 1

    def starts(self, start: int, stop: int) -> np.ndarray:
        """uint8 of shape (stop - start,): 1 for each of these tokens at which a document begins."""
        found = np.zeros(stop - start, dtype=np.uint8)
        first, last = np.searchsorted(self.begins[:-1], (start, stop))
        found[self.begins[first:last] - start] = 1
        return found


class Starts:
    """A stream as long as that of the tokens: 1 where a document begins. It is made where it is read."""

    def __init__(self, documents: DocumentSpans) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return int(self._documents.begins[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        return self._documents.starts(start, stop)
