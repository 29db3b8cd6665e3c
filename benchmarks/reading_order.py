"""Tokens per second that one worker reads, by the order and the borders of its documents.

    python benchmarks/reading_order.py [--tokens 10000000]

Batches of 65,536 tokens from 200,000 documents of 20 to 1,000 random ids in memory: shuffled text; documents kept apart
(with the rows that attention takes them in); a curriculum by length; both.
"""

from __future__ import annotations

import argparse
import os
import time
from fractions import Fraction

import numpy as np

from raystage.data.order.curriculum import LENGTH, CurriculumPlan, TextPace
from raystage.data.order.documents import DocumentSpans, SortedDocuments, SortedStream, Starts, order_of
from raystage.data.order.pool import PacedOrder
from raystage.data.tokens import SampleWindows, Stream, TokenWindows, num_windows
from raystage.objectives.documents import STARTS, with_rows

BATCH_TOKENS = 65_536
CONTEXTS = (128, 1024, 4096)
NAMES = ("shuffled", "documents apart", "curriculum", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000)
    tokens = parser.parse_args().tokens
    draws = np.random.default_rng(0)
    spans = DocumentSpans(draws.integers(20, 1_000, 200_000))
    stream = draws.integers(0, 50_000, int(spans.begins[-1])).astype(np.uint16)
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"| context | {' | '.join(NAMES)} |\n|---|{'---|' * len(NAMES)}")
    for context in CONTEXTS:
        speeds = [speed(reader, context, tokens) for reader in readers(stream, spans, context)]
        print(f"| {context} | " + " | ".join(f"{one / 1e6:.0f}M" for one in speeds) + " |", flush=True)


def readers(stream: np.ndarray, spans: DocumentSpans, context: int) -> list[SampleWindows]:
    """In the order of NAMES."""
    curriculum = CurriculumPlan(LENGTH, False, 0.2, "sqrt", len(stream) // 2)
    order = PacedOrder(0, num_windows(stream, context), [TextPace(0, curriculum, Fraction(context))])
    placed = SortedDocuments(spans, order_of(spans.lengths, False))

    def windows(tokens: Stream, starts: Starts | None, order: PacedOrder | None) -> SampleWindows:
        flags = {} if starts is None else {STARTS: TokenWindows(starts, context, 0, order)}
        return SampleWindows(TokenWindows(tokens, context, 0, order), flags)

    by_length = SortedStream(stream, placed)
    return [
        windows(stream, None, None),
        windows(stream, Starts(spans), None),
        windows(by_length, None, order),
        windows(by_length, Starts(placed.spans), order),
    ]


def speed(reader: SampleWindows, context: int, tokens: int) -> float:
    count, batches = BATCH_TOKENS // context, range(max(1, tokens // BATCH_TOKENS))
    began = time.perf_counter()
    for batch in batches:
        with_rows(reader.read(batch * count, count, context), context)
    return len(batches) * BATCH_TOKENS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
