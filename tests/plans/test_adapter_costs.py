"""What training an adapter costs, against torch's own count of a forward and backward pass with peft's layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flop_counts import SHAPES as SHARED
from flop_counts import counted_step

from growths import tiny
from raystage.config.stages.adapter import Adapter
from raystage.models.build import build
from raystage.models.families import TRANSFORMERS
from raystage.models.shape import ModelShape, num_params, parameters
from raystage.plans.adapters import AdapterPlan, find_adapter
from raystage.plans.initial import unit_flops
from raystage.train.state.adapters import named_parameters, put_on, without

SHAPES = {**SHARED, "phi3": ModelShape("phi3", 3, 192, 6, 3, 32, 512, 384, 64)}
# The families' own names of: all matrices; queries and values; what comes out of the feed-forward part; one layer.
NAMES = {
    "llama": (["q_proj", "v_proj"], ["down_proj"], ["model.layers.1.*"]),
    "gpt2": (["c_attn"], ["mlp.c_proj"], ["transformer.h.1.*"]),
    "bert": (["query", "value"], ["*.layer.?.output.dense"], ["*.layer.1.*"]),
    "mixtral": (["q_proj", "v_proj"], ["o_proj"], ["*.layers.1.*"]),
    "phi3": (["qkv_proj"], ["down_proj"], ["model.layers.1.*"]),
    "vit": (["q_proj", "v_proj"], ["fc2"], ["*.layers.1.*"]),
}
CASES = {
    f"{name}, {which}": (shape, on)
    for name, shape in SHAPES.items()
    for which, on in zip(
        ("all matrices", "queries and values", "out of the layer", "the middle layer"),
        ([], *NAMES.get(shape.family, NAMES["llama"])), strict=True)
}  # fmt: skip


def adapter_of(shape: ModelShape, on: list[str], before: ModelShape | None = None, rank: int = 8) -> AdapterPlan:
    lora = {"rank": rank, **({"on": on} if on else {})}
    return find_adapter(Adapter.model_validate({"lora": lora}), before or shape, shape)


def counted(shape: ModelShape, adapter: AdapterPlan) -> int:
    """FLOPs of the products of a sample, attention computed as products."""
    network = build(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    put_on(network, adapter, shape)
    return counted_step(network, shape)


@pytest.mark.parametrize("case", CASES)
def test_a_step_with_an_adapter_agrees_with_the_count(case: str) -> None:
    shape, on = CASES[case]
    adapter, length = adapter_of(shape, on), shape.context_length
    found = unit_flops(shape, None, length, "samples", adapter.frozen(shape), adapter)
    assert found == pytest.approx(counted(shape, adapter), rel=0.02)


def test_a_new_head_is_trained_in_full_and_counted_so() -> None:
    shape = SHAPES["bert, classes"]
    adapter = adapter_of(shape, ["query"], replace(shape, head="", num_classes=0))
    assert adapter.in_full == ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
                               "classifier.bias")  # fmt: skip
    found = unit_flops(shape, None, 64, "samples", adapter.frozen(shape), adapter)
    assert found == pytest.approx(counted(shape, adapter), rel=0.02)


def test_the_backward_pass_of_a_small_adapter_costs_half_of_that_of_the_model() -> None:
    """All gradients of inputs, none of the weights: two thirds of a step, and a little."""
    shape = SHAPES["llama"]
    adapter = adapter_of(shape, ["q_proj"])
    share = unit_flops(shape, None, 64, "tokens", adapter.frozen(shape), adapter) / unit_flops(
        shape, None, 64, "tokens"
    )
    assert 0.6 < share < 0.72
    assert adapter.num_trained(shape) == 3 * 8 * (192 + 192) < num_params(shape) / 50


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_peft_puts_it_on_every_matrix_of_every_family(family: str) -> None:
    """What the table calls a matrix of its own is a linear layer, also under another head."""
    for head in ("", *TRANSFORMERS[family].heads):
        if not head and not TRANSFORMERS[family].objective:
            continue
        shape = replace(tiny(family), head=head, num_classes=3 if head == "classes" else 0)
        adapter = adapter_of(shape, [], rank=2)
        network = put_on(build(shape), adapter, shape)
        assert {name for name, one in named_parameters(network) if one.requires_grad} == set(adapter.trained(shape))
        assert {one.name for one in parameters(shape)} <= {name for name, _ in named_parameters(network)}
        with without(network) as alone:
            assert [name for name, _ in alone.named_parameters()] == [one.name for one in parameters(shape)]
