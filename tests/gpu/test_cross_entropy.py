"""The loss some targets at a time on a GPU: by torch, and by Liger's kernel where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional

from raystage.objectives.chunked import losses_and_hits, summed_loss_by

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; torch finds none"),
]
DEVICE = "cuda"
TARGETS, HIDDEN, VOCABULARY = 8192, 256, 32_768
# Of the largest number in a gradient. Liger makes the gradient of the scores in their own precision.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6}
MIB = 2**20
KERNELS = [
    "chunked",
    pytest.param("liger", marks=pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs liger-kernel")),
]


def plain(states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="sum")


def case_of(dtype: torch.dtype) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device=DEVICE, dtype=dtype)
    states = torch.randn(TARGETS, HIDDEN, device=DEVICE, dtype=dtype, requires_grad=True)
    return states, head, torch.randint(0, VOCABULARY, (TARGETS,), device=DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_gradients_and_peak(kernel: str, dtype: torch.dtype) -> None:
    found, peaks = [], []
    for loss_of in (plain, lambda *case: summed_loss_by(kernel, *case)):
        states, head, targets = case_of(dtype)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = loss_of(states, head, targets)
        gradients = torch.autograd.grad(loss * 0.37, [states, head.weight])
        peaks.append(torch.cuda.max_memory_allocated() - before)
        found.append((loss.item(), gradients))
    print(f"MiB: plain {peaks[0] / MIB:.0f}, {kernel} {peaks[1] / MIB:.0f}")
    (usual, of_usual), (own, of_own) = found
    assert own == pytest.approx(usual, rel=1e-4)
    for one, other in zip(of_own, of_usual, strict=True):
        assert (one.double() - other.double()).abs().max() <= TOLERANCE[dtype] * other.double().abs().max()
    assert peaks[1] < peaks[0] / 3


def test_losses_and_hits_are_those_of_the_scores() -> None:
    states, head, targets = case_of(torch.float32)
    found, scores = losses_and_hits(states, head, targets), head(states)
    losses = functional.cross_entropy(scores, targets, reduction="none")
    assert torch.allclose(found[:, 0], losses, rtol=1e-4)
    assert torch.equal(found[:, 1] == 1, scores.argmax(-1) == targets)
