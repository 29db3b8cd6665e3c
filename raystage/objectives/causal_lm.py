"""`causal_lm`, the objective of language models: the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raystage.objectives.documents import STARTS, num_starts, told_apart, with_rows
from raystage.objectives.judging import ByScores, summed_loss
from raystage.objectives.learner import Answer, Arrays, Batch, Model, Reader


@dataclass(frozen=True)
class CausalLm(ByScores):
    """Every token but the first of a sequence is a target; of a document, where these are told apart."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        return with_rows(reader.read(first, count, length), length)

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count * length - num_starts(reader, first, count, length)

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return {"input_ids": batch["tokens"][:, :-1], "use_cache": False, **told_apart(batch)}

    def answer(self, model: Model, batch: Batch) -> Answer:
        logits = model(**self.inputs(batch)).logits
        targets = batch["tokens"][:, 1:]
        if STARTS not in batch:
            return Answer(logits.float().flatten(0, 1), targets.flatten())
        is_target = batch[STARTS][:, 1:] == 0
        return Answer(logits[is_target].float(), targets[is_target])

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return summed_loss(self.answer(model, batch))


def open_learner() -> CausalLm:
    return CausalLm()
