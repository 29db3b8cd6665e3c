"""The loss of a document does not depend on what it shares a batch with, in any family that learns the next token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from growths import SOURCES
from raystage.data.order.documents import DocumentSpans
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape
from raystage.train.scoring.documents import document_losses
from tiny_models import random_network

CPU = torch.device("cpu")
CAUSAL = [
    name for name, shape in SOURCES.items() if not shape.head and FAMILIES[shape.family].objective == "next token"
]


def some_text(shape: ModelShape) -> tuple[np.ndarray, DocumentSpans]:
    """Documents of one token up to several windows, and their tokens."""
    rng, context = np.random.default_rng(0), shape.context_length
    lengths = np.array([1, 2, 3 * context, context, context + 1, context + 2, *rng.integers(1, 2 * context, 20)])
    return rng.integers(0, shape.vocab_size, lengths.sum()).astype(np.uint16), DocumentSpans(lengths)


def alone(network: torch.nn.Module, document: np.ndarray, context: int) -> float:
    tokens, total = torch.from_numpy(document.astype(np.int64)), 0.0
    for start in range(0, len(tokens) - 1, context):
        window = tokens[start : start + context + 1]
        with torch.no_grad():
            logits = network(input_ids=window[None, :-1], use_cache=False).logits[0].float()
        total += functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / max(1, len(tokens) - 1)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_document_is_scored_as_if_alone(name: str) -> None:
    shape = SOURCES[name]
    tokens, documents = some_text(shape)
    network, told = random_network(shape), []
    whole = (0, len(documents.lengths))
    found = document_losses(network, shape, tokens, documents, whole, CPU, lambda: told.append(1))
    expected = [alone(network, document, shape.context_length) for document in np.split(tokens, documents.begins[1:-1])]
    assert found == pytest.approx(expected, rel=2e-5)
    assert found[0] == 0
    assert told  # after every batch, so that nobody takes a worker that scores for one that hangs


def test_a_part_is_scored_as_in_the_whole() -> None:
    shape = SOURCES["llama"]
    tokens, documents = some_text(shape)
    network, count = random_network(shape), len(documents.lengths)
    whole = document_losses(network, shape, tokens, documents, (0, count), CPU)
    parts = [document_losses(network, shape, tokens, documents, part, CPU) for part in ((0, 5), (5, count))]
    assert np.concatenate(parts) == pytest.approx(whole, rel=1e-6)
