"""The weighted average of several checkpoints of one shape, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Weights(Protocol):
    """What slices of weights are read from: a checkpoint, or a Hugging Face folder."""

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray: ...


def averaged(sources: Sequence[Weights], weights: Sequence[float], parameter: str, start: int, stop: int) -> np.ndarray:
    """The flat slice [start, stop) of the average of a parameter: float32, summed up in float64 in the order of the
    sources. Each element follows from those of the sources alone, so it is the same however slices are cut.

    weights: of the sources; they add up to 1.
    """
    return summed(sources, weights, parameter, start, stop).astype(np.float32)


def summed(sources: Sequence[Weights], weights: Sequence[float], parameter: str, start: int, stop: int) -> np.ndarray:
    """The same in float64."""
    total = np.zeros(stop - start, dtype=np.float64)
    for source, weight in zip(sources, weights, strict=True):
        total += weight * source.read(parameter, "fp32", start, stop).astype(np.float64)
    return total
