"""How documents are cut up to be scored by the loss of a model. All of it follows from their lengths, and nothing from
the workers, so that the work is the same however many share it.

The documents of a text are divided into parts, in their order, which are scored and kept one by one. A document is cut
into windows of the model's context, each of which begins without what stands before it. Its loss is the mean over all
of its tokens but the first. Windows of about one length share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raystage.data.order.documents import DocumentSpans

# Parts are about as long, so that a worker that stops loses little; of long texts there are `MOST_PARTS`, longer ones.
PART_TOKENS = 2**16
LEAST_PARTS, MOST_PARTS = 8, 1024
# A batch has at most so many tokens, with padding, unless a single window is longer, and so many scores of tokens.
BATCH_TOKENS = 2**13
BATCH_SCORES = 2**27


@dataclass(frozen=True)
class ScoredWindows:
    """Windows of documents, the shortest first. document: the place of each in its part; start: its first token in the
    text; targets: how many tokens it predicts, each from those before it in the window. All int64 of shape (windows,).
    """

    document: np.ndarray
    start: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def batches(self, vocab_size: int) -> Iterator[slice]:
        """The windows of each batch. vocab_size: of the model that scores."""
        most, first = max(1, min(BATCH_TOKENS, BATCH_SCORES // vocab_size)), 0
        lengths = self.targets.tolist()
        for place in range(1, len(lengths) + 1):
            if place == len(lengths) or (place + 1 - first) * lengths[place] > most:
                yield slice(first, place)
                first = place


def parts_of(documents: DocumentSpans) -> list[tuple[int, int]]:
    """The first and the last document of each part, the last one not included. No part is empty."""
    total, count = int(documents.begins[-1]), len(documents.lengths)
    number = min(count, MOST_PARTS, max(LEAST_PARTS, total // PART_TOKENS))
    borders = [int(np.searchsorted(documents.begins, total * place // number)) for place in range(number)]
    borders = sorted({*borders, 0, count})
    return list(pairwise(borders))


def windows_of(documents: DocumentSpans, first: int, last: int, context: int) -> ScoredWindows:
    """The windows of documents `first` to `last`. context: of the model, in tokens."""
    targets, begins = documents.lengths[first:last] - 1, documents.begins[first:last]
    counts = -(-targets // context)
    document = np.repeat(np.arange(last - first), counts)
    index = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(context, targets[document] - index * context)
    order = np.argsort(lengths, kind="stable")
    return ScoredWindows(document[order], (begins[document] + index * context)[order], lengths[order])
