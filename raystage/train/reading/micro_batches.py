"""The micro batches of a global batch that a worker computes.

The global batch does not depend on the number of workers. Worker r of W takes its even share of the samples. All
workers take equally many micro batches; one that has a sample less computes a micro batch of weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from raystage.objectives.learner import Batch, Judge, Learner, Reader

# A micro batch in host memory or on the device, and its weight: 1, or 0 for one that only keeps the workers in step.
MicroBatch = tuple[Batch, float]


@dataclass(frozen=True)
class StepBatches:
    """What a worker trains on in one optimizer step. They can be gone through once.

    amount: what the whole global batch has of the stage's unit: tokens, or samples. targets: those of the whole global
    batch. number: of the micro batches.
    """

    amount: int
    targets: int
    number: int
    micro_batches: Iterable[MicroBatch]


@dataclass(frozen=True)
class Share:
    """The part of worker `rank` of `world` in every global batch, in micro batches of at most `micro` samples.

    gpu: that they are for: they lie in pinned memory, from which it copies them while the CPU goes on.
    """

    micro: int
    rank: int
    world: int
    gpu: torch.device | None = None

    def number(self, samples: int) -> int:
        """The number of micro batches: as many as the worker with the largest share needs."""
        return math.ceil(math.ceil(samples / self.world) / self.micro)

    def step(self, learner: Learner, reader: Reader, first: int, count: int, length: int) -> StepBatches:
        """Those of a step on samples `first` to `first + count` of the run; each is read when it is asked for."""
        targets = learner.num_targets(reader, first, count, length)
        return StepBatches(
            count * length, targets, self.number(count), self.read(learner, reader, first, count, length)
        )

    def read(self, by: Learner | Judge, reader: Reader, first: int, count: int, length: int) -> Iterator[MicroBatch]:
        """In host memory. No worker reads another's samples."""
        mine, end = first + self.rank * count // self.world, first + (self.rank + 1) * count // self.world
        for index in range(self.number(count)):
            start = mine + index * self.micro
            number = min(self.micro, end - start)
            weight = 1.0 if number > 0 else 0.0
            part = by.batch(reader, *((start, number) if weight else (first, 1)), length)
            yield {name: self._held(torch.from_numpy(values)) for name, values in part.items()}, weight

    def _held(self, values: torch.Tensor) -> torch.Tensor:
        if self.gpu is None:
            return values
        torch.cuda.set_device(self.gpu)  # of this thread, which would open another worker's GPU otherwise
        return values.pin_memory()


def moved(batch: Batch, device: torch.device) -> Batch:
    """On the device. From pinned memory this waits for nothing."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}
