"""FLOPs of a training step as torch counts them: products and convolutions, attention computed as products."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape

SAMPLES = 2
CLASSES = {"head": "classes", "num_classes": 10}
VIT = ModelShape("vit", 3, 192, 6, 6, 32, 768, 0, 65, image_size=32, patch_size=4, num_channels=3)
# Three layers each.
SHAPES = {
    "llama": ModelShape("llama", 3, 192, 6, 2, 32, 384, 500, 64),
    "llama, tied": ModelShape("llama", 3, 192, 6, 6, 32, 512, 384, 64, tied_embeddings=True),
    "gpt2": ModelShape("gpt2", 3, 256, 4, 4, 64, 1024, 512, 64),
    "bert": ModelShape("bert", 3, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True),
    "bert, classes": ModelShape("bert", 3, 256, 4, 4, 64, 1024, 512, 64, tied_embeddings=True, **CLASSES),
    "mixtral": ModelShape("mixtral", 3, 128, 4, 2, 32, 256, 384, 64, num_experts=4, experts_per_token=2),
    "olmo2": ModelShape("olmo2", 3, 192, 6, 3, 32, 512, 384, 64),
    "vit, classes": replace(VIT, **CLASSES),
}


def counted_step(network: torch.nn.Module, shape: ModelShape) -> int:
    """Of one sample, of `SAMPLES` at once: forward pass, and backward pass to what is trained of the network."""
    if shape.num_experts:
        network.set_experts_implementation("eager")  # grouped matrix products are not in the count
    inputs = {"pixel_values": torch.randn(SAMPLES, 3, shape.image_size, shape.image_size)}
    if not shape.image_size:
        tokens = torch.randint(0, shape.vocab_size, (SAMPLES, shape.context_length))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    output = FAMILIES[shape.family].heads[shape.head].output if shape.head else "logits"
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        getattr(network(**inputs), output).square().mean().backward()
    return counter.get_total_flops() // SAMPLES
