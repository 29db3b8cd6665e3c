"""What keeping documents apart costs: forward and backward passes of packed windows, attention across documents against
a mask over the window, as transformers makes one from positions, and against documents gathered into rows.

    python benchmarks/documents_apart.py

A Llama of 4 layers and 128 units on one thread; the best of three passes. Prints a Markdown table. Where other jobs run
beside it, only the ratios within a row say something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch

from raystage.models.build import build
from raystage.models.shape import ModelShape
from raystage.objectives.documents import STARTS, told_apart, with_rows
from raystage.objectives.learner import Batch

VOCABULARY, REPEATS = 512, 3
# (tokens of a window, windows, mean tokens of a document)
CASES = ((512, 4, 64), (2048, 1, 64), (2048, 1, 512), (4096, 1, 300), (8192, 1, 500))


def batch_of(length: int, count: int, document: int) -> Batch:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (count, length))
    starts = (random.random((count, length)) < 1 / document).astype(np.uint8)
    found = with_rows({"tokens": tokens, STARTS: starts}, length)
    return {name: torch.from_numpy(values) for name, values in found.items()}


def network_of(length: int) -> torch.nn.Module:
    shape = ModelShape("llama", 4, 128, 4, 4, 32, 512, VOCABULARY, length, tied_embeddings=False, norm_eps=1e-6)
    torch.manual_seed(0)
    network = build(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network


def seconds(call: Callable[[], torch.Tensor]) -> float:
    found = []
    for _ in range(REPEATS + 1):  # the first one is for warming up
        began = time.perf_counter()
        call().logits.float().logsumexp(-1).sum().backward()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def main() -> None:
    torch.set_num_threads(1)
    print("| window, documents | attention across | a mask over the window | documents in rows |\n|---|---|---|---|")
    for length, count, document in CASES:
        network, batch = network_of(length), batch_of(length, count, document)
        rows = told_apart(batch)
        calls = ({}, {"position_ids": rows["position_ids"]}, rows)
        found = [seconds(partial(network, input_ids=batch["tokens"], **more)) for more in calls]
        windows = f"{count} x {length:,}" if count > 1 else f"{length:,}"
        print(
            f"| {windows} tokens, about {document} each | {' | '.join(f'{one:.2f} s' for one in found)} |", flush=True
        )


if __name__ == "__main__":
    main()
