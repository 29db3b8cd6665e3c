"""By hand; that a transformers model of a shape has these very parameters is tested with the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raystage.models.shape import (
    ModelShape,
    flops_per_token,
    head_problem,
    heads_problem,
    image_positions,
    num_body_params,
    num_params,
    parameters,
)

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


# --- other families -----------------------------------------------------------------------------


def test_numbers_of_well_known_models() -> None:
    """As their papers and cards count them: GPT-2 small 124,439,808; Mixtral 8x7B 46.70e9, of which 12.88e9 are
    active."""
    gpt2 = ModelShape("gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, tied_embeddings=True)
    assert num_params(gpt2) == 124_439_808
    mixtral = ModelShape("mixtral", 32, 4096, 32, 8, 128, 14336, 32000, 32768, num_experts=8, experts_per_token=2)
    assert num_params(mixtral) == 46_702_792_704
    attention = 12 * 32 * 4096 * 32768
    active = 12_879_925_248 - 32000 * 4096  # the embedding is looked up
    assert flops_per_token(mixtral) == 6 * active + attention


def test_only_the_experts_that_a_token_sees_cost_it_something() -> None:
    shape = ModelShape("mixtral", 3, 8, 4, 2, 6, 20, 257, 16, num_experts=4, experts_per_token=2)
    expert, router = 3 * 8 * 20, 8
    more = replace(shape, num_experts=5)
    assert num_params(more) - num_params(shape) == 3 * (expert + router)
    assert flops_per_token(more) - flops_per_token(shape) == 6 * 3 * router
    assert flops_per_token(replace(shape, experts_per_token=3)) - flops_per_token(shape) == 6 * 3 * expert


def test_body_params_leave_out_embeddings_and_head() -> None:
    assert num_body_params(SHAPE) == num_params(SHAPE) - 2 * EMBEDDING
    gpt2 = ModelShape("gpt2", 2, 16, 4, 4, 4, 24, 31, 12, tied_embeddings=True)
    assert num_body_params(gpt2) == num_params(gpt2) - (31 + 12) * 16


def test_sizes_of_fused_axes() -> None:
    gpt2 = ModelShape("gpt2", 1, 16, 4, 4, 4, 24, 31, 12, tied_embeddings=True)
    listed = {parameter.name: parameter.shape for parameter in parameters(gpt2)}
    assert listed["transformer.h.0.attn.c_attn.weight"] == (16, 48)
    assert listed["transformer.h.0.attn.c_attn.bias"] == (48,)
    assert listed["transformer.wpe.weight"] == (12, 16)


@pytest.mark.parametrize(
    ("shape", "field", "said"),
    [
        (SHAPE, None, None),
        (replace(SHAPE, num_kv_heads=3), "num_kv_heads", "found 3; expected a divisor of num_heads (4)"),
        (
            replace(SHAPE, num_heads=6), "num_heads",
            "found 6 heads for a hidden size of 8; expected a divisor of it, as transformers asks of a llama",
        ),
        (replace(SHAPE, family="mistral", num_heads=6), None, None),
        (
            replace(SHAPE, family="gpt2"), "num_kv_heads",
            "found 2 for 4 heads; expected as many, since a gpt2 has no grouped queries",
        ),
        (
            replace(SHAPE, family="bert", num_kv_heads=4, head_size=4), "num_heads",
            "found 4 heads of 4 for a hidden size of 8; expected num_heads: 2, since a bert's heads fill the hidden "
            "size",
        ),
        (replace(SHAPE, family="bert", num_kv_heads=4, head_size=2), None, None),
    ],
    ids=str,
)  # fmt: skip
def test_heads_that_do_not_fit(shape: ModelShape, field: str | None, said: str | None) -> None:
    assert heads_problem(shape) == (None if field is None else (field, said))


# --- heads and images ---------------------------------------------------------------------------

IMAGES = ModelShape(
    "vit", 2, 8, 2, 2, 4, 16, 0, 10, head="classes", num_classes=3, image_size=12, patch_size=4, num_channels=2
)


@pytest.mark.parametrize(
    ("shape", "field", "said"),
    [
        (SHAPE, None, None),
        (IMAGES, None, None),
        (replace(IMAGES, head="pixels", num_classes=0), None, None),
        (replace(SHAPE, head="classes", num_classes=2), None, None),
        (replace(SHAPE, head="pixels"), "head", "found 'pixels'; expected '' or 'classes', as a llama can have"),
        (replace(IMAGES, head=""), "head", "found ''; expected 'classes' or 'pixels', as a vit can have"),
        (replace(IMAGES, num_classes=1), "num_classes", "found 1; expected at least 2"),
        (replace(IMAGES, patch_size=13), "patch_size", "found 13; expected 1 to 12, the side of an image"),
        (
            replace(IMAGES, head="pixels", patch_size=5), "patch_size",
            "found 5 for images of 12; expected a divisor of it, so that patches make up the whole image",
        ),
        (replace(IMAGES, patch_size=5), None, None),
    ],
    ids=str,
)  # fmt: skip
def test_heads_and_images_that_do_not_fit(shape: ModelShape, field: str | None, said: str | None) -> None:
    assert head_problem(shape) == (None if field is None else (field, said))


def test_positions_of_an_image() -> None:
    sizes = ((224, 16), (12, 4), (12, 5), (8, 8))
    assert [image_positions("vit", *one) for one in sizes] == [197, 10, 5, 2]
    assert [image_positions("cnn", *one) for one in sizes] == [196, 9, 9, 1]


def test_what_a_shape_does_not_use_is_left_out_of_keys_and_records() -> None:
    later = {"rope_scaling", "head", "num_classes", "image_size", "patch_size", "num_channels", "module",
             "sliding_window", "layer_kinds", "query_pre_attn_scalar", "local_rope_theta"}  # fmt: skip
    assert vars(SHAPE).keys() - SHAPE.facts().keys() == later
    assert vars(SHAPE).keys() - SHAPE.to_json().keys() == later - {"rope_scaling"}
    of_attention = {"sliding_window", "layer_kinds", "query_pre_attn_scalar", "local_rope_theta"}
    assert vars(IMAGES).keys() - IMAGES.facts().keys() == {"rope_scaling", "module"} | of_attention
    assert ModelShape(**IMAGES.facts()) == ModelShape(**IMAGES.to_json()) == IMAGES


def test_parameters_of_an_image_model_by_hand() -> None:
    listed = {parameter.name: parameter.shape for parameter in parameters(IMAGES)}
    assert listed["vit.embeddings.patch_embeddings.projection.weight"] == (8, 2, 4, 4)
    assert listed["vit.embeddings.position_embeddings"] == (1, 10, 8)
    assert listed["classifier.weight"] == (3, 8)
    assert "vit.embeddings.mask_token" not in listed
    pixels = {one.name: one.shape for one in parameters(replace(IMAGES, head="pixels", num_classes=0))}
    assert pixels["decoder.0.weight"] == (32, 8, 1, 1)
    assert pixels["vit.embeddings.mask_token"] == (1, 1, 8)
    layers = 2 * (4 * (8 * 8 + 8) + 2 * 8 * 16 + 16 + 8 + 4 * 8)
    assert num_body_params(IMAGES) == layers + 2 * 8
