"""Tokens and samples per second that one worker reads: python benchmarks/reading.py [--tokens 20000000]

Batches of 65,536 tokens from memory-mapped streams of random ids, one source alone and mixtures of 4 and of 56 sources
(as many as SmolLM3's last stages have), in the order of the seed. A worker needs no more than it trains on. Then
batches of 64 samples, images and texts with labels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import numpy as np

from raystage.data.reading import Shares, reading_after
from raystage.data.samples import MixedSamples, SampleReader, Samples, StoredSamples
from raystage.data.tokens import MixedWindows, TokenWindows

BATCH_TOKENS = 65_536
STREAM_TOKENS = 4_000_000
CONTEXTS = (128, 1024, 4096)
SOURCES = (1, 4, 56)
BATCH_SAMPLES = 64
LABELLED = 2_000  # samples of a source
IMAGES = ((1, 28, 28), (3, 224, 224))
TEXT_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    tokens = parser.parse_args().tokens
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| context | " + " | ".join("one source" if n == 1 else f"mixture of {n}" for n in SOURCES) + " |")
    print("|---|" + "---|" * len(SOURCES))
    with tempfile.TemporaryDirectory() as folder:
        for context in CONTEXTS:
            speeds = (speed(readers(Path(folder), context, count), context, tokens) for count in SOURCES)
            print(f"| {context} | " + " | ".join(f"{speed / 1e6:.0f}M" for speed in speeds) + " |")
    print("\n| samples | " + " | ".join("one source" if n == 1 else f"mixture of {n}" for n in SOURCES) + " |")
    print("|---|" + "---|" * len(SOURCES))
    for name, stored in labelled().items():
        speeds = (samples_per_second(sample_reader(stored, count), tokens // 1_000) for count in SOURCES)
        print(f"| {name} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |")


def labelled() -> dict[str, StoredSamples]:
    """Samples by what they are, in memory."""
    draws, labels = np.random.default_rng(0), np.zeros(LABELLED, np.int32)
    found = {}
    for shape in IMAGES:
        name = f"images of {' x '.join(map(str, shape))}"
        found[name] = StoredSamples(draws.integers(0, 256, (LABELLED, *shape), dtype=np.uint8), labels)
    ends = np.cumsum(draws.integers(TEXT_TOKENS // 2, 2 * TEXT_TOKENS, LABELLED))
    stream = draws.integers(0, 50_000, int(ends[-1])).astype(np.uint16)
    return found | {f"texts of {TEXT_TOKENS} tokens": StoredSamples(stream, labels, ends)}


def sample_reader(stored: StoredSamples, count: int) -> Samples:
    sources = {
        str(index): SampleReader(StoredSamples(stored.contents, stored.labels, stored.ends), index, TEXT_TOKENS)
        for index in range(count)
    }
    if count == 1:
        return sources["0"]
    return MixedSamples(reading_after([], 1, shares_of(sources), True), sources, 0)


def samples_per_second(reader: Samples, samples: int) -> float:
    batches = range(max(1, samples // BATCH_SAMPLES))
    began = time.perf_counter()
    for batch in batches:
        reader.read(batch * BATCH_SAMPLES, BATCH_SAMPLES)
    return len(batches) * BATCH_SAMPLES / (time.perf_counter() - began)


def readers(folder: Path, context: int, count: int) -> TokenWindows | MixedWindows:
    sources = {str(index): TokenWindows(stream(folder / f"{index}.bin"), context, 0) for index in range(count)}
    if count == 1:
        return sources["0"]
    return MixedWindows(reading_after([], context, shares_of(sources), True), sources, 0)


def shares_of(names: Collection[str]) -> Shares:
    total = len(names) * (len(names) + 1) // 2
    return tuple((name, Fraction(index + 1, total)) for index, name in enumerate(names))


def stream(path: Path) -> np.ndarray:
    if not path.exists():
        np.random.default_rng(0).integers(0, 50_000, STREAM_TOKENS).astype(np.uint16).tofile(path)
    return np.memmap(path, dtype=np.uint16, mode="r")


def speed(reader: TokenWindows | MixedWindows, context: int, tokens: int) -> float:
    count = BATCH_TOKENS // context
    batches = range(max(1, tokens // BATCH_TOKENS))
    began = time.perf_counter()
    for batch in batches:
        reader.read(batch * count, count, context)
    return len(batches) * BATCH_TOKENS / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
