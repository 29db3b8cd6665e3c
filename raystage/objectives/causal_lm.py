"""`causal_lm`, the objective of language models: the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from raystage.objectives.learner import Answer, Arrays, Batch, Model, Reader


@dataclass(frozen=True)
class CausalLm:
    """Every token but the first of a sequence is a target."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        return reader.read(first, count, length)

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count * length

    def answer(self, model: Model, batch: Batch) -> Answer:
        sequences = batch["tokens"]
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
        return Answer(logits.float().flatten(0, 1), sequences[:, 1:].flatten())

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return summed_loss(self.answer(model, batch))


def summed_loss(answer: Answer) -> torch.Tensor:
    """The sum of -log p(target) over all targets, in nats: fp32 of shape ()."""
    return functional.cross_entropy(answer.outputs, answer.targets, reduction="sum")


def loss_and_hits(answer: Answer) -> torch.Tensor:
    """The summed loss, and the number of targets that had the highest probability of all tokens: two float64."""
    hits = (answer.outputs.argmax(-1) == answer.targets).sum()
    return torch.stack([summed_loss(answer).double(), hits.double()])


def halves(answer: Answer, loss: torch.Tensor, border: int) -> torch.Tensor:
    """The summed loss of the targets before `border`, and of those from it on: two float64, which add up to `loss`."""
    nothing = torch.zeros_like(loss)
    if border <= 0:
        return torch.stack([nothing, loss])
    if border >= len(answer.targets):
        return torch.stack([loss, nothing])
    parts = (slice(None, border), slice(border, None))
    return torch.stack([summed_loss(Answer(answer.outputs[part], answer.targets[part])) for part in parts]).double()


def open_learner() -> CausalLm:
    return CausalLm()
