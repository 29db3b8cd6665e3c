"""`mlp`: residual layers of a multi-layer perceptron over whole images or other arrays of numbers.

All numbers of a sample become `hidden_size` units. Each layer adds norm, linear, GELU, linear to them, with `ffn_size`
units inside: a transformer's layers without attention. With the head `pixels` it is an autoencoder.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput, MaskedImageModelingOutput

from raystage.models.networks.network import Network, RmsNorm, classifier
from raystage.models.shape import ModelShape


class PerceptronBlock(torch.nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.norm = RmsNorm(shape.hidden_size, shape.norm_eps)
        self.up = torch.nn.Linear(shape.hidden_size, shape.ffn_size)
        self.down = torch.nn.Linear(shape.ffn_size, shape.hidden_size)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.down(functional.gelu(self.up(self.norm(stream))))


class Mlp(Network):
    """Called with `pixel_values`: (samples, channels, height, width).

    Answers with `logits` (samples, classes), or with `reconstruction`, of the shape of the images.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.stem = torch.nn.Linear(shape.units("pixel"), shape.hidden_size)
        self.layers = torch.nn.ModuleList(PerceptronBlock(shape) for _ in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.norm_eps)
        if shape.head == "classes":
            self.classifier = classifier(shape.hidden_size, shape.num_classes)
        else:
            self.decoder = torch.nn.Linear(shape.hidden_size, shape.units("pixel"))

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput | MaskedImageModelingOutput:
        numbers = pixel_values.flatten(1).to(self.stem.weight.dtype)
        states = self.norm(self.through_layers(self.stem(numbers)))
        if hasattr(self, "classifier"):
            return ImageClassifierOutput(logits=self.classifier(states))
        return MaskedImageModelingOutput(reconstruction=self.decoder(states).view_as(pixel_values))


def build(shape: ModelShape) -> Mlp:
    return Mlp(shape)
