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
from raystage.objectives.judging import OfTokens
from raystage.objectives.learner import Arrays, Batch, Reader


@dataclass(frozen=True)
class Instruct(OfTokens):
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

    def at_targets(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        return values[batch["mask"][:, 1:].bool()]

    def targets(self, batch: Batch) -> torch.Tensor:
        return self.at_targets(batch["tokens"][:, 1:], batch)


def _targets(marks: np.ndarray | None, starts: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 of this shape, 1 for every token that may be a target."""
    marks = np.ones(shape, dtype=np.uint8) if marks is None else marks
    return marks if starts is None else np.where(starts, np.uint8(0), marks)


def open_learner() -> Instruct:
    return Instruct()
