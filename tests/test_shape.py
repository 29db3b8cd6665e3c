"""By hand; that a transformers model of a shape has these very parameters is tested with the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raystage.shape import ModelShape, flops_per_token, num_params, parameters

SHAPE = ModelShape("llama", 3, 8, 4, 2, 6, 20, 257, 16)
EMBEDDING = 257 * 8
QUERY, KEY_VALUE = 4 * 6, 2 * 6
LAYER = 8 * QUERY * 2 + 8 * KEY_VALUE * 2 + 3 * 8 * 20 + 2 * 8


def test_parameters_by_hand() -> None:
    listed = {parameter.name: parameter.shape for parameter in parameters(SHAPE)}
    assert len(listed) == 3 + 3 * 9
    assert listed["model.embed_tokens.weight"] == listed["lm_head.weight"] == (257, 8)
    assert listed["model.layers.2.self_attn.q_proj.weight"] == (24, 8)
    assert listed["model.layers.2.self_attn.k_proj.weight"] == (12, 8)
    assert listed["model.layers.2.self_attn.v_proj.weight"] == (12, 8)
    assert listed["model.layers.2.self_attn.o_proj.weight"] == (8, 24)
    assert listed["model.layers.2.mlp.gate_proj.weight"] == listed["model.layers.2.mlp.up_proj.weight"] == (20, 8)
    assert listed["model.layers.2.mlp.down_proj.weight"] == (8, 20)
    assert listed["model.layers.2.input_layernorm.weight"] == listed["model.norm.weight"] == (8,)
    assert {p.layer for p in parameters(SHAPE)} == {None, 0, 1, 2}
    assert [p.name for p in parameters(SHAPE) if p.spec.writes_residual and p.layer == 0] == [
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]


def test_num_params_by_hand() -> None:
    assert num_params(SHAPE) == 2 * EMBEDDING + 3 * LAYER + 8 == sum(p.numel for p in parameters(SHAPE))


def test_a_tied_head_is_counted_once() -> None:
    tied = replace(SHAPE, tied_embeddings=True)
    assert num_params(tied) == EMBEDDING + 3 * LAYER + 8
    assert "lm_head.weight" not in {parameter.name for parameter in parameters(tied)}


@pytest.mark.parametrize("tied", [False, True])
def test_flops_by_hand(tied: bool) -> None:
    """Six for every parameter that multiplies, the head among them, tied or not; twelve for every score."""
    body, head, scores = 3 * LAYER + 8, EMBEDDING, 3 * QUERY * 16
    assert flops_per_token(replace(SHAPE, tied_embeddings=tied)) == 6 * (body + head) + 12 * scores


def test_flops_of_a_well_known_shape() -> None:
    """A 7B Llama at 4,096: 6.74e9 parameters, of them 131M looked up only, and 12 * 32 * 4096^2 of attention."""
    llama = ModelShape("llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096)
    assert num_params(llama) == 6_738_415_616
    assert flops_per_token(llama) == 6 * (6_738_415_616 - 131_072_000) + 12 * 32 * 4096 * 4096


def test_without_layers_there_are_embedding_norm_and_head() -> None:
    bare = SHAPE.with_layers(0)
    assert [parameter.name for parameter in parameters(bare)] == [
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    assert num_params(bare) == 2 * EMBEDDING + 8
    assert flops_per_token(bare) == 6 * (8 + EMBEDDING)


def test_counting_does_not_list() -> None:
    deep = SHAPE.with_layers(10**9)
    assert num_params(deep) - num_params(SHAPE) == (10**9 - 3) * LAYER
