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


def order_of(scores: np.ndarray, is_hard_first: bool) -> np.ndarray:
    """The places of documents in the order of their scores, equal ones as they stood: int64 of shape (documents,)."""
    return np.argsort(-scores if is_hard_first else scores, kind="stable")


class SortedDocuments:
    """The documents of a stream in another order. order: int64 of shape (documents,), each of them once."""

    def __init__(self, documents: DocumentSpans, order: np.ndarray) -> None:
        self._documents, self._order = documents, order
        self.spans = DocumentSpans(documents.lengths[order])

    def places(self, start: int, stop: int) -> np.ndarray:
        """Where tokens [start, stop) of the new order stand in the stream: int64 of shape (stop - start,)."""
        first, last = self.spans.at(start), self.spans.at(stop - 1) + 1
        shifts = self._documents.begins[self._order[first:last]] - self.spans.begins[first:last]
        borders = self.spans.begins[first : last + 1].clip(start, stop)
        return np.arange(start, stop) + np.repeat(shifts, np.diff(borders))


class SortedStream:
    """Something for each token of a stream, with its documents in another order. It is put together where it is
    read."""

    def __init__(self, stream: np.ndarray, documents: SortedDocuments) -> None:
        self._stream, self._documents = stream, documents

    def __len__(self) -> int:
        return int(self._documents.spans.begins[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        return self._stream[self._documents.places(start, stop)] if stop > start else self._stream[:0]


class Starts:
    """A stream as long as that of the tokens: 1 where a document begins. It is made where it is read."""

    def __init__(self, documents: DocumentSpans) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return int(self._documents.begins[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        return self._documents.starts(start, stop)
