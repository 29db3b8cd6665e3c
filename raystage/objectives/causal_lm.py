"""The objective of language models: the next token."""

from __future__ import annotations

import torch
from torch.nn import functional


def next_token_loss(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """The sum over all targets of -log p(target), in nats and fp32.

    sequences: int64 of shape (batch, context_length + 1); each token but the first is a target.
    """
    return _loss(*answers(model, sequences))


def next_token_scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss as above and the number of targets that had the highest probability of all tokens: two float64.

    logits, targets: as `answers` returns them.
    """
    correct = (logits.argmax(-1) == targets).sum()
    return torch.stack([_loss(logits, targets).double(), correct.double()])


def next_token_halves(logits: torch.Tensor, targets: torch.Tensor, loss: torch.Tensor, border: int) -> torch.Tensor:
    """The summed loss of the targets before `border`, and of those from it on: two float64, which add up to `loss`."""
    nothing = torch.zeros_like(loss)
    if border <= 0:
        return torch.stack([nothing, loss])
    if border >= len(targets):
        return torch.stack([loss, nothing])
    return torch.stack([_loss(logits[:border], targets[:border]), _loss(logits[border:], targets[border:])]).double()


def answers(model: torch.nn.Module, sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 logits of shape (targets, vocabulary) and the targets."""
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    return logits.float().flatten(0, 1), sequences[:, 1:].flatten()


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, targets, reduction="sum")


@torch.no_grad()
def logits_of(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """fp32 logits of shape (batch, length, vocabulary)."""
    return model(input_ids=sequences, use_cache=False).logits.float()
