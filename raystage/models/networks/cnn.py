"""`cnn`: a residual convolutional network with batch norm (ResNet with pre-activation, He et al., 1603.05027).

A 3 x 3 convolution with the stride `patch_size` makes `hidden_size` channels of an image. Each layer adds norm, ReLU,
convolution, norm, ReLU, convolution to them, with `ffn_size` channels inside. All layers have the same size, as in an
isotropic network (ConvMixer, 2201.09792), so that any layer can stand in the place of any other.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput, MaskedImageModelingOutput

from raystage.models.networks.network import Network, classifier
from raystage.models.shape import ModelShape

# The share of a step's statistics in the running ones, as in torch.
_MOMENTUM = 0.1


class BatchNorm(torch.nn.Module):
    """Normalises every channel, in fp32: by a micro batch's statistics in training, else by the running ones.

    Running statistics are buffers. A training step takes the mean of those of all its micro batches
    (`train.statistics`).
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normed = functional.batch_norm(
            images.to(self.running_mean.dtype), self.running_mean, self.running_var,
            self.weight.to(self.running_mean.dtype), self.bias.to(self.running_mean.dtype), self.training, _MOMENTUM,
            self.eps,
        )  # fmt: skip
        return normed.to(images.dtype)


def _convolution(source: int, target: int, stride: int = 1) -> torch.nn.Conv2d:
    made = torch.nn.Conv2d(source, target, 3, stride, padding=1, bias=False)
    torch.nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class ConvolutionBlock(torch.nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.norm1 = BatchNorm(shape.hidden_size, shape.norm_eps)
        self.conv1 = _convolution(shape.hidden_size, shape.ffn_size)
        self.norm2 = BatchNorm(shape.ffn_size, shape.norm_eps)
        self.conv2 = _convolution(shape.ffn_size, shape.hidden_size)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        inside = self.conv1(functional.relu(self.norm1(stream)))
        return stream + self.conv2(functional.relu(self.norm2(inside)))


class Cnn(Network):
    """Called with `pixel_values`: (samples, channels, height, width).

    Answers with `logits` (samples, classes), or with `reconstruction`, of the shape of the images.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.stem = _convolution(shape.num_channels, shape.hidden_size, shape.patch_size)
        self.layers = torch.nn.ModuleList(ConvolutionBlock(shape) for _ in range(shape.num_layers))
        self.norm = BatchNorm(shape.hidden_size, shape.norm_eps)
        if shape.head == "classes":
            self.classifier = classifier(shape.hidden_size, shape.num_classes)
        else:
            self.decoder = torch.nn.Conv2d(shape.hidden_size, shape.units("pixel"), 1)
            self._patch_size = shape.patch_size

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput | MaskedImageModelingOutput:
        images = pixel_values.to(self.stem.weight.dtype)
        states = functional.relu(self.norm(self.through_layers(self.stem(images))))
        if hasattr(self, "classifier"):
            return ImageClassifierOutput(logits=self.classifier(states.mean((-2, -1))))
        return MaskedImageModelingOutput(
            reconstruction=functional.pixel_shuffle(self.decoder(states), self._patch_size)
        )


def build(shape: ModelShape) -> Cnn:
    return Cnn(shape)
