"""How much of the held-out text also occurs word for word in the training text.

Held-out text is cut into pieces of `PIECE` tokens. A piece is repeated if the same tokens occur in a row anywhere in
the training text, also across documents. (Lee et al., 2107.06499, call 50 tokens in a row a duplicate.) Of long texts a
part is searched: `MOST_PIECES` pieces, spread evenly, and `MOST_TOKENS` tokens of the training text, in sections spread
evenly. The share is then a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PIECE = 64
MOST_PIECES = 4096
MOST_TOKENS = 2**28
_STRETCH = 2**22  # tokens that are hashed at a time: 32 MiB for each array of hashes
_FILTER_BITS = 20
# An odd number with well mixed bits. Hashes are modulo 2**64.
_BASE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Repeats:
    """pieces: of the held-out text, as many as were searched for. repeated: how many of them occur in the training
    text. looked_at: the share of the training text that was searched."""

    pieces: int
    repeated: int
    looked_at: float

    @property
    def share(self) -> float:
        return self.repeated / self.pieces if self.pieces else 0.0


def find_repeats(train: np.ndarray, held_out: np.ndarray, most_tokens: int = MOST_TOKENS) -> Repeats:
    """How many pieces of one stream of tokens occur in the other."""
    count = len(held_out) // PIECE
    if count == 0 or len(train) < PIECE:
        return Repeats(count, 0, 1.0)
    chosen = np.arange(min(count, MOST_PIECES)) * count // min(count, MOST_PIECES)
    pieces = np.stack([held_out[start : start + PIECE] for start in chosen * PIECE])
    wanted = np.array([row_hashes(piece)[0] for piece in pieces])
    found = np.zeros(len(wanted), dtype=bool)
    by_hash = np.argsort(wanted, kind="stable")
    ordered = wanted[by_hash]
    possible = np.zeros(2**_FILTER_BITS, dtype=bool)
    possible[_low(ordered)] = True
    looked_at = 0
    for start, stop in _stretches(len(train), most_tokens):
        looked_at += stop - start
        hashes = row_hashes(train[start : min(stop + PIECE - 1, len(train))])
        candidates = np.flatnonzero(possible[_low(hashes)])
        first = np.searchsorted(ordered, hashes[candidates])
        hits = first < len(ordered)
        hits[hits] = ordered[first[hits]] == hashes[candidates[hits]]
        found |= np.isin(wanted, ordered[first[hits]])
    return Repeats(len(wanted), int(found.sum()), looked_at / len(train))


def row_hashes(tokens: np.ndarray) -> np.ndarray:
    """A hash of the `PIECE` tokens that begin at each place, made of the hashes of half as many tokens."""
    hashes = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE)
    hashes ^= hashes >> np.uint64(29)
    length, factor = 1, _BASE
    while length < PIECE:
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        length, factor = 2 * length, factor * factor % 2**64
    return hashes ^ (hashes >> np.uint64(32))


def _low(hashes: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64(2**_FILTER_BITS - 1)).astype(np.int64)


def _stretches(length: int, most: int) -> list[tuple[int, int]]:
    """The sections to search: everything, or as much as allowed, spread evenly."""
    if length <= most:
        return [(start, min(start + _STRETCH, length)) for start in range(0, length, _STRETCH)]
    size = min(_STRETCH, most)
    count = most // size
    return [(start, start + size) for start in (number * (length - size) // count for number in range(count))]
