"""Depth: from how many layers to how many, as lists of source layers."""

from __future__ import annotations

import math


def stack(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `i mod l`: 3 -> 6 is 0 1 2 0 1 2. Progressive stacking (Gong 2019), G_stack (2405.15319)."""
    return tuple(i % sources for i in range(targets))


def interleave(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `floor(i*l/L)`: 3 -> 6 is 0 0 1 1 2 2. Shen (2203.06211), Bu (2511.04981)."""
    return tuple(i * sources // targets for i in range(targets))


def middle(sources: int, targets: int, block: int) -> tuple[int, ...]:
    """Of `n = floor(l/b)` blocks counted from the bottom, number `ceil(n/2)` is repeated where it stands.

    6 -> 8 in blocks of 2 is 0 1 2 3 2 3 4 5, and 4 -> 6 is 0 1 0 1 2 3: of an even number of blocks, the lower of the
    two in the middle. Layers over a whole number of blocks stay on top. MIDAS (2409.19044), whose source is always
    whole blocks and which adds one at a time.
    """
    end = block * math.ceil(sources // block / 2)
    return (*range(end), *(end - block + i % block for i in range(targets - sources)), *range(end, sources))


def middle_block(sources: int, targets: int) -> int:
    """The largest block that divides source and target: MIDAS's own from n blocks to n + 1, so 4 -> 6 is 2."""
    return max(1, math.gcd(sources, targets))


def last(sources: int, targets: int) -> tuple[int, ...]:
    """All layers, then the last `L - l` again, at most all of them: 4 -> 6 is 0 1 2 3 2 3.

    Gradual stacking, as MIDAS (2409.19044) tells it; one of G_stack's (2405.15319) partial stackings.
    """
    return (*range(sources), *range(2 * sources - targets, sources))


def first(sources: int, targets: int) -> tuple[int, ...]:
    """The first `L - l` layers, at most all of them, then all: 4 -> 6 is 0 1 0 1 2 3. The mirror image of `last`."""
    return (*range(targets - sources), *range(sources))
