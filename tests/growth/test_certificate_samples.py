"""What a classifier and a denoiser answer to samples: the residual stream without padding, and their own gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled import CLASSES, PATCH, image_model, images, tensors, text_model, texts

from raystage.growth.certificate import Answers, Question, answers, hearing
from raystage.objectives.classification import Classification
from raystage.objectives.denoising import Denoising
from raystage.objectives.learner import Batch, Judge

LAYERS = 2
CLASSIFIER, DENOISER = Classification(CLASSES), Denoising(0.3, None, PATCH)
CASES = {
    "image classes": (CLASSIFIER, image_model, images()),
    "text classes": (CLASSIFIER, lambda: text_model("bert"), texts()),
    "pixels": (DENOISER, lambda: image_model("pixels"), images()),
}


def question_of(judge: Judge, batch: Batch) -> Question:
    def question(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        answer = judge.answer(network, batch)
        return answer.outputs, judge.summed_loss(answer) / len(answer.outputs)

    return question


def asked(name: str) -> tuple[Answers, torch.nn.Module, Judge, Batch]:
    judge, make, samples = CASES[name]
    network, batch = make(), tensors(judge, samples)
    valid = judge.inputs(batch).get("attention_mask")
    return answers(network, question_of(judge, batch), LAYERS, valid), network, judge, batch


@pytest.mark.parametrize("name", CASES)
def test_the_stream_and_the_gradients_are_those_of_torch(name: str) -> None:
    found, network, judge, batch = asked(name)
    assert not any(one.grad is not None for one in network.parameters())
    answer = judge.answer(network, batch)
    np.testing.assert_allclose(found.logits, answer.outputs.detach().numpy(), atol=1e-6)
    (judge.summed_loss(answer) / len(answer.outputs)).backward()
    for parameter, sketch in found.gradients.items():
        gradient = dict(network.named_parameters())[parameter].grad.numpy()
        rows = gradient.reshape(-1, gradient.shape[-1])
        np.testing.assert_allclose(sketch.values, rows[sketch.rows][:, sketch.columns], atol=1e-7)
    assert len(found.gradients) >= len(list(network.parameters())) - 1  # ViT's mask token is not used
    states = network(**judge.inputs(batch), output_hidden_states=True).hidden_states
    is_real = batch["mask"].bool() if "mask" in batch else torch.ones(states[1].shape[:2], dtype=torch.bool)
    assert found.activation_rms[0] == pytest.approx(states[1][is_real].square().mean().sqrt().item(), rel=1e-5)
    assert len(found.activation_rms) == LAYERS
    again = Answers.from_tensors(found.to_tensors())
    assert again.activation_rms == found.activation_rms


def test_a_model_with_another_head_is_heard_on_the_same_samples() -> None:
    """The body of a denoiser under a head for classes: the same stream, though it says something else."""
    found, denoiser, judge, batch = asked("pixels")
    classifier, heard = image_model(), {}
    body = {name: one for name, one in denoiser.vit.state_dict().items() if "mask_token" not in name}
    classifier.vit.load_state_dict(body)
    with torch.no_grad(), hearing(classifier, LAYERS, None, heard):
        assert classifier(**judge.inputs(batch)).logits.shape == (24, len(CLASSES))
    assert tuple(heard.values()) == pytest.approx(found.activation_rms)


class _Passing(torch.nn.Module):
    """A model of one layer that passes its states on in some form."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Identity()])

    def forward(self, states: object) -> None:
        self.layers[0](states)


STATES, VALID = torch.arange(1.0, 31.0).reshape(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("states", "counted"),
    [
        (STATES, STATES[VALID > 0]),
        (STATES.transpose(1, 2), STATES[VALID > 0]),  # channels first, as of convolutions
        (STATES.transpose(0, 1), STATES),  # positions first
        ({"states": STATES}, None),
    ],
    ids=["usual", "channels first", "positions first", "by name"],
)
def test_layers_are_heard_as_far_as_their_positions_are_known(states: object, counted: torch.Tensor | None) -> None:
    network, heard = _Passing(), {}
    with hearing(network, 1, VALID, heard):
        network(states)
    assert heard == ({} if counted is None else {0: pytest.approx(counted.square().mean().sqrt().item())})
