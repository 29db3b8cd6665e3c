"""What is learned: the next token."""

from __future__ import annotations

import torch
from torch.nn import functional


def next_token_loss(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """The sum over all targets of -log p(target), in nats and fp32.

    sequences: int64 of shape (batch, context_length + 1); each token but the first is a target.
    """
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    targets = sequences[:, 1:]
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


@torch.no_grad()
def logits_of(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """fp32 logits of shape (batch, length, vocabulary)."""
    return model(input_ids=sequences, use_cache=False).logits.float()
