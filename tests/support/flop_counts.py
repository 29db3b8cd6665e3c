"""FLOPs of a training step as torch counts them: products and convolutions, attention computed as products."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape


def counted_step(network: torch.nn.Module, shape: ModelShape, samples: int) -> int:
    """Of one sample: forward pass, and backward pass to what is trained of the network. samples: how many at once."""
    if shape.num_experts:
        network.set_experts_implementation("eager")  # grouped matrix products are not in the count
    inputs = {"pixel_values": torch.randn(samples, 3, shape.image_size, shape.image_size)}
    if not shape.image_size:
        tokens = torch.randint(0, shape.vocab_size, (samples, shape.context_length))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    output = FAMILIES[shape.family].heads[shape.head].output if shape.head else "logits"
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        getattr(network(**inputs), output).square().mean().backward()
    return counter.get_total_flops() // samples
