"""Models with other heads under DeepSpeed: every ZeRO stage trains the same model, on two workers."""

from __future__ import annotations

from pathlib import Path

import deepspeed
import pytest
import torch

from distributed import run_workers
from growths import SOURCES
from raystage.models.build import build
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, parameters
from real_models import images_of, made_up, padded_batch

pytestmark = pytest.mark.end_to_end

NAMES = ("vit", "vit pixels", "gpt2 classes", "bert classes")
STEPS = 3


def losses(zero_stage: int) -> dict[str, list[float]]:
    """By model its losses over a few steps of SGD, from the same weights and on the same samples."""
    return {name: _train(SOURCES[name], zero_stage) for name in NAMES}


def _train(shape: ModelShape, zero_stage: int) -> list[float]:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    model = build(shape, zero_init=deepspeed.zero.Init(config_dict_or_path=config) if zero_stage == 3 else None)
    assert [name for name, _ in model.named_parameters()] == [one.name for one in parameters(shape)]
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=zero_stage == 3), torch.no_grad():
            parameter.copy_(torch.from_numpy(made_up(shape)[name]).view(parameter.shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    found = []
    for _ in range(STEPS):
        loss = getattr(engine(**_share(shape)), FAMILIES[shape.family].heads[shape.head].output).square().mean()
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    return found


def _share(shape: ModelShape) -> dict[str, torch.Tensor]:
    """This worker's two samples of four; images without hidden patches, so that the mask token has no gradient."""
    tokens, mask = padded_batch(max(1, shape.vocab_size))
    whole = {"pixel_values": images_of(shape)["pixel_values"]} if shape.image_size else {
        "input_ids": tokens, "attention_mask": mask
    }  # fmt: skip
    rank = torch.distributed.get_rank()
    return {name: values[2 * rank : 2 * rank + 2] for name, values in whole.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    return run_workers(2, losses, 0, folder=tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_every_stage_trains_the_same_model(zero_stage: int, plain: list[dict], tmp_path: Path) -> None:
    for found, expected in zip(run_workers(2, losses, zero_stage, folder=tmp_path / "zero"), plain, strict=True):
        for name in NAMES:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
            assert len({round(loss, 6) for loss in found[name]}) == STEPS
