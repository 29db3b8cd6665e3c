"""Depth: from how many layers to how many, as lists of source layers."""

from __future__ import annotations


def stack(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `i mod l`: 3 -> 6 is 0 1 2 0 1 2. Progressive stacking (Gong 2019), G_stack (2405.15319)."""
    return tuple(i % sources for i in range(targets))


def interleave(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `floor(i*l/L)`: 3 -> 6 is 0 0 1 1 2 2. Shen (2203.06211), Bu (2511.04981)."""
    return tuple(i * sources // targets for i in range(targets))
