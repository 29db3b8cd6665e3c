"""Noise and hidden patches: from the seed and the position, the same in any reading; and the loss, written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled import PATCH, SIDE, held_out_of, image_model, images, tensors

from raystage.objectives.denoising import Denoising
from raystage.objectives.images import pixels_of

NOISE, MASK = Denoising(0.3, None, PATCH), Denoising(None, 0.5, PATCH)


@pytest.mark.parametrize("learner", [NOISE, MASK])
def test_any_reading_in_parts_has_the_same_noise(learner: Denoising) -> None:
    whole = learner.batch(images(), 0, 24, 1)
    for first, count in ((0, 7), (7, 1), (8, 16)):
        for name, values in learner.batch(images(), first, count, 1).items():
            np.testing.assert_array_equal(values, whole[name][first : first + count])
    assert learner.num_targets(images(), 0, 24, 1) == 24
    np.testing.assert_array_equal(whole["image"], pixels_of(images().arrays["image"]))


@pytest.mark.parametrize("learner", [NOISE, MASK])
def test_every_position_and_seed_has_noise_of_its_own(learner: Denoising) -> None:
    one = images()
    same = replace(one, arrays={"image": np.repeat(one.arrays["image"][:1], 24, axis=0)})
    seen = learner.batch(same, 0, 24, 1)["seen"]
    # Of 4 patches, two are hidden: 6 choices.
    assert len({row.tobytes() for row in seen}) == (24 if learner is NOISE else 6)
    assert (learner.batch(replace(same, seed=4), 0, 24, 1)["seen"] != seen).any()


def test_the_noise_is_normal_and_as_large_as_asked() -> None:
    """The standard deviation is 0.3 where 0 is black and 1 is white: 0.6 where black is -1."""
    batch = NOISE.batch(images(400), 0, 400, 1)
    noise = (batch["seen"] - batch["image"]).flatten()
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.6, rel=0.01)
    shares = [np.mean(np.abs(noise) < 0.6 * border) for border in (0.5, 1, 2, 3)]
    assert shares == pytest.approx([0.3829, 0.6827, 0.9545, 0.9973], abs=0.005)
    neighbours = noise[1:] * noise[:-1]
    assert neighbours.mean() == pytest.approx(0, abs=0.005)


def test_whole_patches_are_hidden_in_grey_and_no_others() -> None:
    batch = MASK.batch(images(), 0, 24, 1)
    is_hidden = (batch["seen"] == 0) & (batch["image"] != 0)
    patches = is_hidden.reshape(24, 3, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).transpose(0, 2, 4, 1, 3, 5)
    by_patch = patches.reshape(24, 4, -1)
    assert by_patch.all(-1).sum() == by_patch.any(-1).sum() == 48
    assert (by_patch.all(-1).sum(1) == 2).all()
    for row, places in enumerate(batch["places"]):
        np.testing.assert_array_equal(np.flatnonzero(is_hidden[row]), places)
    np.testing.assert_array_equal(batch["seen"][~is_hidden], batch["image"][~is_hidden])


@pytest.mark.parametrize(("share", "hidden"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.99, 4)])
def test_at_least_one_patch_is_hidden(share: float, hidden: int) -> None:
    assert Denoising(None, share, PATCH).batch(images(), 0, 2, 1)["places"].shape == (2, hidden * 3 * PATCH * PATCH)


@pytest.mark.parametrize("learner", [NOISE, MASK])
def test_the_loss_written_out(learner: Denoising) -> None:
    """By sample the mean square over the pixels that count, where black is 0 and white is 1."""
    network, batch = image_model("pixels"), tensors(learner, images())
    with torch.no_grad():
        made = network(pixel_values=batch["seen"]).reconstruction
        loss = learner.loss(network, batch).item()
    wrong = ((made + 1) / 2 - torch.from_numpy(images().arrays["image"]) / 255).square().flatten(1)
    counts = torch.ones_like(wrong)
    if learner is MASK:
        counts = (batch["seen"] != batch["image"]).flatten(1).float()
    expected = ((wrong * counts).sum(1) / counts.sum(1)).sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)
    answer = learner.answer(network, batch)
    assert learner.sums(answer).tolist() == pytest.approx([loss])
    figures = learner.figures([loss / 24])
    assert (figures.accuracy, figures.metrics) == (None, {})


@pytest.mark.parametrize("learner", [NOISE, MASK])
def test_held_out_images_have_the_same_noise_in_every_run(learner: Denoising) -> None:
    held_out = held_out_of(images())
    assert (held_out.count, held_out.length, held_out.seed) == (24, 1, 0)
    one, other = (learner.batch(held_out, 3, 5, held_out.length) for _ in range(2))
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize("learner", [NOISE, MASK])
def test_a_small_vit_learns_to_denoise(learner: Denoising) -> None:
    """Better than the best single grey, which is what can be said without looking at the image."""
    samples = images(24)
    shaded = np.linspace(0, 255, 24)[:, None, None, None] * np.ones((1, 3, SIDE, SIDE))
    samples = replace(samples, arrays={"image": shaded.astype(np.uint8)})
    network, batch = image_model("pixels"), tensors(learner, samples)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = learner.loss(network, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() / 24 < 0.2 * float((shaded / 255).var())
