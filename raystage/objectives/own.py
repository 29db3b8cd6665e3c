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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raystage.errors import InputError
from raystage.objectives.learner import Arrays, Batch, Model, Reader
from raystage.user_code import find, said_by

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
        if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.requires_grad:
            is_tensor = isinstance(found, torch.Tensor)
            what = f"a tensor of shape {tuple(found.shape)}" if is_tensor else f"a {type(found).__name__}"
            expected = "expected the summed loss: one number with a gradient"
            raise InputError(f"{self.function} returned {what}; {expected}", key=f"{_KEY}.function")
        return found.float().reshape(())

    def _called(self, reference: str, *arguments: Any) -> Any:
        function: Callable[..., Any] = find(reference)
        try:
            return function(*arguments, **self.options)
        except Exception as error:  # whatever the user's function raises
            raise InputError(f"{reference} failed ({said_by(error)})", key=_KEY) from error


def open_learner(function: str, targets: str | None, options: Mapping[str, Any]) -> Own:
    return Own(function, targets, options)
