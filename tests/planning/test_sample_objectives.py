"""Objectives with samples as planned: the model's head and images, the learner's options, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labelled_files import images, texts, write_folders, write_jsonl
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan

VIT = {"family": "vit", "patch_size": 2, "num_layers": 1, "hidden_size": 16, "num_heads": 2}
TRAINING = {"workers": 1, "optimizer": {"lr": 1e-3}, "global_batch_samples": 8}
DIGITS = {"source": "arrays", "path": "sklearn-digits", "validation_fraction": 0.2}


def stages_of(*written: dict[str, Any], **changes: Any) -> tuple[StagePlan, ...]:
    stages = [{"name": f"s{place}", "until": {"steps": 10}, **one} for place, one in enumerate(written)]
    content = {"name": "samples", "data": DIGITS, "model": VIT, "training": TRAINING, "stages": stages, **changes}
    return make_plan(parse(content)).staged.stages


def test_the_model_follows_from_the_images_and_the_objective() -> None:
    denoising, classes = stages_of(
        {"objective": "denoising"},
        {"objective": "classification", "model": {"num_layers": 2}, "grow": {"operator": "stack"}},
    )
    for stage in (denoising, classes):
        shape = stage.shape
        assert (shape.image_size, shape.patch_size, shape.num_channels, shape.context_length) == (8, 2, 1, 17)
        assert (shape.vocab_size, shape.tied_embeddings) == (0, False)
    assert (denoising.shape.head, denoising.shape.num_classes) == ("pixels", 0)
    assert (classes.shape.head, classes.shape.num_classes) == ("classes", 10)
    assert denoising.objective.options == {"noise": 0.3, "mask_share": None, "patch_size": 2}
    assert classes.objective.options == {"classes": tuple("0123456789")}
    assert classes.parent_objective == denoising.objective


def test_a_classifier_of_text_reads_as_its_language_model_does(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows", texts())
    data = {"source": "jsonl", "path": str(path), "tokenizer": "bytes"}
    model = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8}
    for family in ("llama", "bert"):
        (stage,) = stages_of({"objective": "classification"}, data=data, model={"family": family, **model})
        assert (stage.shape.head, stage.shape.num_classes) == ("classes", len(stage.data.samples.classes))
        assert (stage.shape.context_length, stage.shape.image_size) == (8, 0)
        assert stage.shape.vocab_size >= 256


def test_what_changes_the_result_changes_the_key() -> None:
    written = (
        {"name": "denoising"},
        {"name": "denoising", "noise": 0.2},
        {"name": "denoising", "mask_share": 0.5},
        {"name": "classification"},
        {"name": "classification", "label_smoothing": 0.1},
    )
    keys = [stages_of({"objective": one})[0].key for one in written]
    assert len(set(keys)) == len(keys)
    assert stages_of({"objective": {"name": "denoising", "noise": 0.3}})[0].key == keys[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": {"name": "denoising", "noise": 0.2, "mask_share": 0.5}},
         "objective.noise: found 0.2 beside mask_share 0.5; expected one of them"),
        ({"objective": {"name": "classification", "noise": 0.2}},
         "objective.noise: found 0.2 with classification; expected it with name: denoising"),
        ({"objective": {"name": "denoising", "label_smoothing": 0.2}},
         "objective.label_smoothing: found 0.2 with denoising; expected it with name: classification"),
        ({"objective": "denoising", "model": {"context_length": 17}},
         "model.context_length: found 17 for a vit; expected none: it follows from the images and patch_size"),
        ({"objective": "denoising", "model": {"patch_size": 3}},
         "model.patch_size: found 3 for images of 8; expected a divisor of it, so that patches"),
        ({"objective": "classification", "model": {"patch_size": 9}},
         "model.patch_size: found 9; expected 1 to 8, the side of an image"),
        ({"objective": "denoising", "accept": {"accuracy_above": 0.5}},
         "accept.accuracy_above: found 0.5 with denoising, where nothing is right or wrong; expected eval_loss_below"),
        ({"objective": "denoising", "accept": {"metrics": {"macro_f1": {"above": 0.5}}}},
         "accept.metrics: found without training.evaluate.metrics, which would measure them"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        stages_of(changes)
    assert expected in str(error.value)


def test_the_model_must_read_what_the_source_gives(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows", texts())
    data = {"source": "jsonl", "path": str(path), "tokenizer": "bytes"}
    with pytest.raises(
        InputError, match=r"model\.family: found vit, which reads images, with texts; expected a source of images"
    ):
        stages_of({"objective": "classification"}, data=data)
    llama = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "context_length": 8}
    with pytest.raises(InputError, match=r"model\.family: found llama for images; expected vit"):
        stages_of({"objective": "classification"}, model=llama)
    with pytest.raises(InputError, match=r"model\.patch_size: found 2, but a llama reads text; expected family: vit"):
        stages_of({"objective": "classification"}, data=data, model={**llama, "patch_size": 2})


def test_images_must_be_squares(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "images", images(shape=(8, 6)))
    with pytest.raises(InputError, match=r"found images of 8 x 6 pixels; expected square ones, or a resize"):
        stages_of({"objective": "denoising"}, data={"source": "images", "path": str(folder)})


@pytest.mark.parametrize(
    "limit", [{"accept": {"max_logit_difference_below": 1}}, {"grow": {"require": {"loss_increase_below": 1}}}]
)
def test_no_limit_on_what_two_heads_say(limit: dict[str, Any]) -> None:
    later = {"objective": "classification", "model": {"num_layers": 2}, **limit}
    later["grow"] = {"operator": "stack", **later.get("grow", {})}
    with pytest.raises(InputError, match=r"found 1\.0 in a stage that gets another head .* cannot be compared"):
        stages_of({"objective": "denoising"}, later)
    accepted = {"accept": {"metrics": {"macro_f1": {"above": 0.5}}, "accuracy_above": 0.5}}
    assert stages_of({"objective": "denoising"}, {"objective": "classification", **accepted})[1].accept is not None
