"""`own`: a loss of the user's own over the tokens of a language model.

    def loss(model, batch, **options) -> Tensor

model: called as transformers' models are, `model(input_ids=...)`. batch: "tokens" is int64 of shape (samples, length +
1), on the worker's device. It returns the SUM of the loss over all targets of the batch, of shape ().

Every target has the same weight in the gradient, whatever the number of workers. So raystage must know the number of
targets of a whole batch before it runs the model: every token of every sample, unless `targets` names a function

    def targets(batch, **options) -> int

whose batch has the same keys as NumPy arrays. It is called with the samples of all workers.

Held-out text is judged by the loss of the next token, so that stages and baselines can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raystage.errors import InputError
from raystage.objectives.learner import Arrays, Batch, Model, Reader
from raystage.user_code import call

_KEY = "objective"


@dataclass(frozen=True)
class Own:
    """function, targets: references. options: what both are called with."""

    function: str
    targets: str | None
    options: Mapping[str, Any]

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        return reader.read(first, count, length)

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        if self.targets is None:
            return count * length
        found = self._called(self.targets, reader.read(first, count, length))
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            expected = "expected a whole number from 1"
            raise InputError(f"{self.targets} returned {found!r}; {expected}", key=f"{_KEY}.targets")
        return found

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        found = self._called(self.function, model, batch)
        if not _is_loss(found):
            expected = "expected the summed loss: one number with a gradient"
            raise InputError(f"{self.function} returned {_in_words(found)}; {expected}", key=f"{_KEY}.function")
        return found.float().reshape(())

    def _called(self, reference: str, *arguments: Any) -> Any:
        return call(reference, _KEY, arguments, self.options)


def _is_loss(found: Any) -> bool:
    """Of complex numbers the imaginary part would be lost, and a sparse tensor has no one number."""
    is_number = isinstance(found, torch.Tensor) and found.numel() == 1 and found.requires_grad
    return is_number and found.is_floating_point() and found.layout is torch.strided


def _in_words(found: Any) -> str:
    if not isinstance(found, torch.Tensor):
        return f"a {type(found).__name__}"
    kind = "" if found.is_floating_point() else f" of {str(found.dtype).removeprefix('torch.')}"
    return f"a {'sparse ' * found.is_sparse}tensor{kind} of shape {tuple(found.shape)}"


def open_learner(function: str, targets: str | None, options: Mapping[str, Any]) -> Own:
    return Own(function, targets, options)
