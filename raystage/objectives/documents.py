"""Samples whose documents are told apart: attention and targets stay within each (`data: {window: {mask: document}}`).

Such samples have the field "starts": uint8 of the shape of their tokens, 1 where a document begins. Positions start
anew there, no token attends to one of another document, and the first token of a document is no target of what stands
before it. A document that goes on from the window before begins at the start of its window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raystage.models.document_attention import DocumentRows
from raystage.objectives.learner import Arrays, Batch, Reader

STARTS = "starts"
_POSITIONS, _PLACES = "documents/positions", "documents/places"
_ROWS, _LENGTHS = "documents/rows/", "documents/lengths/"


def num_starts(reader: Reader, first: int, count: int, length: int) -> int:
    """How many documents begin behind the first token of these samples: so many tokens are no target."""
    starts = reader.field(STARTS, first, count, length) if count else None
    return 0 if starts is None else int(np.count_nonzero(starts[:, 1:]))


def with_rows(arrays: Arrays, length: int) -> Arrays:
    """Samples with what `told_apart` needs of their first `length` tokens; unchanged where they tell none apart."""
    return {**arrays, **_rows(arrays[STARTS][:, :length] != 0)} if STARTS in arrays else arrays


def _rows(starts: np.ndarray) -> Arrays:
    """starts: bool of shape (samples, length)."""
    count, length = starts.shape
    begins = np.flatnonzero(starts | (np.arange(length) == 0))
    lengths = np.diff(begins, append=count * length)
    padded = 1 << np.ceil(np.log2(lengths)).astype(np.int64)
    found = {_POSITIONS: (np.arange(count * length) - np.repeat(begins, lengths)).reshape(count, length)}
    places, before = np.empty(count * length, dtype=np.int64), 0
    for size in np.unique(padded).tolist():
        here = padded == size
        inside = np.arange(size) < lengths[here, None]
        rows = begins[here, None] + np.minimum(np.arange(size), lengths[here, None] - 1)
        places[rows[inside]] = before + np.flatnonzero(inside)
        before += rows.size
        found |= {f"{_ROWS}{size}": rows, f"{_LENGTHS}{size}": lengths[here]}
    return found | {_PLACES: places}


def told_apart(batch: Batch) -> Mapping[str, Any]:
    """The keyword arguments with which a model tells the documents of a batch apart; none where it need not."""
    if _PLACES not in batch:
        return {}
    rows, lengths = ([batch[name] for name in batch if name.startswith(kind)] for kind in (_ROWS, _LENGTHS))
    documents = DocumentRows(rows, lengths, batch[_PLACES])
    return {"position_ids": batch[_POSITIONS], "attention_mask": documents.mask, "documents": documents}
