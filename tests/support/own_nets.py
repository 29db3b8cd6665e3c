"""Modules as users write them, for `family: module`: they know nothing of raystage."""

from __future__ import annotations

import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        past = stream.cumsum(1) / torch.arange(1, stream.shape[1] + 1, device=stream.device)[:, None]
        return stream + self.down(nn.functional.silu(self.up(self.norm(stream + past))))


class Reader(nn.Module):
    """Says of every token which one comes next, from the mean of those before."""

    def __init__(self, width: int, inner: int, depth: int, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Gated(width, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        stream = self.embed(input_ids)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


class Convolutions(nn.Module):
    """Says which class an image is of. Its batch norms have buffers, one of them a whole number."""

    def __init__(self, width: int, depth: int, num_classes: int, num_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(num_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(depth)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        stream = self.stem(pixel_values)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean((-2, -1)))


class Causal(nn.Module):
    """A convolution over earlier positions, of (samples, channels, length), times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(width, width, 3)
        self.gain = nn.Parameter(torch.tensor([0.5]))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.gain * torch.relu(self.conv(nn.functional.pad(self.norm(stream), (2, 0))))


class Temporal(nn.Module):
    """Says of every token which one comes next, by convolutions."""

    def __init__(self, width: int, depth: int, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.levels = nn.ModuleList(Causal(width) for _ in range(depth))
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        stream = self.embed(tokens).transpose(1, 2)
        for level in self.levels:
            stream = level(stream)
        return self.head(stream.transpose(1, 2))


def reader(vocab_size: int, width: int = 8, inner: int = 16, depth: int = 1) -> Reader:
    return Reader(width, inner, depth, vocab_size)


def convolutions(num_classes: int, num_channels: int, width: int = 4, depth: int = 1) -> Convolutions:
    return Convolutions(width, depth, num_classes, num_channels)


def temporal(vocab_size: int, width: int = 8, depth: int = 1) -> Temporal:
    return Temporal(width, depth, vocab_size)
