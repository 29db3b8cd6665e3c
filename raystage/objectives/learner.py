"""What an objective does on a worker. The engine knows a model and a learner; what is learned, only the learner knows.

Samples are read by number: sample n of the run is the same for any number of workers and in any order of reading. A
learner that needs noise draws it from a reader's seed and a sample's position, never from a random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

# By name the arrays of some samples; the first axis of each is that of the samples.
Arrays = Mapping[str, np.ndarray]
# The same on a worker's device.
Batch = Mapping[str, torch.Tensor]
# A model, or an engine around it. Called with keyword arguments, as transformers' models are.
Model = Callable[..., Any]


class Reader(Protocol):
    """Where samples are read from. seed: of the noise that a learner adds."""

    seed: int

    def read(self, first: int, count: int, length: int) -> Arrays:
        """Samples `first` to `first + count`, each `length` units long: tokens, or 1 where the unit is samples.

        Windows of text: "tokens" is int64 of shape (count, length + 1), for the targets of language models lie one
        token further on; of conversations also "mask", uint8, 1 for every token of an answer.

        Labelled samples: "label" is int64 of shape (count,), the number of the class. Images: "image" is uint8 of shape
        (count, channels, height, width). Texts: "tokens" is int64 of shape (count, length of the longest), padded on
        the right, and "mask" uint8, 1 for every token that is no padding.
        """

    def field(self, name: str, first: int, count: int, length: int) -> np.ndarray | None:
        """One of the arrays of `read`, without reading the others; None where samples have none of that name."""


@dataclass(frozen=True)
class HeldOut:
    """The samples of an evaluation, the same at every evaluation and on every worker. seed: the same in every run."""

    arrays: Arrays
    seed: int = 0

    @property
    def tokens(self) -> np.ndarray:
        """Of windows of text: int64 of shape (count, length + 1)."""
        return self.arrays["tokens"]

    @property
    def count(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def length(self) -> int:
        """Of a sample in units: the tokens of a window of text; 1 where the unit is samples."""
        is_text = "tokens" in self.arrays and "label" not in self.arrays
        return self.tokens.shape[1] - 1 if is_text else 1

    def read(self, first: int, count: int, length: int) -> Arrays:
        """Samples `first` to `first + count`. length: that of all of them."""
        return {name: values[first : first + count] for name, values in self.arrays.items()}

    def field(self, name: str, first: int, count: int, length: int) -> np.ndarray | None:
        return self.arrays[name][first : first + count] if name in self.arrays else None

    def is_same(self, other: HeldOut) -> bool:
        """Whether both have the same samples."""
        return self.arrays.keys() == other.arrays.keys() and all(
            np.array_equal(values, other.arrays[name]) for name, values in self.arrays.items()
        )


@dataclass(frozen=True)
class Models:
    """Frozen models beside the one that is trained, on a worker's device, for objectives that need them.

    teacher: of `distillation`.
    """

    teacher: Model | None = None


@dataclass(frozen=True)
class Answer:
    """A model's answer to a batch, sample after sample.

    Where something is chosen: outputs are fp32 of shape (targets, choices), the scores of all tokens or classes, and
    targets int64 of shape (targets,), the right ones. Where an image is made: both are fp32 of shape (samples, pixels).
    """

    outputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Figures:
    """What a judge finds beside the loss. accuracy: the share of targets that the model finds most probable; None where
    nothing is right or wrong. metrics: further figures, by name."""

    accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Learner(Protocol):
    """What a stage is trained on. Everything it does follows from its arguments; it keeps no state of the run."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        """Samples `first` to `first + count` with everything that `loss` and `answer` need."""

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        """The number of targets of these samples, without running a model. A global batch's is the same on every
        worker: every target has the same weight in the gradient."""

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The sum over all targets of a batch: fp32 of shape ()."""


class Judge(Protocol):
    """What held-out data are judged by. Most objectives judge by themselves: one class is both."""

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays: ...

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int: ...

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        """The keyword arguments that a model is called with."""

    def answer(self, model: Model, batch: Batch) -> Answer:
        """What the model says of a batch, and what would be right."""

    def summed_loss(self, answer: Answer) -> torch.Tensor:
        """The sum over all targets: fp32 of shape ()."""

    def sums(self, answer: Answer) -> torch.Tensor:
        """What is added up over all targets: float64 of shape (number of sums,). The first is the loss."""

    def figures(self, means: Sequence[float]) -> Figures:
        """The figures of some data. means: their sums, divided by the number of targets."""
