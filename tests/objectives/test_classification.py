"""Classes of texts and images: padding of any kind, and figures as scikit-learn computes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from labelled import CLASSES, LONGEST, image_model, images, tensors, text_model, texts
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch.nn import functional

from raystage.objectives.classification import MOST_CLASSES_SHOWN, Classification, scores_of
from raystage.objectives.judging import halves
from raystage.objectives.learner import Answer

FAMILIES = ("bert",)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_of_any_kind_changes_no_answer(family: str) -> None:
    """A text in a batch is answered as alone and without padding, by transformers itself, whatever the padding is."""
    learner, network = Classification(CLASSES), text_model(family)
    for fill in (0, 7):
        samples = texts(fill=fill)
        with torch.no_grad():
            answer = learner.answer(network, tensors(learner, samples))
            for row, size in enumerate(samples.arrays["mask"].sum(1)):
                alone = torch.from_numpy(samples.arrays["tokens"][row : row + 1, :size])
                assert torch.allclose(answer.outputs[row], network(input_ids=alone).logits[0], atol=1e-5)
        assert answer.targets.tolist() == samples.arrays["label"].tolist()
    assert samples.arrays["mask"].sum(1).min() == 1
    assert samples.arrays["mask"].sum(1).max() == LONGEST


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_has_no_gradient(family: str) -> None:
    learner, network = Classification(CLASSES), text_model(family)
    found = []
    for fill in (0, 7):
        network.zero_grad()
        learner.loss(network, tensors(learner, texts(fill=fill))).backward()
        found.append([one.grad for one in network.parameters() if one.grad is not None])
        assert all(one.isfinite().all() for one in found[-1])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


def test_an_image_is_seen_from_minus_one_to_one() -> None:
    learner, network, samples = Classification(CLASSES), image_model(), images()
    batch = tensors(learner, samples)
    assert batch["image"].dtype == torch.float32
    assert (batch["image"].min().item(), batch["image"].max().item()) == (-1, 1)
    seen = torch.from_numpy(samples.arrays["image"]).float() / 255 * 2 - 1
    label = torch.from_numpy(samples.arrays["label"])
    with torch.no_grad():
        theirs = network(pixel_values=seen, labels=label)
        assert learner.loss(network, batch).item() == pytest.approx(24 * theirs.loss.item(), rel=1e-5)
    in_range = type(samples)({**samples.arrays, "image": seen.numpy()})
    assert torch.equal(tensors(learner, in_range)["image"], seen)


def test_smoothing_is_of_the_training_loss_alone() -> None:
    plain, smooth, network = Classification(CLASSES), Classification(CLASSES, 0.2), image_model()
    batch = tensors(plain, images())
    answer = plain.answer(network, batch)
    expected = functional.cross_entropy(answer.outputs, answer.targets, label_smoothing=0.2, reduction="sum")
    assert smooth.loss(network, batch).item() == pytest.approx(expected.item())
    assert smooth.loss(network, batch).item() != pytest.approx(plain.loss(network, batch).item(), rel=1e-3)
    assert torch.equal(smooth.sums(answer), plain.sums(answer))


def answers(count: int, seed: int, classes: int, never: tuple[int, ...] = ()) -> Answer:
    """never: classes that are neither right nor answered."""
    random = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, classes, generator=random)
    outputs[:, list(never)] = -9
    targets = torch.randint(classes, (count,), generator=random)
    for one in never:
        targets[targets == one] = (one + 1) % classes
    return Answer(outputs, targets)


@pytest.mark.parametrize(("count", "never"), [(500, ()), (500, (2,)), (4, ())])
def test_the_figures_are_those_of_scikit_learn(count: int, never: tuple[int, ...]) -> None:
    """Of four samples some class is never right, another one never answered."""
    names = tuple("abcdefg")
    judge, answer = Classification(names), answers(count, 0, 7, never)
    parts = [Answer(answer.outputs[part::3], answer.targets[part::3]) for part in range(3)]  # of three workers
    means = sum(judge.sums(part) for part in parts) / count
    figures = judge.figures(means.tolist())
    right, said = answer.targets.numpy(), answer.outputs.argmax(-1).numpy()
    assert figures.accuracy == pytest.approx(accuracy_score(right, said))
    assert means[0].item() == pytest.approx(functional.cross_entropy(answer.outputs, answer.targets).item())
    there = sorted({*right, *said})
    theirs = precision_recall_fscore_support(right, said, labels=there, zero_division=0)[:3]
    macro = precision_recall_fscore_support(right, said, average="macro", zero_division=0)[:3]
    expected = {}
    for kind, values, mean in zip(("precision", "recall", "f1"), theirs, macro, strict=True):
        expected |= {f"{kind}/{names[one]}": value for one, value in zip(there, values, strict=True)}
        expected[f"macro_{kind}"] = mean
    assert figures.metrics == pytest.approx(expected)


def test_of_very_many_classes_only_the_means_are_reported() -> None:
    names = [str(number) for number in range(MOST_CLASSES_SHOWN + 1)]
    found = scores_of(np.eye(len(names)), names)
    assert found == {"macro_precision": 1, "macro_recall": 1, "macro_f1": 1}
    assert len(scores_of(np.eye(2), ("yes", "no"))) == 9


def test_the_halves_add_up() -> None:
    judge, answer = Classification(CLASSES), answers(10, 1, 3)
    loss = judge.sums(answer)[0]
    first, second = halves(judge, answer, loss, 4).tolist()
    assert first == pytest.approx(functional.cross_entropy(answer.outputs[:4], answer.targets[:4], reduction="sum"))
    assert first + second == pytest.approx(loss.item())
    assert not math.isclose(first, second)
