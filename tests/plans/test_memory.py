from __future__ import annotations

from dataclasses import replace

import pytest

from raystage.config.training import Training
from raystage.models.shape import ModelShape, num_params
from raystage.objectives.table import CHUNK_TARGETS
from raystage.plans.adapters import AdapterPlan
from raystage.plans.memory import estimate

SHAPE = ModelShape("llama", 3, 8, 4, 2, 6, 20, 257, 16)
N = 7_336  # parameters, by hand: 2 * 257 * 8 + 3 * 1072 + 8
TOKENS = 2 * 16


def training(**changes: object) -> Training:
    return Training(workers=4, micro_batch_size=2, **changes)


@pytest.mark.parametrize(
    ("precision", "zero_stage", "weights", "gradients", "optimizer"),
    [
        ("fp32", 0, 4 * N, 4 * N, 8 * N),  # two moments
        ("fp32", 1, 4 * N, 4 * N, 12 * N // 4),  # and the master weights that ZeRO keeps
        ("fp32", 2, 4 * N, 4 * N // 4, 12 * N // 4),
        ("fp32", 3, 4 * N // 4, 4 * N // 4, 12 * N // 4),
        ("bf16", 0, 2 * N, 2 * N, 12 * N),
        ("bf16", 1, 2 * N, 4 * N, 12 * N // 4),
        ("bf16", 2, 2 * N, 4 * N // 4, 12 * N // 4),
        ("bf16", 3, 2 * N // 4, 4 * N // 4, 12 * N // 4),
    ],
)
def test_states_by_hand(precision: str, zero_stage: int, weights: int, gradients: int, optimizer: int) -> None:
    assert num_params(SHAPE) == N
    found = estimate(SHAPE, training(precision=precision, zero_stage=zero_stage))
    assert (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes) == (weights, gradients, optimizer)
    assert found.total_bytes == weights + gradients + optimizer + found.activations_bytes
    assert found.as_dict()["total_bytes"] == found.total_bytes


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [({"name": "adam"}, 2), ({"name": "sgd"}, 1), ({"name": "sgd", "momentum": 0}, 0)],
    ids=["adam", "sgd", "sgd without momentum"],
)
def test_an_optimizer_needs_what_it_keeps(optimizer: dict, moments: int) -> None:
    of_workers = {stage: -(-N * 4 * (moments + (stage > 0)) // (4 if stage else 1)) for stage in (0, 1)}
    for stage, expected in of_workers.items():
        assert estimate(SHAPE, training(zero_stage=stage, optimizer=optimizer)).optimizer_bytes == expected


@pytest.mark.parametrize(
    ("precision", "checkpointing", "layers"),
    [
        ("bf16", False, 3 * TOKENS * 8 * 34),
        ("fp32", False, 3 * TOKENS * 8 * 34 * 2),
        ("bf16", True, 3 * TOKENS * 8 * 2 + TOKENS * 8 * 34),
        ("fp32", True, (3 * TOKENS * 8 * 2 + TOKENS * 8 * 34) * 2),
    ],
)
def test_activations_by_hand(precision: str, checkpointing: bool, layers: int) -> None:
    found = estimate(SHAPE, training(precision=precision, activation_checkpointing=checkpointing))
    assert found.activations_bytes == layers + 2 * TOKENS * 257 * 4


@pytest.mark.parametrize(("precision", "element_bytes"), [("bf16", 2), ("fp32", 4)])
def test_what_is_kept_of_a_layer_selectively_by_hand(precision: str, element_bytes: int) -> None:
    """Its input of 8, queries of 4 heads of 6, keys and values of 2 each, attention, its projection, two of the
    feed-forward layer and the last."""
    found = estimate(SHAPE, training(precision=precision, activation_checkpointing="selective"))
    kept = 8 + 24 + 12 + 12 + 24 + 8 + 20 + 20 + 8
    expected = (3 * TOKENS * kept + TOKENS * 8 * 17) * element_bytes + 2 * TOKENS * 257 * 4
    assert found.activations_bytes == expected


def test_of_a_mixture_the_experts_of_a_token_are_kept() -> None:
    kinds = ("mixtral", "qwen3_moe")
    for dense, mixture in zip((SHAPE, replace(SHAPE, family="qwen3")), kinds, strict=True):
        many = replace(dense, family=mixture, num_experts=8, experts_per_token=3)
        kept = [
            estimate(one, training(activation_checkpointing="selective")).activations_bytes
            - estimate(one, training(activation_checkpointing=True)).activations_bytes
            for one in (dense, many)
        ]
        assert kept[1] - kept[0] == 3 * TOKENS * 2 * (20 + 20 + 8) * 4


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_without_layers_there_are_no_activations_of_any(checkpointing: bool) -> None:
    found = estimate(SHAPE.with_layers(0), training(activation_checkpointing=checkpointing))
    assert found.activations_bytes == 2 * TOKENS * 257 * 4


@pytest.mark.parametrize("kernel", ["chunked", "liger"])
def test_scores_in_chunks_are_those_of_so_many_targets_and_the_heads_gradient(kernel: str) -> None:
    """The more targets a micro batch has, the more is saved; of few targets all are one chunk."""
    long = replace(SHAPE.with_layers(0), context_length=4096)
    whole = estimate(long, training())
    found = estimate(long, training(cross_entropy=kernel))
    assert whole.activations_bytes == 2 * (2 * 4096) * 257 * 4
    assert found.activations_bytes == 2 * CHUNK_TARGETS * 257 * 4 + 257 * 8 * 4
    short = estimate(SHAPE.with_layers(0), training(cross_entropy=kernel))
    assert short.activations_bytes == 2 * TOKENS * 257 * 4 + 257 * 8 * 4


def test_a_head_beside_an_adapter_has_no_gradient() -> None:
    adapter = AdapterPlan(2, 4.0, 0.0, ("model.layers.0.self_attn.q_proj.weight",))
    found = estimate(SHAPE.with_layers(1), training(cross_entropy="chunked"), adapter=adapter)
    usual = estimate(SHAPE.with_layers(1), training(), adapter=adapter)
    assert found == usual


def test_what_a_model_says_is_counted_by_its_head() -> None:
    """Of a sample the scores of its classes, or its pixels."""
    classes = estimate(replace(SHAPE, head="classes", num_classes=5).with_layers(0), training())
    assert classes.activations_bytes == 2 * 2 * 5 * 4
    image = ModelShape("vit", 0, 8, 2, 2, 4, 16, 0, 10, head="pixels", image_size=12, patch_size=4, num_channels=3)
    assert estimate(image, training()).activations_bytes == 2 * 2 * (3 * 12 * 12) * 4


def test_a_cut_that_does_not_divide_is_rounded_up() -> None:
    found = estimate(SHAPE, Training(workers=7, micro_batch_size=2, zero_stage=3))
    assert found.weights_bytes == -(-4 * N // 7)
