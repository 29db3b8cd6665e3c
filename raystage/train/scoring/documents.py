"""The loss of documents under a frozen model: each alone, in fp32, in batches that do not depend on the workers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from raystage.data.order.documents import DocumentSpans
from raystage.data.order.losses import ScoredWindows, windows_of
from raystage.models.shape import ModelShape
from raystage.objectives.learner import Model


@torch.no_grad()
def document_losses(
    model: Model,
    shape: ModelShape,
    tokens: np.ndarray,
    documents: DocumentSpans,
    part: tuple[int, int],
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Nats per token of the documents of a part: float64 of shape (documents,).

    A document of one token predicts nothing and has the loss 0.
    """
    windows = windows_of(documents, *part, shape.context_length)
    sums = np.zeros(part[1] - part[0])
    for batch in windows.batches(shape.vocab_size):
        np.add.at(sums, windows.document[batch], _window_sums(model, tokens, windows, batch, device))
        after_batch()
    return sums / np.maximum(1, documents.lengths[part[0] : part[1]] - 1)


def _window_sums(
    model: Model, tokens: np.ndarray, windows: ScoredWindows, batch: slice, device: torch.device
) -> np.ndarray:
    """The summed loss of each window of a batch. Behind shorter windows stand zeros, which nothing before them sees."""
    starts, targets = windows.start[batch], windows.targets[batch]
    padded = np.zeros((len(starts), int(targets[-1]) + 1), dtype=np.int64)
    for row, start, count in zip(padded, starts.tolist(), targets.tolist(), strict=True):
        row[: count + 1] = tokens[start : start + count + 1]
    inputs = torch.from_numpy(padded).to(device)
    scores = model(input_ids=inputs[:, :-1], use_cache=False).logits.float()
    losses = functional.cross_entropy(scores.transpose(1, 2), inputs[:, 1:], reduction="none").double()
    is_target = torch.arange(losses.shape[1], device=device) < torch.from_numpy(targets).to(device)[:, None]
    return (losses * is_target).sum(1).cpu().numpy()
