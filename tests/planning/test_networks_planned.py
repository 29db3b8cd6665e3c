"""What a plan says of raystage's own networks: keys that they do not have, growths that they cannot have, advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exports import exported, make_checkpoint
from factories import write_documents
from growths import SOURCES
from labelled_files import texts, write_jsonl
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.models.shape import ModelShape, image_positions
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.advice import warnings

DIGITS = {"source": "arrays", "path": "sklearn-digits", "validation_fraction": 0.2}
DENOISING = {"name": "denoising", "mask_share": 0.3}


def planned(
    folder: Path,
    family: str,
    model: dict[str, Any],
    second: dict[str, Any] | None = None,
    /,
    data: str = "",
    **more: Any,
) -> Plan:
    """One stage, or a second one with other values. data: "texts" with labels, or plain "text"; digits unless given."""
    labelled = {"source": "jsonl", "path": str(folder / "rows"), "tokenizer": "bytes", "validation_fraction": 0.3}
    plain = {"source": "text", "path": str(folder / "text"), "tokenizer": "bytes", "validation_fraction": 0.3}
    write_jsonl(folder / "rows", texts())
    (folder / "text").mkdir()
    write_documents(folder / "text")
    unit = "tokens" if data == "text" else "samples"
    stages: list[dict] = [{"name": "one", "model": {"num_layers": 1}, "until": {unit: 480}}]
    if second is not None:
        stages.append({"name": "two", "until": {unit: 480}, **second})
    context = {"context_length": 24} if family == "lstm" else {}
    return make_plan(parse({
        "name": "networks", "data": {"texts": labelled, "text": plain}.get(data, DIGITS),
        "model": {"family": family, "hidden_size": 8, **context, **model},
        "objective": "causal_lm" if data == "text" else "classification",
        "training": {f"global_batch_{unit}": 48, "micro_batch_size": 2}, "stages": stages, **more,
    }))  # fmt: skip


DEEPER = {"model": {"num_layers": 2}}
# What is asked for, and what is said.
REFUSED: dict[str, tuple[tuple, dict, str]] = {
    "heads": (("cnn", {"num_heads": 4}), {}, "model.num_heads: found 4 for cnn, which has no heads; expected none"),
    "key/value heads": (("mlp", {"num_kv_heads": 4}), {}, "model.num_kv_heads: found 4 for mlp, which has no heads"),
    "head size": (("lstm", {"head_size": 4}), {"data": "texts"}, "model.head_size: found 4 for lstm, which has no"),
    "patches of text": (("lstm", {"patch_size": 4}), {"data": "texts"}, "model.patch_size: found 4, but a lstm reads"),
    "patches of an mlp": (("mlp", {"patch_size": 4}), {}, "model.patch_size: found 4 for an mlp, which reads whole"),
    "a large stride": (("cnn", {"patch_size": 9}), {}, "model.patch_size: found 9; expected 1 to 8, the side of an"),
    "rotary positions": (("cnn", {"rope_theta": 1e4}), {}, "model.rope_theta: found in a cnn, which has no rotary"),
    "experts": (("mlp", {"num_experts": 4}), {}, "model.num_experts: found 4, but a mlp has no experts"),
    "a vocabulary": (("cnn", {"vocab_size": 50}), {}, "model.vocab_size: found 50 for a cnn; expected none"),
    "a context": (("mlp", {"context_length": 50}), {}, "model.context_length: found 50 for a mlp; expected none"),
    "texts": (("cnn", {}), {"data": "texts"}, "model.family: found cnn, which reads images, with texts"),
    "images": (("lstm", {}), {}, "model.family: found lstm for images; expected vit, cnn, mlp"),
    "masked growth": (
        ("cnn", {}, {**DEEPER, "grow": {"operator": "masked", "grow_tokens": 100}}), {},
        "stages[1].grow.operator: found masked for a cnn, which is not a transformer; masked grows llama",
    ),
    "frozen embeddings": (
        ("mlp", {}, {**DEEPER, "grow": {"operator": "identity"}, "freeze": {"embeddings": True}}), {},
        "stages[1].freeze.embeddings: found true for a mlp, which has no embeddings",
    ),
    "learned growth": (
        ("lstm", {}, {**DEEPER, "grow": {"operator": "learned"}}), {"data": "text"},
        "stages[1].grow.operator: found learned for a lstm, which is not a transformer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_network_cannot_have_is_refused(tmp_path: Path, case: str) -> None:
    asked, more, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        planned(tmp_path, *asked, **more)
    assert message in str(caught.value)


def test_documents_cannot_be_kept_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found document for a lstm, whose state goes on from document to document"):
        planned(tmp_path, "lstm", {}, {"data": {"window": {"mask": "document"}}}, "text")


def test_the_context_of_an_lstm_changes_freely(tmp_path: Path) -> None:
    """It has no positions, so a stage may have any length without a growth, shorter ones too."""
    for number, length in enumerate((12, 48)):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = planned(folder, "lstm", {}, {"model": {"num_layers": 1, "context_length": length}}, "text")
        assert plan.staged.stages[1].shape.context_length == length
        assert plan.staged.stages[1].num_params == plan.staged.stages[0].num_params


@pytest.mark.parametrize("family", ["cnn", "mlp"])
def test_pixels_are_hidden_one_by_one(tmp_path: Path, family: str) -> None:
    (stage,) = planned(tmp_path, family, {}, objective=DENOISING).staged.stages
    assert stage.objective.options["patch_size"] == 1


@pytest.mark.parametrize("operator", ["zero_pad", "duplicate"])
@pytest.mark.parametrize("family", ["cnn", "mlp"])
def test_zeros_in_a_batch_norm_are_warned_about(tmp_path: Path, family: str, operator: str) -> None:
    wider = {"model": {"num_layers": 1, "hidden_size": 16}, "grow": {"operator": operator}}
    found = [one.text for one in warnings(planned(tmp_path, family, {}, wider)) if "pads 8 channels" in one.text]
    assert bool(found) == (family == "cnn" and operator == "zero_pad")


def eight_wide(shape: ModelShape) -> ModelShape:
    """The shape for images of the digits, or for bytes."""
    if not shape.image_size:
        return replace(shape, vocab_size=257)
    patch = 8 if shape.family == "mlp" else 4
    context = image_positions(shape.family, 8, patch)
    return replace(shape, image_size=8, num_channels=1, patch_size=patch, context_length=context)


@pytest.mark.parametrize("name", ["vit", "vit pixels", "cnn", "cnn pixels", "mlp", "mlp pixels", "lstm"])
@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_a_run_starts_from_a_network(tmp_path: Path, name: str, kind: str) -> None:
    """Its sizes come from the model; digits have ten classes, so the head is another one."""
    shape = eight_wide(SOURCES[name])
    source = make_checkpoint(tmp_path / "saved", shape, tokenizer=None if shape.image_size else "bytes")
    if kind == "folder":
        exported(source, tmp_path / "out")
        source = tmp_path / "out"
    stage = {"name": "one", "until": {"samples" if shape.image_size else "tokens": 96}}
    plan = planned(
        tmp_path, shape.family, {}, data="" if shape.image_size else "text", init={"from": str(source)}, model={},
        stages=[stage],
    )  # fmt: skip
    heads = {"head": "classes", "num_classes": 10} if shape.image_size else {}
    assert plan.staged.stages[0].shape == replace(shape, **heads)
