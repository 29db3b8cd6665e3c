"""What the networks of this folder have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


class Network(torch.nn.Module):
    """A stack of `layers`, each of which adds to the residual stream.

    Called like a model of transformers, and answers in its types.
    """

    layers: torch.nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self._recomputes: dict[str, Any] | None = None

    def gradient_checkpointing_enable(self, options: dict[str, Any] | None = None) -> None:
        """Compute each layer a second time in the backward pass, in place of keeping what is inside it."""
        self._recomputes = options or {}

    def through_layers(self, stream: torch.Tensor) -> torch.Tensor:
        recomputes = self._recomputes is not None and self.training
        for layer in self.layers:
            stream = checkpoint(layer, stream, **self._recomputes) if recomputes else layer(stream)
        return stream


class RmsNorm(torch.nn.RMSNorm):
    """Over the last axis, in fp32 at least."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        exact = stream.to(torch.promote_types(stream.dtype, torch.float32))
        normed = torch.nn.functional.rms_norm(exact, self.normalized_shape, None, self.eps)
        return normed.to(stream.dtype) * self.weight


def classifier(hidden_size: int, num_classes: int) -> torch.nn.Linear:
    """The scores of classes, which start at zero: every class is as probable as any other."""
    made = torch.nn.Linear(hidden_size, num_classes)
    torch.nn.init.zeros_(made.weight)
    torch.nn.init.zeros_(made.bias)
    return made
