"""`causal_lm`, the objective of language models: the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raystage.objectives.documents import STARTS, num_starts, told_apart, with_rows
from raystage.objectives.judging import OfTokens
from raystage.objectives.learner import Arrays, Batch, Reader


@dataclass(frozen=True)
class CausalLm(OfTokens):
    """Every token but the first of a sequence is a target; of a document, where these are told apart."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        return with_rows(reader.read(first, count, length), length)

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count * length - num_starts(reader, first, count, length)

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return {"input_ids": batch["tokens"][:, :-1], "use_cache": False, **told_apart(batch)}

    def at_targets(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        return values[batch[STARTS][:, 1:] == 0] if STARTS in batch else values.flatten(0, 1)

    def targets(self, batch: Batch) -> torch.Tensor:
        return self.at_targets(batch["tokens"][:, 1:], batch)


def open_learner() -> CausalLm:
    return CausalLm()
