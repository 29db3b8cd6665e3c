"""`distillation`: what a teacher, a frozen model, finds probable (Hinton et al., 1503.02531).

    loss = alpha * T^2 * KL(teacher || student) + (1 - alpha) * (loss of the next token)

Both sides of KL are softmax(scores / T), T the temperature. With `top_k` only the teacher's k most probable tokens have
a probability of their own; all others are one event on either side, the "ghost token" of Anshumann et al. (2503.16870).
So the student learns how much probability the teacher leaves to the other tokens. Probabilities of k tokens that are
scaled to a sum of one would teach it to leave none (their section on top-k).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raystage.objectives.causal_lm import CausalLm
from raystage.objectives.judging import summed_loss
from raystage.objectives.learner import Batch, Model


@dataclass(frozen=True)
class Distillation(CausalLm):
    """Samples, targets and answers are those of the next token. top_k: None for all tokens."""

    teacher: Model
    temperature: float
    alpha: float
    top_k: int | None

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            told = self.answer(self.teacher, batch).outputs / self.temperature
        answer = self.answer(model, batch)
        apart = divergence(told, answer.outputs / self.temperature, self.top_k)
        return self.alpha * self.temperature**2 * apart + (1 - self.alpha) * summed_loss(answer)


def divergence(told: torch.Tensor, said: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
    """KL(told || said), summed over all targets: shape ().

    told, said: scores of shape (targets, vocabulary) of teacher and student. Ids that only one of them has are padding:
    the teacher's are left out, and on the student's the teacher has no probability.
    """
    shared = min(told.shape[-1], said.shape[-1])
    told, said = told[:, :shared].log_softmax(-1), said.log_softmax(-1)
    if top_k is None or top_k >= shared:
        return (told.exp() * (told - said[:, :shared])).sum()
    best, places = told.topk(top_k)
    told = torch.cat([best, _others(told, places)], -1)
    said = torch.cat([said.gather(-1, places), _others(said, places)], -1)
    return (told.exp() * (told - said)).sum()


def _others(log_probabilities: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability of all tokens but those at `places`: shape (targets, 1)."""
    return log_probabilities.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)


def open_learner(teacher: Model, temperature: float, alpha: float, top_k: int | None) -> Distillation:
    return Distillation(teacher, temperature, alpha, top_k)
