"""What the backward pass computes again, in place of keeping it: all of a layer, or what is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from raystage.config.types import SELECTIVE

_ATEN = torch.ops.aten
# Matrix products, convolutions, and attention in one kernel, of every kind that torch chooses from. Products of single
# heads (`bmm`) are not among them: where attention is no kernel of its own they make the scores of all pairs of tokens.
KEPT = [
    one.default
    for name in (
        "mm", "addmm", "_grouped_mm", "convolution", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
    )
    if (one := getattr(_ATEN, name, None)) is not None
]  # fmt: skip


def recompute(network: torch.nn.Module, mode: bool | str) -> None:
    """Let the layers of a network compute again in the backward pass what they did. mode: True for all of it,
    "selective" for all but what `KEPT` has made."""
    options: Mapping[str, Any] = {"use_reentrant": False}
    if mode == SELECTIVE:
        options = {**options, "context_fn": partial(create_selective_checkpoint_contexts, KEPT)}
    network.gradient_checkpointing_enable(options)
