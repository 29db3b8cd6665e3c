"""Token objectives whose loss the head of a model computes itself, some targets at a time: never are all scores there.

A model is called as always. While it is asked for a loss, its head answers with that in place of scores, and the model
hands it on as its `logits`. So whatever comes with a call of the head, as ZeRO 3 gathering its weight, happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from raystage.errors import InputError
from raystage.models.shape import ModelShape, table_of
from raystage.objectives.chunked import losses_and_hits, summed_loss_by
from raystage.objectives.judging import OfTokens
from raystage.objectives.learner import Answer, Arrays, Batch, Figures, Model, Reader

KEY = "training.cross_entropy"
_Asked = Callable[[torch.Tensor], torch.Tensor]


class LossHead:
    """Makes a linear head answer with losses while it is asked for them, and with scores at all other times."""

    def __init__(self, module: torch.nn.Linear, kernel: str, is_compiled: bool) -> None:
        self.module, self.kernel = module, kernel
        self._asked: _Asked | None = None
        self._said: torch.Tensor | None = None
        self._is_checked = False
        # The loop over chunks is no part of a compiled graph. Naming the compiler loads it, which takes seconds.
        module.forward = torch.compiler.disable(self._forward) if is_compiled else self._forward

    def _forward(self, states: torch.Tensor) -> torch.Tensor:
        if self._asked is None:
            return type(self.module).forward(self.module, states)
        self._said = self._asked(states)
        return self._said

    def ask(self, model: Model, inputs: Mapping[str, Any], question: _Asked) -> torch.Tensor:
        """What the head answers to the question when the model is called. Raises InputError where the model does not
        hand that on as it is."""
        self._asked = question
        try:
            found = model(**inputs).logits
        finally:
            self._asked, said, self._said = None, self._said, None
        if not self._is_checked:  # once: it reads a value from the device
            if said is None or found.shape != said.shape or not torch.equal(_numbers(found), _numbers(said)):
                problem = f"found {self.kernel!r}, but the model changes the scores that its head gives"
                raise InputError(f"{problem}; expected whole", key=KEY)
            self._is_checked = True
        return found


def _numbers(values: torch.Tensor) -> torch.Tensor:
    """Without NaN, which differs from itself."""
    return values.detach().nan_to_num()


def loss_head(network: torch.nn.Module, shape: ModelShape, kernel: str, is_compiled: bool = False) -> LossHead:
    """That of a network of a known family. kernel: as in `chunked.summed_loss_by`. Raises InputError where it is not
    installed."""
    if kernel == "liger" and find_spec("liger_kernel") is None:
        problem = "found 'liger', but liger_kernel is not installed on this node"
        expected = "expected chunked, or pip install liger-kernel on every node with workers"
        raise InputError(f"{problem}; {expected}", key=KEY)
    return LossHead(network.get_submodule(table_of(shape).head.removesuffix(".weight")), kernel, is_compiled)


@dataclass(frozen=True)
class ByHead:
    """A token objective, as learner and as judge. Its answers have no scores: outputs are fp32 of shape (targets, 2),
    the loss of every target and whether it has the highest score."""

    plain: OfTokens
    head: LossHead

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        return self.plain.batch(reader, first, count, length)

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return self.plain.num_targets(reader, first, count, length)

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return self.plain.inputs(batch)

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        targets, head = self.plain.targets(batch), self.head

        def summed(states: torch.Tensor) -> torch.Tensor:
            return summed_loss_by(head.kernel, self.plain.at_targets(states, batch), head.module, targets)

        return head.ask(model, self.inputs(batch), summed)

    def answer(self, model: Model, batch: Batch) -> Answer:
        targets = self.plain.targets(batch)

        def judged(states: torch.Tensor) -> torch.Tensor:
            return losses_and_hits(self.plain.at_targets(states, batch), self.head.module, targets)

        return Answer(self.head.ask(model, self.inputs(batch), judged), targets)

    def summed_loss(self, answer: Answer) -> torch.Tensor:
        return answer.outputs[:, 0].sum()

    def sums(self, answer: Answer) -> torch.Tensor:
        return answer.outputs.double().sum(0)

    def figures(self, means: Sequence[float]) -> Figures:
        return self.plain.figures(means)
