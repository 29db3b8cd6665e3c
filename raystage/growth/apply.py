"""Any slice of any grown parameter, computed from its rule.

Growth is a view, not a copy: a worker asks for just the slices its own partition holds, and reads
just the source's bytes that those need.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from raystage.growth.operator import GrowthMap, Rule

# (parameter, state, start, stop) -> float32 of the flat slice [start, stop)
Read = Callable[[str, str, int, int], np.ndarray]

STATES = ("fp32", "exp_avg", "exp_avg_sq")
# A gradient that scales by s takes first-order state with s and second-order state with s squared.
_ORDER = {"exp_avg": 1, "exp_avg_sq": 2}


def grown_slice(rule: Rule, state: str, start: int, stop: int, read: Read, seed: int) -> np.ndarray:
    """The flat slice [start, stop) of `state` of the target parameter: float32 of shape (stop - start,).

    Growing whole and growing by slices give the same bits.
    """
    if state == "fp32":
        return _weights(rule, start, stop, read, seed)
    if rule.moments == "zeros":
        return np.zeros(stop - start, dtype=np.float32)
    values = read(rule.source, state, start, stop)
    factor = rule.gradient_factor ** _ORDER[state]
    return values if factor == 1.0 else values * np.float32(factor)


def slices(rule: Rule, most: int) -> Iterator[tuple[int, int]]:
    """The target parameter as slices of at most `most` elements; whole where each would draw all of it anew."""
    numel = math.prod(rule.shape)
    step = numel if rule.weights == "normal" else most
    for start in range(0, numel, step):
        yield start, min(numel, start + step)


def grown_steps(rules: GrowthMap, source_steps: dict[str, int]) -> dict[str, int]:
    """For each target parameter the optimizer steps its moments have seen: 0 where they start anew."""
    return {rule.target: source_steps[rule.source] if rule.moments == "copy" else 0 for rule in rules}


def _weights(rule: Rule, start: int, stop: int, read: Read, seed: int) -> np.ndarray:
    match rule.weights:
        case "copy":
            return read(rule.source, "fp32", start, stop)
        case "ones":
            return np.ones(stop - start, dtype=np.float32)
        case "normal":
            return _normal(rule, seed)[start:stop]
        case _:
            return np.zeros(stop - start, dtype=np.float32)


def _normal(rule: Rule, seed: int) -> np.ndarray:
    """The whole parameter from a generator of its own: a slice never depends on who asks for it."""
    digest = hashlib.sha256(f"{seed}/{rule.target}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(rule.shape).normal_(0.0, rule.std, generator=generator).flatten().numpy()
