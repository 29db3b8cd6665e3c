"""The family tables against the real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growths import SOURCES, tiny
from raystage.models import build as model
from raystage.models.families import FAMILIES, TRANSFORMERS
from raystage.models.shape import ModelShape, buffers, flops_per_token, num_params, parameters
from raystage.objectives.causal_lm import CausalLm
from raystage.train.state.buffers import persistent_buffers

SHAPES = {
    **SOURCES,
    "heads of a size of their own": tiny("llama", num_kv_heads=1, head_size=6),
    "tied mixture": tiny("mixtral", tied_embeddings=True),
    **{
        f"{family} without layers": tiny(family, num_layers=0)
        for family, table in FAMILIES.items()
        if table.layer and not table.fewest_layers
    },
    "tied without layers": tiny("llama", num_layers=0, tied_embeddings=True),
}

OF_TRANSFORMERS = {name: shape for name, shape in SHAPES.items() if shape.family in TRANSFORMERS}

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@every_shape
def test_the_table_names_the_models_parameters_in_its_order(shape: ModelShape) -> None:
    real = [(name, tuple(parameter.shape)) for name, parameter in model.build(shape).named_parameters()]
    assert [(parameter.name, parameter.shape) for parameter in parameters(shape)] == real


@every_shape
def test_num_params_is_the_models_own_count(shape: ModelShape) -> None:
    assert num_params(shape) == sum(parameter.numel() for parameter in model.build(shape).parameters())


@every_shape
def test_the_table_names_the_models_buffers(shape: ModelShape) -> None:
    real = [(name, tuple(one.shape)) for name, one in persistent_buffers(model.build(shape))]
    assert [(one.name, one.shape) for one in buffers(shape)] == real


@pytest.mark.parametrize("shape", OF_TRANSFORMERS.values(), ids=OF_TRANSFORMERS)
def test_the_configuration_says_the_shape(shape: ModelShape) -> None:
    """Under transformers' own names, and nothing is dropped at random."""
    config = model.config(shape)
    family = FAMILIES[shape.family]
    assert config.model_type == shape.family
    for field, (key, _) in family.fields.items():
        assert getattr(config, key) == getattr(shape, field)
    for key, field in family.heads[shape.head].sets.items() if shape.head else ():
        assert getattr(config, key) == getattr(shape, field)
    assert not any(value for key, value in config.to_dict().items() if "dropout" in key and isinstance(value, float))


@pytest.mark.parametrize("num_layers", [0, 3])
@pytest.mark.parametrize("family", [name for name, one in TRANSFORMERS.items() if one.objective])
def test_flops_agree_with_a_count_of_what_runs(family: str, num_layers: int) -> None:
    """Torch's counter leaves out norms and biases, whose parameters count among the six; it counts attention whole.
    Of a mixture every expert runs for the tokens that chose it: two of four for each."""
    shape = replace(
        tiny(family), num_layers=num_layers, hidden_size=64, head_size=16, ffn_size=192, vocab_size=257,
        context_length=64,
    )  # fmt: skip
    shape = replace(shape, sliding_window=64) if shape.sliding_window else shape
    shape = replace(shape, num_layers=max(num_layers, FAMILIES[family].fewest_layers))
    built = model.build(shape)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    built.set_attn_implementation("eager")
    if shape.num_experts:
        built.set_experts_implementation("eager")  # the counter does not know grouped products
    with FlopCounterMode(display=False) as counter:
        built(input_ids=torch.randint(0, 257, (2, 64))).logits.sum().backward()
    vectors = sum(parameter.numel for parameter in parameters(shape) if len(parameter.shape) == 1)
    assert counter.get_total_flops() / (2 * 64) + 6 * vectors == flops_per_token(shape)


def test_the_loss_is_a_sum_over_targets_in_nats() -> None:
    built = model.build(SHAPES["llama"])
    for parameter in built.parameters():
        torch.nn.init.zeros_(parameter)  # all logits equal: every target costs log(vocabulary)
    loss = CausalLm().loss(built, {"tokens": torch.zeros((3, 13), dtype=torch.int64)})
    assert loss.item() == pytest.approx(3 * 12 * torch.log(torch.tensor(31.0)).item())


@pytest.mark.parametrize("name", ["llama without groups", "llama without layers", "gpt2", "mixtral"])
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
        loss = CausalLm().loss(built, {"tokens": sequences}) / (31 * 12)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert loss.item() < 0.5
