"""`denoising`: an image without its noise, or with the parts that are hidden (denoising autoencoders, Vincent et al.,
ICML 2008; masked image modelling as in SimMIM, 2111.09886).

The model sees an image with Gaussian noise, or with some patches grey, and is trained on the image itself. The loss of
a sample is the mean over its pixels of (answer - image)^2, where 0 is black and 1 is white; where patches are hidden it
is the mean over the hidden ones only. A pixel is one value of one channel.

The noise follows from the seed and the sample's position in the run, so it is the same for any number of workers. A
held-out sample has the same noise at every evaluation of every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystage.objectives.images import pixels_of
from raystage.objectives.learner import Answer, Arrays, Batch, Figures, Model, Reader

# Keeps these draws apart from those of other uses of a seed.
_STREAM = 0x6E6F6973
# Models see and make pixels from -1 to 1; the loss is that of pixels from 0 to 1.
_RANGE = 2.0


@dataclass(frozen=True)
class Denoising:
    """Every sample is one target. Either of the first two is None.

    noise: the standard deviation of the noise, where 0 is black and 1 is white. mask_share: the share of the patches
    that are hidden. patch_size: their height and width, in pixels.
    """

    noise: float | None
    mask_share: float | None
    patch_size: int

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        """ "seen" and "image" are float32 of shape (count, channels, height, width). Where patches are hidden, "places"
        is int64 of shape (count, pixels of the hidden patches): which pixels of a flat image they are."""
        image = pixels_of(reader.read(first, count, length)["image"])
        seeds = [_key(reader.seed, position) for position in range(first, first + count)]
        if self.mask_share is None:
            noise = np.stack([_gaussian(seed, image.shape[1:]) for seed in seeds])
            return {"seen": image + np.float32(_RANGE * self.noise) * noise, "image": image}
        places = np.stack([self._hidden(seed, image.shape[1:]) for seed in seeds])
        seen = image.reshape(count, -1).copy()
        np.put_along_axis(seen, places, np.float32(0), axis=1)
        return {"seen": seen.reshape(image.shape), "image": image, "places": places}

    def _hidden(self, seed: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
        """The pixels of the hidden patches, in order."""
        channels, height, width = shape
        rows, columns = height // self.patch_size, width // self.patch_size
        number = min(rows * columns, max(1, round(self.mask_share * rows * columns)))
        chosen = np.argsort(seed.random_raw(rows * columns), kind="stable")[:number]
        pixels = np.arange(channels * height * width).reshape(channels, rows, self.patch_size, columns, self.patch_size)
        return np.sort(pixels.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)[chosen].flatten())

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        return {"pixel_values": batch["seen"]}

    def answer(self, model: Model, batch: Batch) -> Answer:
        made = model(**self.inputs(batch)).reconstruction.float().flatten(1)
        right = batch["image"].flatten(1)
        if "places" in batch:
            made, right = made.gather(1, batch["places"]), right.gather(1, batch["places"])
        return Answer(made, right)

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return self.summed_loss(self.answer(model, batch))

    def summed_loss(self, answer: Answer) -> torch.Tensor:
        return ((answer.outputs - answer.targets) / _RANGE).square().mean(1).sum()

    def sums(self, answer: Answer) -> torch.Tensor:
        return self.summed_loss(answer).double().reshape(1)

    def figures(self, means: Sequence[float]) -> Figures:
        return Figures()


def _key(seed: int, position: int) -> np.random.Philox:
    """Raw draws of a bit generator never change between versions of NumPy (NEP 19)."""
    return np.random.Philox(key=[(seed + (_STREAM << 32)) % 2**64, position])


def _gaussian(seed: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """float32 with mean 0 and variance 1, from pairs of raw draws (Box and Muller, 1958)."""
    size = int(np.prod(shape))
    draws = seed.random_raw(2 * size).reshape(2, size)
    # In (0, 1], so that its logarithm is finite; the lowest 11 bits do not fit into a float64.
    radius = np.sqrt(-2 * np.log(((draws[0] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    return (radius * np.cos(2 * np.pi * (draws[1] * 2.0**-64))).astype(np.float32).reshape(shape)


def open_learner(noise: float | None, mask_share: float | None, patch_size: int) -> Denoising:
    return Denoising(noise, mask_share, patch_size)
