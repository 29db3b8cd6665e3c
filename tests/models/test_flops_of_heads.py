"""The FLOPs of a whole sample, for every head, against torch's own count of a forward and backward pass."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raystage.models.build import build
from raystage.models.families import FAMILIES, TRANSFORMERS
from raystage.models.shape import (
    ModelShape,
    flops_per_token,
    num_body_params,
    num_params,
    parameters,
    sample_flops,
    sample_outputs,
    token_flops,
)

SAMPLES = 2
_VIT = ModelShape("vit", 2, 192, 6, 6, 32, 768, 0, 65, image_size=32, patch_size=4, num_channels=3)
_CLASSES = {"head": "classes", "num_classes": 10}
CASES = {
    "vit, classes": replace(_VIT, **_CLASSES),
    "vit, pixels": replace(_VIT, head="pixels"),
    "vit, patches that leave a rest": replace(_VIT, image_size=30, patch_size=7, context_length=17, **_CLASSES),
    "bert, classes": ModelShape("bert", 2, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True, **_CLASSES),
    "llama, classes": ModelShape("llama", 3, 192, 6, 2, 32, 384, 500, 32, **_CLASSES),
    "mistral, classes": ModelShape("mistral", 2, 192, 6, 2, 64, 512, 384, 64, **_CLASSES),
    "qwen2, classes": ModelShape("qwen2", 2, 192, 6, 1, 32, 512, 384, 64, tied_embeddings=True, **_CLASSES),
    "qwen3, classes": ModelShape("qwen3", 2, 192, 4, 2, 16, 512, 384, 64, **_CLASSES),
    "gpt2, classes": ModelShape("gpt2", 2, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True, **_CLASSES),
    "phi, classes": ModelShape("phi", 2, 256, 4, 4, 64, 1024, 512, 64, **_CLASSES),
    "phi3, classes": ModelShape("phi3", 2, 192, 6, 2, 32, 512, 384, 64, **_CLASSES),
    "olmo2, classes": ModelShape("olmo2", 2, 192, 6, 2, 32, 512, 384, 64, **_CLASSES),
    "gpt_neox, classes": ModelShape("gpt_neox", 2, 256, 4, 4, 64, 1024, 512, 64, **_CLASSES),
    "gemma, classes": ModelShape("gemma", 2, 192, 6, 2, 32, 512, 384, 64, tied_embeddings=True, **_CLASSES),
    "gemma2, classes": ModelShape(
        "gemma2", 2, 192, 6, 2, 32, 512, 384, 64, sliding_window=64, query_pre_attn_scalar=64, **_CLASSES
    ),
    "gemma3_text, classes": ModelShape(
        "gemma3_text",
        2,
        192,
        6,
        2,
        32,
        512,
        384,
        64,
        sliding_window=64,
        query_pre_attn_scalar=64,
        local_rope_theta=1e4,
        **_CLASSES,
    ),
    "modernbert, classes": ModelShape(
        "modernbert", 4, 256, 8, 8, 32, 512, 384, 64, sliding_window=64, local_rope_theta=1e4, **_CLASSES
    ),
    "qwen3_moe, classes": ModelShape(
        "qwen3_moe", 2, 128, 4, 2, 32, 256, 384, 64, num_experts=4, experts_per_token=2, **_CLASSES
    ),
    "mixtral, classes": ModelShape(
        "mixtral", 2, 128, 4, 2, 32, 256, 384, 64, num_experts=4, experts_per_token=2, **_CLASSES
    ),
}
every_case = pytest.mark.parametrize("shape", CASES.values(), ids=CASES)


def inputs_of(shape: ModelShape) -> dict[str, torch.Tensor]:
    if shape.image_size:
        return {"pixel_values": torch.randn(SAMPLES, shape.num_channels, shape.image_size, shape.image_size)}
    tokens = torch.randint(0, shape.vocab_size, (SAMPLES, shape.context_length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@cache
def counted(shape: ModelShape, backward: bool = True) -> int:
    """FLOPs of matrix products and convolutions in a pass over some samples, attention computed as products."""
    network = build(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if shape.num_experts:
        network.set_experts_implementation("eager")  # grouped matrix products are not in the count
    inputs = inputs_of(shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        found = getattr(network(**inputs), FAMILIES[shape.family].heads[shape.head].output)
        if backward:
            found.square().mean().backward()
    return counter.get_total_flops()


def test_every_head_is_counted() -> None:
    assert {(shape.family, shape.head) for shape in CASES.values()} == {
        (name, head) for name, family in TRANSFORMERS.items() for head in family.heads
    }


@every_case
def test_a_sample_s_flops_agree_with_the_count_within_a_hundredth(shape: ModelShape) -> None:
    missing = pixels_gradient(shape)
    assert SAMPLES * sample_flops(shape, shape.context_length) - missing == pytest.approx(counted(shape), rel=0.01)


@every_case
def test_no_product_is_missing_and_none_counted_twice(shape: ModelShape) -> None:
    """The rest are gains and biases, at six for each position that they act on, and the gradient of the pixels."""
    acted_on = {"position": shape.context_length, "patch": shape.context_length - 1, "sample": 1}
    vectors = sum(acted_on[one.spec.acts_on] * one.numel for one in parameters(shape) if len(one.shape) == 1)
    more = SAMPLES * sample_flops(shape, shape.context_length) - counted(shape)
    assert more == 6 * vectors * SAMPLES + pixels_gradient(shape)


def pixels_gradient(shape: ModelShape) -> int:
    """Images are no parameters, so nobody computes their gradient: two of six of what embeds patches."""
    return (
        2 * SAMPLES * (shape.context_length - 1) * shape.units("pixel") * shape.hidden_size if shape.image_size else 0
    )


@every_case
def test_a_position_has_its_share(shape: ModelShape) -> None:
    length = shape.context_length
    assert flops_per_token(shape) == token_flops(shape, length) == sample_flops(shape, length) // length


@pytest.mark.parametrize("name", ["llama, classes", "bert, classes", "gpt2, classes"])
def test_shorter_samples_cost_less(name: str) -> None:
    shape = CASES[name]
    short = replace(shape, context_length=16)
    assert sample_flops(shape, 16) == sample_flops(short, 16)
    assert SAMPLES * sample_flops(shape, 16) == pytest.approx(counted(short), rel=0.01)


def test_a_language_model_s_sample_is_its_tokens() -> None:
    shape = ModelShape("llama", 2, 192, 6, 6, 32, 512, 384, 64)
    assert sample_flops(shape, 48) == 48 * token_flops(shape, 48)


def test_of_a_well_known_model() -> None:
    """ViT-Base at 224 pixels and 1,000 classes: 86,567,656 parameters, 17.6 GFLOPs forward (2010.11929 and torchvision,
    which counts a multiplication and an addition as one)."""
    shape = ModelShape(
        "vit", 12, 768, 12, 12, 64, 3072, 0, 197, head="classes", num_classes=1000, image_size=224, patch_size=16,
        num_channels=3,
    )  # fmt: skip
    assert num_params(shape) == 86_567_656
    assert num_body_params(shape) == 12 * 7_087_872 + 2 * 768
    assert sample_flops(shape, 197) / 6e9 == pytest.approx(17.6, abs=0.1)


@every_case
def test_what_a_model_says_of_a_sample(shape: ModelShape) -> None:
    with torch.no_grad():
        found = getattr(build(shape).apply(_drawn)(**inputs_of(shape)), FAMILIES[shape.family].heads[shape.head].output)
    assert found.numel() == SAMPLES * sample_outputs(shape, shape.context_length)


def _drawn(module: torch.nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        torch.nn.init.normal_(parameter, std=0.02)
