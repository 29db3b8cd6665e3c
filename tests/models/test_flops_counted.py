"""The FLOPs formula against torch's own count of a forward and backward pass, for a real model of every family."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raystage.models.build import build
from raystage.models.families import TRANSFORMERS
from raystage.models.shape import ModelShape, flops_per_token, parameters

SEQUENCES = 2
# Wide enough that what no matrix product does (norms, biases) stays far below 1 %.
CASES = {
    "llama": ModelShape("llama", 2, 192, 6, 6, 32, 512, 384, 64),
    "llama, grouped heads, tied": ModelShape("llama", 3, 192, 6, 2, 32, 384, 500, 32, tied_embeddings=True),
    "llama, long context": ModelShape("llama", 2, 128, 4, 4, 32, 256, 257, 256),
    "mistral, heads wider than hidden": ModelShape("mistral", 2, 192, 6, 2, 64, 512, 384, 64),
    "qwen2, one key/value head, tied": ModelShape("qwen2", 2, 192, 6, 1, 32, 512, 384, 64, tied_embeddings=True),
    "qwen3, heads narrower than hidden": ModelShape("qwen3", 2, 192, 4, 2, 16, 512, 384, 64),
    "gpt2": ModelShape("gpt2", 3, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True),
    "gpt2, own head": ModelShape("gpt2", 1, 256, 8, 8, 32, 512, 300, 32),
    "bert": ModelShape("bert", 2, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True),
    "mixtral, two experts of four": ModelShape(
        "mixtral", 2, 128, 4, 2, 32, 256, 384, 64, num_experts=4, experts_per_token=2
    ),
    "olmo2": ModelShape("olmo2", 2, 192, 6, 3, 32, 512, 384, 64),
    "phi3": ModelShape("phi3", 2, 192, 6, 2, 32, 512, 384, 64),
    "phi": ModelShape("phi", 2, 256, 8, 4, 32, 1024, 384, 64),
    "gemma": ModelShape("gemma", 2, 256, 4, 1, 64, 512, 384, 64, tied_embeddings=True),
    "gemma2": ModelShape(
        "gemma2", 3, 256, 4, 2, 64, 512, 384, 64, tied_embeddings=True, sliding_window=64, query_pre_attn_scalar=64
    ),
    "gemma3_text": ModelShape(
        "gemma3_text", 6, 256, 4, 2, 64, 512, 384, 64, sliding_window=64, query_pre_attn_scalar=64, local_rope_theta=1e4
    ),
    "modernbert": ModelShape(
        "modernbert", 4, 256, 8, 8, 32, 512, 384, 64, tied_embeddings=True, sliding_window=64, local_rope_theta=1e4
    ),
    "gpt_neox": ModelShape("gpt_neox", 2, 256, 8, 8, 32, 1024, 384, 64),
    "qwen3_moe": ModelShape("qwen3_moe", 2, 128, 4, 2, 64, 192, 384, 64, num_experts=4, experts_per_token=2),
    "mixtral, one expert of eight": ModelShape(
        "mixtral", 2, 128, 4, 4, 64, 192, 384, 64, num_experts=8, experts_per_token=1
    ),
}
every_case = pytest.mark.parametrize("shape", CASES.values(), ids=CASES)


@cache
def counted(shape: ModelShape, backward: bool = True) -> int:
    """FLOPs of matrix products in a pass over some whole sequences, attention computed as such, too.

    torch's fused attention on a CPU is not in its count; its fused kernels on a GPU are, with the whole square of
    scores, causal or not, and with the scores a second time in the backward pass, as they are computed again.
    """
    network = build(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if shape.num_experts:
        network.set_experts_implementation("eager")  # grouped matrix products are not in the count
    tokens = torch.randint(0, shape.vocab_size, (SEQUENCES, shape.context_length))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = network(input_ids=tokens).logits.square().mean()
        if backward:
            loss.backward()
    return counter.get_total_flops()


def tokens_of(shape: ModelShape) -> int:
    return SEQUENCES * shape.context_length


def test_every_family_is_counted() -> None:
    assert {shape.family for shape in CASES.values()} == {name for name, one in TRANSFORMERS.items() if one.objective}


@every_case
def test_the_formula_agrees_with_the_count_within_a_hundredth(shape: ModelShape) -> None:
    assert flops_per_token(shape) * tokens_of(shape) == pytest.approx(counted(shape), rel=0.01)


@every_case
def test_what_it_has_more_is_its_gains_and_biases_at_six_each(shape: ModelShape) -> None:
    """No matrix product is missing and none is counted twice: scores, router and head are all in the rest."""
    vectors = sum(parameter.numel for parameter in parameters(shape) if len(parameter.shape) == 1)
    more = flops_per_token(shape) * tokens_of(shape) - counted(shape)
    assert more == 6 * vectors * tokens_of(shape)


@every_case
def test_forward_alone_is_a_third(shape: ModelShape) -> None:
    """Which is what an evaluation is charged."""
    assert 3 * counted(shape, backward=False) == counted(shape)
