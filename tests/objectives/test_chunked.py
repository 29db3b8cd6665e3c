"""A head and its loss in one, some targets at a time: the loss and the gradients of the plain way, in less memory."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from distributed import run_workers
from growths import tiny
from memory_peaks import Watch
from raystage.errors import InputError
from raystage.models.build import build
from raystage.objectives.by_head import loss_head
from raystage.objectives.chunked import losses_and_hits, summed_loss_by

# Of the largest number in a tensor. Both ways round each score to bf16 once, and the chunks each gradient once more.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7}
MIB = 2**20


def case_of(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor, int]:
    """States, a head, targets, and how many of them make a chunk: of a random size, often not a divisor."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    targets, hidden, vocabulary = rng.randint(1, 70), rng.randint(1, 40), rng.randint(2, 300)
    head = torch.nn.Linear(hidden, vocabulary, bias=rng.random() < 0.5).to(dtype)
    states = torch.randn(targets, hidden).to(dtype).requires_grad_()
    return states, head, torch.randint(0, vocabulary, (targets,)), rng.choice([1, 3, 16, targets, 100])


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def plain(states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    scores = head(states)
    return functional.cross_entropy(scores.to(wide(scores.dtype)), targets, reduction="sum")


def gradients(loss: torch.Tensor, states: torch.Tensor, head: torch.nn.Linear) -> list[torch.Tensor]:
    """Of the loss times what the engine multiplies it by."""
    return list(torch.autograd.grad(loss * 0.37, [states, *head.parameters()]))


def is_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return (found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_loss_and_gradients_are_those_of_the_plain_way(seed: int, dtype: torch.dtype) -> None:
    states, head, targets, chunk = case_of(seed, dtype)
    expected, found = plain(states, head, targets), summed_loss_by("chunked", states, head, targets, chunk)
    assert found.dtype == expected.dtype == wide(dtype)
    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE[wide(dtype)])
    for one, other in zip(gradients(found, states, head), gradients(expected, states, head), strict=True):
        assert one.dtype == other.dtype == dtype
        assert is_near(one, other, TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(10))
def test_in_bf16_the_gradient_of_the_head_is_no_worse_than_in_the_plain_way(seed: int) -> None:
    """The sums over chunks are fp32: against the gradients in fp64 of the same numbers in bf16."""
    states, head, targets, _ = case_of(seed, torch.bfloat16)
    exact = torch.autograd.grad(plain(states.double(), head.double(), targets), head.weight)[0]
    head = head.to(torch.bfloat16)
    usual = torch.autograd.grad(plain(states, head, targets), head.weight)[0]
    found = torch.autograd.grad(summed_loss_by("chunked", states, head, targets, 3), head.weight)[0]
    assert (found - exact).abs().max() <= 1.5 * (usual - exact).abs().max() + 2**-9 * exact.abs().max()


@pytest.mark.parametrize("is_frozen", ["states", "head"])
def test_what_needs_no_gradient_gets_none(is_frozen: str) -> None:
    states, head, targets, chunk = case_of(4, torch.float32)
    states.requires_grad_(is_frozen != "states"), head.requires_grad_(is_frozen != "head")
    summed_loss_by("chunked", states, head, targets, chunk).backward()
    assert (states.grad is None) == (is_frozen == "states")
    assert (head.weight.grad is None) == (is_frozen == "head")


@pytest.mark.parametrize("kernel", ["chunked", "liger"])
def test_without_targets_nothing_is_lost_and_nothing_learned(kernel: str) -> None:
    """A micro batch of conversations may have no token of an answer."""
    states, head, _, _ = case_of(5, torch.float32)
    loss = summed_loss_by(kernel, states[:0], head, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()
    assert not head.weight.grad.any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_losses_and_hits_are_those_of_the_scores(seed: int, dtype: torch.dtype) -> None:
    states, head, targets, chunk = case_of(seed, dtype)
    found = losses_and_hits(states, head, targets, chunk)
    scores = head(states).to(wide(dtype))
    assert found.dtype == wide(dtype)
    assert is_near(found[:, 0], functional.cross_entropy(scores, targets, reduction="none"), 1e-6)
    assert torch.equal(found[:, 1] == 1, scores.argmax(-1) == targets)


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger_kernel is installed")
def test_a_kernel_that_is_not_installed_is_refused_with_what_to_do() -> None:
    """liger_kernel needs triton, and is no part of the set-up."""
    shape = tiny("llama")
    with pytest.raises(InputError, match=r"training\.cross_entropy: found 'liger', but liger_kernel is not installed"):
        loss_head(build(shape), shape, "liger")


# --- memory -------------------------------------------------------------------------------------

TARGETS, HIDDEN, VOCABULARY, CHUNK = 4096, 64, 8192, 512


def peaks(dtype: torch.dtype) -> tuple[int, int]:
    """In a process of its own: bytes at the peak of a loss and its gradients, plain and in chunks."""
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).to(dtype)
    states = torch.randn(TARGETS, HIDDEN).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TARGETS,))
    summed_loss_by("chunked", states[:CHUNK], head, targets[:CHUNK], CHUNK).backward()  # brings what the first brings
    found = []
    for loss in (plain, lambda *given: summed_loss_by("chunked", *given, CHUNK)):
        head.weight.grad = states.grad = None
        watch = Watch()
        loss(states, head, targets).backward()
        found.append(watch.peak())
    return found[0], found[1]


def peaks_of_each() -> dict[torch.dtype, tuple[int, int]]:
    return {dtype: peaks(dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's")
def test_the_peak_is_that_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain: the scores of all targets and their gradient in fp32, at least. In chunks: the scores of a chunk, which
    become their gradient, with copies in bf16, of which torch's products on CPUs make one more; the head's gradient in
    fp32, and a chunk's share of it; and the gradient of the states."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed is given back
    whole, chunk, head = (4 * VOCABULARY * one for one in (TARGETS, CHUNK, HIDDEN))
    (of_each,) = run_workers(1, peaks_of_each, folder=tmp_path / "processes", start="afresh")
    for dtype, (usual, found) in of_each.items():
        print(f"{dtype}, MiB: plain {usual / MIB:.0f}, in chunks {found / MIB:.0f}, scores in fp32 {whole / MIB:.0f}")
        assert usual > 2 * whole
        assert found < 3 * chunk + 2 * head + 4 * TARGETS * HIDDEN + 8 * MIB
        assert found < usual / 5
