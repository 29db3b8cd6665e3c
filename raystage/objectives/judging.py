"""How held-out data are scored: sums over targets, added up over batches and workers, and the figures of the sums.

A judge says what it adds up. The first sum is always the loss. So the figures are those of all held-out data, with any
number of workers, also where they are no mean over targets: F1 follows from a matrix of counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from raystage.objectives.learner import Answer, Batch, Figures, HeldOut, Judge, Model
from raystage.objectives.metrics import MetricSums, Sums


class Scores(NamedTuple):
    """means: the judge's sums divided by the number of targets. figures: what the judge finds in them. sums: of the
    user's metrics, over this worker's targets alone. halves: the loss on the first half of the samples and on the rest;
    None if there is only one sample. sources: of a mixture, by content, the loss on each source."""

    means: tuple[float, ...]
    figures: Figures
    sums: Sums
    halves: tuple[float, float] | None
    sources: tuple[tuple[str, float], ...] = ()

    @property
    def loss(self) -> float:
        """The mean over all targets, in the unit of the objective's table."""
        return self.means[0]


class ByScores:
    """Judges scores, of tokens or of classes: by their cross-entropy, and by how often the right one is the highest."""

    def summed_loss(self, answer: Answer) -> torch.Tensor:
        return summed_loss(answer)

    def sums(self, answer: Answer) -> torch.Tensor:
        """The loss, and the hits."""
        return loss_and_hits(answer)

    def figures(self, means: Sequence[float]) -> Figures:
        return Figures(accuracy=means[1])


class OfTokens(ByScores):
    """Objectives whose targets are tokens: what a language model's head says at some places, and what is right there.

    A subclass says what the model is called with, as every judge, where the targets are, and which.
    """

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        raise NotImplementedError

    def at_targets(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of values (samples, length, width) those of the targets: (targets, width)."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> torch.Tensor:
        """int64 of shape (targets,), in the same order."""
        raise NotImplementedError

    def answer(self, model: Model, batch: Batch) -> Answer:
        logits = model(**self.inputs(batch)).logits
        return Answer(self.at_targets(logits, batch).float(), self.targets(batch))

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return summed_loss(self.answer(model, batch))


def summed_loss(answer: Answer, label_smoothing: float = 0.0) -> torch.Tensor:
    """The sum of -log p(target) over all targets, in nats: fp32 of shape ().

    label_smoothing: the share of a target that is spread evenly over all outputs (Szegedy et al., 1512.00567).
    """
    return functional.cross_entropy(answer.outputs, answer.targets, reduction="sum", label_smoothing=label_smoothing)


def loss_and_hits(answer: Answer) -> torch.Tensor:
    """The summed loss, and the number of targets that had the highest score of all: two float64."""
    hits = (answer.outputs.argmax(-1) == answer.targets).sum()
    return torch.stack([summed_loss(answer).double(), hits.double()])


def log_mean(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logarithm of the mean of the probabilities that several scores of one shape stand for, over the last axis."""
    total = scores[0].log_softmax(-1)
    for one in scores[1:]:
        total = torch.logaddexp(total, one.log_softmax(-1))
    return total - math.log(len(scores))


def halves(judge: Judge, answer: Answer, loss: torch.Tensor, border: int) -> torch.Tensor:
    """The summed loss of the targets before `border`, and of those from it on: two float64, which add up to `loss`."""
    nothing = torch.zeros_like(loss)
    if border <= 0:
        return torch.stack([nothing, loss])
    if border >= len(answer.targets):
        return torch.stack([loss, nothing])
    parts = (slice(None, border), slice(border, None))
    return torch.stack(
        [judge.summed_loss(Answer(answer.outputs[part], answer.targets[part])) for part in parts]
    ).double()


@dataclass
class Tally:
    """Adds up one worker's part of an evaluation.

    first: the first sample of the worker. metrics: the user's. total: the judge's sums so far. parts: the loss on the
    first half of all samples, and on the rest. The last two are then summed over all workers, by whoever has several.
    """

    judge: Judge
    held_out: HeldOut
    first: int
    metrics: MetricSums
    total: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    parts: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def add(self, batch: Batch, answer: Answer, weight: float) -> None:
        """Add a micro batch. weight: 0 for one that only keeps the workers in step."""
        sums = self.judge.sums(answer)
        self.total, self.parts = self.total.to(sums.device) + sums * weight, self.parts.to(sums.device)
        if not weight:
            return
        if len(answer.targets):
            self.metrics.add(answer.outputs, answer.targets)
        number = len(next(iter(batch.values())))
        before = min(max(self.held_out.count // 2 - self.first, 0), number)
        self.parts += halves(self.judge, answer, sums[0], self._targets(self.first, before))
        self.first += number

    def scores(self) -> Scores:
        """Of all samples, after `total` and `parts` were summed over the workers."""
        count = self.held_out.count
        targets, first = self._targets(0, count), self._targets(0, count // 2)
        means = tuple((self.total / targets).tolist())
        sizes = torch.tensor([first, targets - first], dtype=torch.float64, device=self.parts.device)
        apart = tuple((self.parts / sizes).tolist()) if 0 < first < targets else None
        return Scores(means, self.judge.figures(means), self.metrics.sums, apart)

    def _targets(self, first: int, count: int) -> int:
        return self.judge.num_targets(self.held_out, first, count, self.held_out.length)


def combined_means(found: Sequence[tuple[Scores, float]]) -> tuple[float, ...]:
    """The means of several sets of samples by the sets' weights: (scores, weight) pairs."""
    return tuple(mean([(one.means[place], weight) for one, weight in found]) for place in range(len(found[0][0].means)))


def mean(values: Sequence[tuple[float, float]]) -> float:
    """The mean of (value, weight) pairs."""
    if len(values) == 1:
        return values[0][0]
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
