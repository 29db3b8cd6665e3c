"""The FLOPs that frozen parameters save, against torch's own count of a forward and backward pass without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flop_counts import CLASSES, VIT, counted_step
from flop_counts import SHAPES as SHARED

from raystage.models.build import build
from raystage.models.depth import depths, rates_by_depth, saved_flops
from raystage.models.shape import ModelShape, parameters, sample_flops

SHAPES = {
    **SHARED,
    "modernbert": ModelShape(
        "modernbert", 3, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True, sliding_window=64, local_rope_theta=1e4
    ),
    "gemma2": ModelShape("gemma2", 3, 256, 4, 4, 64, 512, 512, 64, sliding_window=64, query_pre_attn_scalar=64),
    "phi": ModelShape("phi", 3, 256, 8, 4, 32, 1024, 384, 64),
    "vit, pixels": replace(VIT, head="pixels"),
    "cnn, classes": ModelShape(
        "cnn", 3, 128, 0, 0, 0, 128, 0, 256, image_size=16, patch_size=1, num_channels=3, **CLASSES
    ),
}
# Of a parameter's name and depth in a model of three layers: whether it is frozen.
FROZEN: dict[str, Callable[[str, int], bool]] = {
    "all but the head": lambda name, depth: depth < 3,
    "all but the last layer and the head": lambda name, depth: depth < 2,
    "what is below the layers": lambda name, depth: depth < 0,
    "the lower two layers, not the embeddings": lambda name, depth: depth in (0, 1),
    "the last layer": lambda name, depth: depth == 2,
    "the head": lambda name, depth: depth == 3,
    "the middle layer and what is below the layers": lambda name, depth: depth in (-1, 1),
    "all projections in the layers": lambda name, depth: "proj" in name or "attn" in name,
}


def counted(shape: ModelShape, frozen: frozenset[str]) -> int:
    """FLOPs of products and convolutions, attention computed as products."""
    network = build(shape)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.requires_grad = name not in frozen
    return counted_step(network, shape)


@pytest.mark.parametrize("which", FROZEN)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_is_left_agrees_with_the_count(shape: ModelShape, which: str) -> None:
    frozen = frozenset(name for name, depth in depths(shape).items() if FROZEN[which](name, depth))
    left = sample_flops(shape, shape.context_length) - saved_flops(shape, frozen, shape.context_length)
    assert left == pytest.approx(counted(shape, frozen), rel=0.015)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nothing_frozen_saves_nothing_and_more_frozen_saves_more(shape: ModelShape) -> None:
    length, names = shape.context_length, [one.name for one in parameters(shape)]
    saved = [saved_flops(shape, frozenset(names[:count]), length) for count in range(len(names))]
    assert saved[0] == 0
    assert saved == sorted(saved)
    # The forward pass is a third, and is never saved.
    assert saved[-1] <= sample_flops(shape, length) * 2 / 3


def test_depths_and_the_rates_that_follow() -> None:
    found = depths(SHAPES["bert, classes"])
    assert {name: depth for name, depth in found.items() if "LayerNorm.bias" in name} == {
        "bert.embeddings.LayerNorm.bias": -1,
        **{f"bert.encoder.layer.{layer}.{part}.LayerNorm.bias": layer
           for layer in range(3) for part in ("attention.output", "output")},
    }  # fmt: skip
    assert (found["bert.embeddings.word_embeddings.weight"], found["classifier.weight"]) == (-1, 3)
    rates = rates_by_depth(SHAPES["bert, classes"], 0.5)
    assert {depth: rates[name] for name, depth in found.items()} == {-1: 0.125, 0: 0.25, 1: 0.5, 2: 1.0, 3: 1.0}
