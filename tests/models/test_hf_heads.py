"""Hugging Face folders of classifiers and image models: opened, grown, exported, loaded by plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import folders
from exports import exported, folder_of, make_checkpoint, network_of, weights_of
from growths import SOURCES, tiny
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.files.reading import LocalFiles
from raystage.growth.apply import Grown
from raystage.growth.rules import growth_map
from raystage.models.families import TRANSFORMERS
from raystage.models.hf_folder import open_model, open_trainable
from raystage.models.manifest import check_model
from raystage.models.shape import ModelShape, parameters, table_of
from raystage.objectives.images import pixels_of
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store
from raystage.tools.grow import open_source
from raystage.tools.lm_eval import check_language_model
from real_models import built, images_of

HEADED = [name for name, shape in SOURCES.items() if shape.head and shape.family in TRANSFORMERS]
every_head = pytest.mark.parametrize("name", HEADED)
IMAGES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 4, "num_channels": 2, "encoder_stride": 4, "num_labels": 5,
}  # fmt: skip


def images(path: Path, kind: type = transformers.ViTForImageClassification, **changes: object) -> Path:
    torch.manual_seed(3)
    model = kind(transformers.ViTConfig(**{**IMAGES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    return path


def said(network: torch.nn.Module, shape: ModelShape) -> torch.Tensor:
    if shape.image_size:
        inputs = images_of(shape)
    else:
        tokens = torch.randint(0, shape.vocab_size, (1, 9), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        found = network.eval()(**inputs)
    return found.reconstruction if shape.head == "pixels" else found.logits


def say(path: Path, **changes: object) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


@every_head
def test_transformers_loads_what_was_exported(tmp_path: Path, name: str) -> None:
    shape, out = SOURCES[name], folder_of(SOURCES[name], tmp_path)
    network = folders.load(out)
    assert type(network).__name__ == json.loads((out / "config.json").read_text())["architectures"][0]
    torch.testing.assert_close(said(network, shape), said(network_of(shape), shape))


@every_head
def test_what_was_exported_is_opened_with_its_head_and_weights(tmp_path: Path, name: str) -> None:
    model = open_trainable(LocalFiles(folder_of(SOURCES[name], tmp_path)))
    assert model.shape == SOURCES[name]
    weights = FolderWeights(model)
    for parameter, values in weights_of(SOURCES[name]).items():
        np.testing.assert_array_equal(weights.read(parameter, "fp32", 0, len(values)), values)
    weights.close()


@pytest.mark.parametrize(
    ("kind", "head", "classes"),
    [
        (transformers.ViTForImageClassification, "classes", 5),
        (transformers.ViTForMaskedImageModeling, "pixels", 0),
        (transformers.ViTModel, "", 0),
    ],
)
def test_a_vit_of_transformers_own(tmp_path: Path, kind: type, head: str, classes: int) -> None:
    """A ViTModel has a body alone, under shorter names, and a pooler, which nothing here uses."""
    model = open_trainable(LocalFiles(images(tmp_path / "model", kind)))
    assert model.shape == replace(tiny("vit"), head=head, num_classes=classes)
    body = transformers.ViTModel.from_pretrained(tmp_path / "model")
    weights = FolderWeights(model)
    for name, parameter in body.named_parameters():
        if not name.startswith("pooler."):
            found = weights.read(f"vit.{name}", "fp32", 0, parameter.numel())
            np.testing.assert_array_equal(found, parameter.detach().flatten().numpy())
    weights.close()


@pytest.mark.parametrize(
    ("kind", "old"), [(transformers.BertForPreTraining, True), (transformers.BertForMaskedLM, False)]
)
def test_a_bert_as_the_hub_has_them(tmp_path: Path, kind: type, old: bool) -> None:
    """With former names of the norms, and with what only other heads use: it is left aside."""
    torch.manual_seed(3)
    model = kind(transformers.BertConfig(**folders.SIZES))
    model.save_pretrained(tmp_path)
    body = model.base_model.state_dict()
    if old:
        tensors = load_file(tmp_path / "model.safetensors")
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
            for name, one in tensors.items()
        }
        save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
        assert "cls.seq_relationship.weight" in renamed
    source = open_trainable(LocalFiles(tmp_path))
    target = replace(source.shape, head="classes", num_classes=3)
    weights = FolderWeights(source)
    found = Grown(growth_map(source.shape, target, "stack", "reset"), weights.read, 0)
    for one in parameters(target):
        if one.name not in table_of(target).head_rows:
            values = found.slice(one.name, "fp32", 0, one.numel)
            np.testing.assert_array_equal(values, body[one.name.removeprefix("bert.")].flatten().numpy())
    weights.close()


@pytest.mark.parametrize("kind", [transformers.ViTModel, transformers.ViTForMaskedImageModeling])
def test_a_classifier_starts_from_the_body_of_another_model(tmp_path: Path, kind: type) -> None:
    """At a larger size, too, whose copies say what the body said."""
    source = open_trainable(LocalFiles(images(tmp_path / "model", kind)))
    target = replace(tiny("vit"), hidden_size=32, num_heads=8, num_kv_heads=8, ffn_size=48)
    weights = FolderWeights(source)
    found = Grown(growth_map(source.shape, target, "duplicate", "reset"), weights.read, 0)
    values = {one.name: found.slice(one.name, "fp32", 0, one.numel) for one in parameters(target)}
    weights.close()
    body = transformers.ViTModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).eval()
    pixels = images_of(target)["pixel_values"]
    with torch.no_grad():
        before = body.layers[0](body.embeddings(pixels))
        grown = built(target, values, torch.float32).vit
        after = grown.layers[0](grown.embeddings(pixels))
    torch.testing.assert_close(after, torch.cat([before, before], dim=-1), rtol=1e-4, atol=1e-5)
    assert not found.slice("classifier.bias", "fp32", 0, 5).any()


def test_labels_are_counted(tmp_path: Path) -> None:
    source = images(tmp_path / "model", num_labels=7)
    assert open_trainable(LocalFiles(source)).shape.num_classes == 7


@pytest.mark.parametrize("operator", ["depth=identity,width=duplicate", "depth=stack,width=zero_pad"])
@pytest.mark.parametrize("kind", [transformers.ViTForImageClassification, transformers.ViTForMaskedImageModeling])
def test_a_folder_of_a_vit_grows(tmp_path: Path, kind: type, operator: str) -> None:
    source, target = images(tmp_path / "model", kind), tmp_path / "out"
    folders.grown(source, target, f"--operator={operator}", *folders.WIDE, *folders.DEEP)
    shape = open_model(LocalFiles(target)).shape
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.image_size) == (4, 32, 8, 12)
    before, after = (said(folders.load(one), shape) for one in (source, target))
    assert before.shape == after.shape
    if "identity" in operator:
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_a_folder_of_a_classifier_grows(tmp_path: Path) -> None:
    """Its head among the rest."""
    source, target = folder_of(SOURCES["gpt2 classes"], tmp_path), tmp_path / "wide"
    folders.grown(source, target, "--operator=duplicate", "--set=hidden_size=32", "--set=ffn_size=48")
    shape = SOURCES["gpt2 classes"]
    before, after = (said(folders.load(one), shape) for one in (source, target))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [12, 8]}, "image_size: found [12, 8]; expected a whole number from 1 on"),
        ({"patch_size": 13}, "patch_size: found 13; expected at most image_size (12)"),
        ({"hidden_act": "relu"}, "hidden_act: found 'relu'; expected 'gelu'"),
        ({"qkv_bias": False}, "qkv_bias: found false; expected true"),
        ({"encoder_stride": 2}, "encoder_stride: found 2; expected 4, as patch_size"),
        ({"num_channels": 3}, "vit.embeddings.patch_embeddings.projection.weight: found the shape [16, 2, 4, 4]"),
    ],
)
def test_what_another_model_would_be_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    source = say(images(tmp_path / "model", transformers.ViTForMaskedImageModeling), **changes)
    with pytest.raises(InputError) as caught:
        open_trainable(LocalFiles(source))
    assert message in str(caught.value)


def test_a_label_too_few_is_refused(tmp_path: Path) -> None:
    source = images(tmp_path / "model")
    with pytest.raises(InputError, match=r"classifier.weight: found the shape \[5, 16\]; expected \[4, 16\]"):
        open_trainable(LocalFiles(say(source, id2label={str(one): f"L{one}" for one in range(4)})))
    with pytest.raises(InputError, match="num_labels: found 0; expected a whole number from 1 on"):
        open_trainable(LocalFiles(say(source, id2label={})))


def test_the_names_of_the_classes_go_along(tmp_path: Path) -> None:
    names = ["zero", "one", "two", "three", "four"]
    saved = make_checkpoint(tmp_path / "saved", SOURCES["bert classes"], tokenizer=None, classes=names)
    exported(saved, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: number for number, name in enumerate(names)}
    other = make_checkpoint(tmp_path / "other", SOURCES["bert classes"], tokenizer=None, classes=[1, 2])
    exported(other, tmp_path / "plain")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "plain").id2label[4] == "LABEL_4"


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_prepared_as_in_training(tmp_path: Path, channels: int) -> None:
    out = folder_of(replace(SOURCES["vit"], num_channels=channels), tmp_path)
    prepare = transformers.AutoImageProcessor.from_pretrained(out)
    image = np.random.default_rng(0).integers(0, 256, (12, 12, channels), dtype=np.uint8)
    found = prepare(images=image, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    np.testing.assert_allclose(found[0], pixels_of(image).transpose(2, 0, 1), atol=1e-6)


def test_a_manifest_with_a_head_that_its_family_has_not_is_refused() -> None:
    check_model(SOURCES["vit pixels"].facts())
    for name, head, able in (("vit", "other", ", classes, pixels"), ("llama", "pixels", ", classes")):
        with pytest.raises(ValueError, match=f"^model.head: found '{head}'; expected one of {able}$"):
            check_model(replace(SOURCES[name], head=head).facts())


def test_a_classifier_is_asked_no_questions_of_language(tmp_path: Path) -> None:
    """lm-eval would load it with a language head drawn at random."""
    store = Store(open_folder(tmp_path / "store"))
    saved = [make_checkpoint(tmp_path / name, SOURCES[name], tokenizer=None) for name in ("llama", "vit pixels")]
    speaking, other = (open_source(str(one), store) for one in saved)
    check_language_model(speaking, "full")
    with pytest.raises(InputError, match="--stage: found 'full', a model for pixels; expected a language model"):
        check_language_model(other, "full")


def test_a_classifier_has_no_certificate_of_language(tmp_path: Path) -> None:
    saved = make_checkpoint(tmp_path / "saved", SOURCES["llama classes"], tokenizer=None)
    done = folders.CliRunner().invoke(folders.main, ["certify", str(saved), str(saved)])
    assert done.exit_code == 2
    assert "model.head: found a model for 5 classes; expected a language model" in " ".join(done.output.split())
