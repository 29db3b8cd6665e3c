"""`instruct`, supervised fine-tuning on conversations: the next token, where it is part of an answer.

Conversations lie end to end in the stream of tokens, as documents do. How many targets a batch has follows from the
marks of its tokens; every target has the same weight in the gradient, whichever conversation it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystage.objectives.documents import STARTS, told_apart, with_rows
from raystage.objectives.judging import ByScores, summed_loss
from raystage.objectives.learner import Answer, Arrays, Batch, Model, Reader


@dataclass(frozen=True)
class Instruct(ByScores):
    """Every token of an answer is a target. In text without marks every token is; where documents are told apart, none
    that begins one."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        """ "tokens" is int64, and "mask" uint8, of shape (count, length + 1)."""
        found = with_rows(reader.read(first, count, length), length)
        return {**found, "mask": _targets(found.get("mask"), found.get(STARTS), found["tokens"].shape)}

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        """It may be 0."""
        if not count:
            return 0
        marks, starts = (reader.field(name, first, count, length) for name in ("mask", STARTS))
        return int(np.count_nonzero(_targets(marks, starts, (count, length + 1))[:, 1:]))

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return {"input_ids": batch["tokens"][:, :-1], "use_cache": False, **told_apart(batch)}

    def answer(self, model: Model, batch: Batch) -> Answer:
        is_target = batch["mask"][:, 1:].bool()
        logits = model(**self.inputs(batch)).logits
        return Answer(logits[is_target].float(), batch["tokens"][:, 1:][is_target])

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return summed_loss(self.answer(model, batch))


def _targets(marks: np.ndarray | None, starts: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 of this shape, 1 for every token that may be a target."""
    marks = np.ones(shape, dtype=np.uint8) if marks is None else marks
    return marks if starts is None else np.where(starts, np.uint8(0), marks)


def open_learner() -> Instruct:
    return Instruct()
