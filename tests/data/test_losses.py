"""How documents are cut up to be scored: every token but the first is a target once, whatever their lengths."""

from __future__ import annotations

import random
from itertools import chain, pairwise

import numpy as np
import pytest

from raystage.data.order import losses
from raystage.data.order.documents import DocumentSpans
from raystage.data.order.losses import LEAST_PARTS, MOST_PARTS, parts_of, windows_of


def some_documents(seed: int) -> DocumentSpans:
    """Short and long ones, and some of one token."""
    rng = random.Random(seed)
    longest = rng.choice([1, 3, 40, 500])
    return DocumentSpans(np.array([rng.randint(1, longest) for _ in range(rng.randint(1, 60))], dtype="<i8"))


def targets_of(documents: DocumentSpans, first: int, last: int, context: int) -> list[tuple[int, int]]:
    """(document, token that is predicted) of all windows."""
    windows = windows_of(documents, first, last, context)
    return [
        (document, token)
        for document, start, count in zip(windows.document, windows.start, windows.targets, strict=True)
        for token in range(start + 1, start + count + 1)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_every_token_but_the_first_of_a_document_is_predicted_once(seed: int) -> None:
    documents, context = some_documents(seed), random.Random(seed).choice([1, 2, 7, 64])
    found = [
        (first + document, token)
        for first, last in parts_of(documents)
        for document, token in targets_of(documents, first, last, context)
    ]
    expected = [
        (place, token)
        for place, (begin, end) in enumerate(pairwise(documents.begins.tolist()))
        for token in range(begin + 1, end)
    ]
    assert sorted(found) == expected


def test_a_long_document_is_read_in_windows_of_the_context_and_the_shortest_come_first() -> None:
    windows = windows_of(DocumentSpans(np.array([3, 12, 1, 6])), 1, 4, 5)
    assert windows.targets.tolist() == [1, 5, 5, 5]
    assert windows.start.tolist() == [13, 3, 8, 16]
    assert windows.document.tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize("seed", range(10))
def test_parts_have_all_documents_in_order_and_about_as_many_tokens(seed: int) -> None:
    documents = some_documents(seed)
    parts = parts_of(documents)
    assert list(chain.from_iterable(range(first, last) for first, last in parts)) == list(range(len(documents.lengths)))
    assert all(first < last for first, last in parts)
    assert len(parts) <= LEAST_PARTS
    mean, longest = documents.begins[-1] / min(LEAST_PARTS, len(documents.lengths)), documents.lengths.max()
    assert max(documents.lengths[first:last].sum() for first, last in parts) <= mean + 2 * longest


def test_a_long_text_has_many_parts_and_a_very_long_one_no_more() -> None:
    assert len(parts_of(DocumentSpans(np.full(20_000, 100)))) == 30
    assert len(parts_of(DocumentSpans(np.full(5_000, 2**20)))) == MOST_PARTS


def test_batches_hold_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their padding, for the longest window of a batch is its last."""
    monkeypatch.setattr(losses, "BATCH_TOKENS", 100)
    windows = windows_of(DocumentSpans(np.array([150, 3, 30, 40, 41, 2, 60, 90, 11])), 0, 9, 200)
    batches = list(windows.batches(50))
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 3), (3, 5), (5, 6), (6, 7), (7, 8), (8, 9)]
    assert all((one.stop - one.start) * windows.targets[one][-1] <= 100 for one in batches[:-1])
    assert len(list(windows.batches(2**28))) == len(windows)  # a vocabulary so large that one row is much
    assert list(windows_of(DocumentSpans(np.array([1, 1])), 0, 2, 8).batches(50)) == []
