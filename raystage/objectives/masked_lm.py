"""`masked_lm`, the objective of BERT (Devlin et al., 1810.04805): tokens that were hidden.

Of every sequence the same number of tokens are targets, chosen at random: 15 % unless given. The model sees the mask
token in the place of 80 % of them, a random token in the place of 10 %, and the rest as they are.

The choice follows from the seed and the sequence's position in the run, so it is the same for any number of workers,
and held-out text is hidden in the same places at every evaluation of every run.
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

_MASKED, _RANDOM = 0.8, 0.1  # of the targets
# Keeps these draws apart from those of other uses of a seed.
_STREAM = 0x6D61736B


@dataclass(frozen=True)
class MaskedLm(OfTokens):
    """mask_share: of the tokens of a sequence, those that are targets. mask_id: of the mask token. num_ids: a random
    token is one of the ids below it."""

    mask_share: float
    mask_id: int
    num_ids: int

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        """ "tokens": what the model sees, "places": where the targets are, of shape (count, targets), "answers": they.
        All int64."""
        found = reader.read(first, count, length)
        tokens = found["tokens"][:, :length].copy()
        number = self._targets(length)
        places = np.empty((count, number), dtype=np.int64)
        answers = np.empty_like(places)
        for row in range(count):
            draws = _draws(reader.seed, (first + row) * length, 3 * length).reshape(3, length)
            chosen = np.sort(np.argsort(draws[0], kind="stable")[:number])
            places[row], answers[row] = chosen, tokens[row, chosen]
            tokens[row, chosen] = self._seen(answers[row], draws[1, chosen], draws[2, chosen])
        starts = {STARTS: found[STARTS]} if STARTS in found else {}
        return with_rows({"tokens": tokens, "places": places, "answers": answers, **starts}, length)

    def _seen(self, tokens: np.ndarray, kinds: np.ndarray, others: np.ndarray) -> np.ndarray:
        """What stands in the place of the targets. kinds, others: uint64 draws, one for each target."""
        share = kinds / 2.0**64
        random = (others % np.uint64(self.num_ids)).astype(np.int64)
        return np.where(share < _MASKED, self.mask_id, np.where(share < _MASKED + _RANDOM, random, tokens))

    def _targets(self, length: int) -> int:
        """Of one sequence; at least one."""
        return max(1, round(self.mask_share * length))

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count * self._targets(length)

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return {"input_ids": batch["tokens"], **told_apart(batch)}

    def at_targets(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        places = batch["places"].unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return values.gather(1, places).flatten(0, 1)

    def targets(self, batch: Batch) -> torch.Tensor:
        return batch["answers"].flatten()


def _draws(seed: int, position: int, count: int) -> np.ndarray:
    """uint64. Raw draws of a bit generator never change between versions of NumPy (NEP 19)."""
    return np.random.Philox(key=[(seed + (_STREAM << 32)) % 2**64, position]).random_raw(count)


def open_learner(mask_share: float, mask_id: int, num_ids: int) -> MaskedLm:
    return MaskedLm(mask_share, mask_id, num_ids)
