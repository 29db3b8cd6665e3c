"""The family tables against the real models of transformers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raystage import model
from raystage.objective import next_token_loss
from raystage.shape import ModelShape, flops_per_token, num_params, parameters

SHAPES = {
    "plain": ModelShape("llama", 3, 16, 4, 4, 4, 24, 31, 12),
    "grouped queries": ModelShape("llama", 2, 16, 4, 2, 4, 24, 31, 12),
    "heads of a size of their own": ModelShape("llama", 2, 16, 4, 1, 6, 24, 31, 12),
    "tied": ModelShape("llama", 2, 16, 4, 4, 4, 24, 31, 12, tied_embeddings=True),
    "no layers": ModelShape("llama", 0, 16, 4, 4, 4, 24, 31, 12),
    "no layers, tied": ModelShape("llama", 0, 16, 4, 4, 4, 24, 31, 12, tied_embeddings=True),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request: pytest.FixtureRequest) -> ModelShape:
    return request.param


def test_the_table_names_the_models_parameters_in_its_order(shape: ModelShape) -> None:
    real = [(name, tuple(parameter.shape)) for name, parameter in model.build(shape).named_parameters()]
    assert [(parameter.name, parameter.shape) for parameter in parameters(shape)] == real


def test_num_params_is_the_models_own_count(shape: ModelShape) -> None:
    assert num_params(shape) == sum(parameter.numel() for parameter in model.build(shape).parameters())


@pytest.mark.parametrize("num_layers", [0, 3])
def test_flops_agree_with_a_count_of_what_runs(num_layers: int) -> None:
    """Within 1 % of torch's counter, which leaves out norms and activations and counts attention whole."""
    shape = ModelShape("llama", num_layers, 64, 4, 2, 16, 192, 257, 64)
    built = model.build(shape)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    sequences = torch.randint(0, 257, (2, 65))
    built.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        next_token_loss(built, sequences).backward()
    assert counter.get_total_flops() / (2 * 64) == pytest.approx(flops_per_token(shape), rel=0.01)


def test_the_loss_is_a_sum_over_targets_in_nats() -> None:
    built = model.build(SHAPES["plain"])
    for parameter in built.parameters():
        torch.nn.init.zeros_(parameter)  # all logits equal: every target costs log(vocabulary)
    loss = next_token_loss(built, torch.zeros((3, 13), dtype=torch.int64))
    assert loss.item() == pytest.approx(3 * 12 * torch.log(torch.tensor(31.0)).item())


@pytest.mark.parametrize("name", ["plain", "no layers"])
def test_a_model_learns_whatever_its_depth(name: str) -> None:
    """Without a layer, what follows a token is learned from that token alone."""
    built = model.build(SHAPES[name])
    torch.manual_seed(0)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    sequences = (torch.arange(13) + torch.arange(31)[:, None]) % 31  # the next token is the next number
    for _ in range(100):
        optimizer.zero_grad()
        loss = next_token_loss(built, sequences) / (31 * 12)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert loss.item() < 0.5
