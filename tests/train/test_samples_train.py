"""Stages that count samples, trained on real workers: killed and resumed, and on one worker, two and three."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from labelled_files import images, texts, write_jsonl, write_npz
from raystage.config.schedule import Schedule, parse
from raystage.files.filesystem import open_folder
from raystage.objectives.opening import open_judge
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.texts import evaluation_set
from staged_runs import losses, train_each_way

pytestmark = pytest.mark.end_to_end

VIT = {"family": "vit", "patch_size": 4, "hidden_size": 8, "num_heads": 2, "ffn_size": 16}
LLAMA = {"family": "llama", "context_length": 24, "hidden_size": 8, "num_heads": 2, "ffn_size": 16}
BERT = {**LLAMA, "family": "bert"}
TRAINING = {
    "optimizer": {"lr": 1e-2}, "global_batch_samples": 10, "micro_batch_size": 2, "checkpoint": {"every": 30},
    "evaluate": {"samples": 17}, "lr_schedule": {"kind": "constant", "warmup": 0},
}  # fmt: skip
# By name the data, the model, and the objectives of two stages. The second is grown.
CASES = {
    "images": ("npz", VIT, (denoising := {"name": "denoising", "noise": 0.2}, "classification")),
    "patches": ("npz", VIT, ({"name": "denoising", "mask_share": 0.5}, denoising)),
    "texts": ("jsonl", LLAMA, ("classification", {"name": "classification", "label_smoothing": 0.1})),
    "texts of a bert": ("jsonl", BERT, ("classification", "classification")),
}


def schedule_of(folder: Path, workers: int, name: str) -> Schedule:
    kind, model, objectives = CASES[name]
    if kind == "npz":
        data = {"source": "arrays", "path": str(write_npz(folder / "npz", images(70)))}
    else:
        data = {"source": "jsonl", "path": str(write_jsonl(folder / "rows", texts(70))), "tokenizer": "bytes"}
    first, second = objectives
    stages = [
        {"name": "first", "model": {"num_layers": 1}, "until": {"samples": 100}, "objective": first},
        {"name": "second", "model": {"num_layers": 2}, "until": {"samples": 80}, "objective": second,
         "grow": {"operator": "identity"}},
    ]  # fmt: skip
    data["validation_fraction"] = 0.3
    training = {**TRAINING, "workers": workers}
    return parse({"name": "samples", "data": data, "model": model, "training": training, "stages": stages})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, list[StageRecord]]:
    """By case and way the records of both stages."""
    stops = (2, 5)  # inside the first stage, and then inside the second
    return train_each_way(
        lambda way, workers: {name: schedule_of(folder, workers, name) for name in CASES}, stops, folder
    )


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_is_the_same(trained: dict[str, list[StageRecord]], name: str) -> None:
    assert losses(trained[f"{name}, killed"]) == losses(trained[f"{name}, one"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["one", "three"])
def test_any_number_of_workers_sees_the_same(trained: dict[str, list[StageRecord]], name: str, way: str) -> None:
    for two, other in zip(losses(trained[f"{name}, two"]), losses(trained[f"{name}, {way}"]), strict=True):
        assert other == pytest.approx(two, rel=1e-4)
    begun, others = (trained[f"{name}, {each}"][0].evaluations[0] for each in ("two", way))
    assert (others.accuracy, others.metrics) == (begun.accuracy, pytest.approx(begun.metrics))


def test_counts_are_of_samples(trained: dict[str, list[StageRecord]]) -> None:
    for first, second in trained.values():
        assert (first.unit, first.duration, first.steps) == ("samples", 100, 10)
        assert (second.duration, second.end.position) == (80, 180)


def test_a_head_is_exchanged_and_the_body_grown(trained: dict[str, list[StageRecord]]) -> None:
    """The identity: the stream after the new layer is the one that the old model had."""
    _, second = trained["images, two"]
    certificate = second.growth.certificate
    assert (certificate.eval_loss_after, certificate.max_logit_difference, certificate.gradient_error) == (None,) * 3
    assert certificate.activation_rms_ratio == pytest.approx((1.0, 1.0), rel=1e-4)
    assert second.evaluations[0].accuracy is not None
    assert {"macro_f1", "macro_precision", "macro_recall"} <= second.end.metrics.keys()
    kept = trained["texts, two"][1].growth.certificate
    assert kept.eval_loss_after == pytest.approx(kept.eval_loss_before, rel=1e-4)
    assert kept.max_logit_difference < 1e-4


def test_the_loss_is_that_of_transformers(trained: dict[str, list[StageRecord]], folder: Path) -> None:
    """Of the classifier of images as it was saved and exported."""
    schedule = schedule_of(folder, 2, "images")
    stage, record = make_plan(schedule).staged.stages[1], trained["images, two"][1]
    source = open_source(stage.key, Store(open_folder(str(folder / "two-images"))))
    export(source, open_folder(str(folder / "exported")), ExportOptions())
    network = transformers.AutoModelForImageClassification.from_pretrained(folder / "exported").eval()
    held_out, judge = evaluation_set(stage), open_judge(stage.objective)
    batch = {name: torch.from_numpy(one) for name, one in judge.batch(held_out, 0, held_out.count, 1).items()}
    with torch.no_grad():
        theirs = network(pixel_values=batch["image"], labels=batch["label"])
    assert held_out.count == 17
    assert record.eval_loss == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert record.end.accuracy == pytest.approx((theirs.logits.argmax(-1) == batch["label"]).float().mean().item())
