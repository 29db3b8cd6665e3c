"""The networks of raystage's own: what they compute, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growths import SOURCES
from networks import NETWORKS, SAMPLES, inputs_of, said
from raystage.models.build import build, drawn_weights
from raystage.models.shape import ModelShape, parameters, sample_flops, sample_outputs

every_network = pytest.mark.parametrize("shape", NETWORKS.values(), ids=NETWORKS)


@every_network
def test_flops_are_those_of_a_forward_pass_three_times(shape: ModelShape) -> None:
    """But for the gains and biases, at six for each position that they act on."""
    network = build(shape).eval().to("meta")  # where fused kernels, which the counter does not know, are not used
    with FlopCounterMode(display=False) as counter:
        network(**{name: one.to("meta") for name, one in inputs_of(shape).items()})
    acted_on = {"position": shape.context_length, "sample": 1}
    vectors = sum(acted_on[one.spec.acts_on] * one.numel for one in parameters(shape) if len(one.shape) == 1)
    assert sample_flops(shape, shape.context_length) - 6 * vectors == 3 * counter.get_total_flops() // SAMPLES


@every_network
def test_what_it_says_of_a_sample(shape: ModelShape) -> None:
    found = said(build(shape).eval(), shape)
    assert found.numel() == len(found) * sample_outputs(shape, shape.context_length)
    if shape.head == "pixels":
        assert found.shape == inputs_of(shape)["pixel_values"].shape


@every_network
def test_initial_weights_follow_from_the_seed(shape: ModelShape) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (drawn_weights(shape, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputed_activations_change_nothing(shape: ModelShape, dtype: torch.dtype) -> None:
    gradients = []
    for recomputes in (False, True):
        network = build(shape, dtype)
        network.load_state_dict(drawn_weights(shape, 1))
        if recomputes:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        said(network.train(), shape).float().square().mean().backward()
        gradients.append({name: one.grad for name, one in network.named_parameters()})
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one)


def test_an_lstm_computes_what_torch_s_own_does() -> None:
    shape = replace(SOURCES["lstm"], num_layers=1)
    cells = build(shape).layers[0].lstm
    torch.nn.init.normal_(cells.bias)
    theirs = torch.nn.LSTM(shape.hidden_size, shape.ffn_size, batch_first=True)
    with torch.no_grad():
        for name, values in (("weight_ih_l0", cells.weight_ih), ("weight_hh_l0", cells.weight_hh),
                             ("bias_ih_l0", cells.bias), ("bias_hh_l0", torch.zeros_like(cells.bias))):  # fmt: skip
            getattr(theirs, name).copy_(values)
        stream = torch.randn(2, 7, shape.hidden_size)
        torch.testing.assert_close(cells(stream), theirs(stream)[0])


def test_a_text_s_class_follows_from_its_last_token() -> None:
    shape = SOURCES["lstm classes"]
    network = build(shape).eval()
    torch.nn.init.normal_(network.classifier.weight)
    tokens, mask = torch.randint(0, 31, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    with torch.no_grad():
        both = network(input_ids=tokens, attention_mask=mask).logits
        alone = network(input_ids=tokens[1:, :5]).logits
    torch.testing.assert_close(both[1:], alone)


def test_a_batch_norm_is_torch_s_own() -> None:
    network = build(SOURCES["cnn"])
    ours, theirs = network.norm, torch.nn.BatchNorm2d(16)
    images = torch.randn(4, 16, 5, 5) * 3 + 1
    torch.testing.assert_close(ours(images), theirs(images))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
