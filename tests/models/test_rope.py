"""Scaled rotary positions: from a folder through a run and its growths, as plain transformers has them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import folders
from exports import byte_shape, exported, load, logits, make_checkpoint, network_of
from raystage.errors import InputError
from raystage.files.reading import LocalFiles
from raystage.models.build import build
from raystage.models.hf_folder import open_model, open_trainable
from raystage.models.manifest import check_model
from raystage.models.rope import scaling, scaling_of
from raystage.planning.build import make_plan
from raystage.storage.huggingface import FolderWeights
from started_models import make, make_schedule

KINDS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 6},
    "llama3 without its origin": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6, "beta_fast": 16},
}  # fmt: skip
by_kind = pytest.mark.parametrize("kind", KINDS)


def folder(path: Path, rope: dict, context: int = 24) -> Path:
    base = {"rope_parameters": {"rope_theta": 500_000.0, **rope}, "max_position_embeddings": context}
    source = make(path, "llama", **base)
    config = json.loads((source / "config.json").read_text())  # as it was written, before transformers completed it
    (source / "config.json").write_text(json.dumps(config | base))
    return source


@by_kind
def test_a_run_has_the_folder_s_positions(tmp_path: Path, kind: str) -> None:
    """Also in a shorter context, and after a growth."""
    source = folder(tmp_path / "model", KINDS[kind])
    (tmp_path / "texts").mkdir()
    grows = {"model": {"num_layers": 4}, "grow": {"operator": "stack"}}
    stages = [{"name": "a", "until": {"steps": 1}}, {"name": "b", "until": {"steps": 1}, **grows}]
    plan = make_plan(make_schedule(tmp_path / "texts", source, model={"context_length": 12}, stages=stages))
    first, second = (stage.shape for stage in plan.staged.stages)
    assert second.rope_scaling == first.rope_scaling != ""
    network, weights = build(first).eval(), FolderWeights(open_model(LocalFiles(source)))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(weights.read(name, "fp32", 0, parameter.numel())).view(parameter.shape))
    weights.close()
    plain = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()
    assert torch.equal(logits(network, first), logits(plain, first))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 500_000.0}}))
    other = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()
    assert not torch.equal(logits(network, first), logits(other, first))


@by_kind
def test_a_checkpoint_keeps_and_exports_them(tmp_path: Path, kind: str) -> None:
    shape = byte_shape("llama", rope_scaling=scaling_of(KINDS[kind], 24))
    exported(make_checkpoint(tmp_path / "saved", shape), tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out"), shape), logits(network_of(shape), shape))
    said = json.loads((tmp_path / "out/config.json").read_text())["rope_parameters"]
    assert said.items() >= KINDS[kind].items()
    plain = json.loads((make_checkpoint(tmp_path / "plain", byte_shape("llama")) / "manifest.json").read_text())
    assert "rope_scaling" not in plain["model"]  # as before
    with pytest.raises(ValueError, match=r"model\.rope_scaling"):
        check_model({"rope_scaling": '{"rope_type": "llama3"}'})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "none"},
        {"rope_type": {"llama3": 8.0}},
        {"type": ["linear"]},
        {"rope_type": "linear", "factor": {}},
    ],
)
def test_others_are_refused_with_those_that_can(tmp_path: Path, rope: dict) -> None:
    source = make(tmp_path / "model", "llama")
    config = json.loads((source / "config.json").read_text())
    config.pop("rope_parameters")
    (source / "config.json").write_text(json.dumps(config | {"rope_scaling": rope, "rope_theta": 1e4}))
    with pytest.raises(
        InputError, match=r"rope_scaling: found .*; expected a rope_type of default, linear, llama3, yarn"
    ):
        open_trainable(LocalFiles(source))


WRITTEN = {
    "yarn": ({"kind": "yarn", "factor": 4, "original_context_length": 16},
             {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "yarn in full": ({"kind": "yarn", "factor": 40, "original_context_length": 64, "beta_fast": 24, "beta_slow": 2,
                      "attention_factor": 1.25},
                     {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "beta_fast": 24.0,
                      "beta_slow": 2.0, "attention_factor": 1.25}),
    "linear": ({"kind": "linear", "factor": 3}, {"rope_type": "linear", "factor": 3.0}),
    "llama3": ({"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_context_length": 16},
               {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_schedule_s_scaling_is_the_one_of_transformers(tmp_path: Path, kind: str) -> None:
    """The same inverse frequencies and attention factor; and there and back through an exported folder."""
    written, said = WRITTEN[kind]
    model = {"family": "llama", "num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 48,
             "rope_theta": "500K", "rope_scaling": written}  # fmt: skip
    (tmp_path / "texts").mkdir()
    (stage,) = make_plan(make_schedule(tmp_path / "texts", None, model=model)).staged.stages
    rotary = build(stage.shape).model.rotary_emb
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=48,
        rope_parameters={"rope_theta": 500_000.0, **said},
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[said["rope_type"]](config, torch.device("cpu"))
    assert torch.equal(rotary.inv_freq, frequencies)
    assert rotary.attention_scaling == factor
    plain = 1 / 500_000.0 ** (torch.arange(0, 16, 2) / 16)
    assert not torch.allclose(rotary.inv_freq, plain)
    exported(make_checkpoint(tmp_path / "saved", stage.shape), tmp_path / "out")
    assert open_trainable(LocalFiles(tmp_path / "out")).shape == stage.shape


def test_yarn_by_hand() -> None:
    """2309.00071: pairs that turn often stay, those that turn seldom are divided by the factor, between them a ramp."""
    shape = byte_shape("llama", rope_theta=10_000.0, head_size=8, context_length=64)
    scaled = replace(shape, rope_scaling=scaling("yarn", {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5}, 64))
    turns = [64 / (2 * math.pi) * 10_000 ** (-2 * pair / 8) for pair in range(4)]
    assert [round(one, 3) for one in turns] == [10.186, 1.019, 0.102, 0.01]
    # The pairs at which 4 and half a turn lie: 0.406, cut to 0, and 1.309, raised to 2.
    ratios = (build(scaled).model.rotary_emb.inv_freq / build(shape).model.rotary_emb.inv_freq).tolist()
    assert ratios == pytest.approx([1, 0.5 + 0.5 / 4, 1 / 4, 1 / 4])
    assert build(scaled).model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_a_stage_after_a_folder_changes_what_it_says(tmp_path: Path) -> None:
    """And keeps the rest; the origin of a new scaling is that of the folder's."""
    source = folder(tmp_path / "model", KINDS["yarn"])
    (tmp_path / "texts").mkdir()
    longer = {"rope_scaling": {"kind": "yarn", "factor": 8}}
    stages = [{"name": "a", "until": {"steps": 1}}, {"name": "b", "until": {"steps": 1}, "model": longer}]

    def shapes(**model: object) -> list:
        plan = make_plan(make_schedule(tmp_path / "texts", source, stages=stages, model=model))
        return [stage.shape for stage in plan.staged.stages]

    first, second = shapes()
    assert (first.rope_theta, second.rope_theta) == (5e5, 5e5)
    assert json.loads(first.rope_scaling) == KINDS["yarn"]
    assert second.rope_scaling == scaling("yarn", {"factor": 8.0}, 6)
    first, second = shapes(rope_theta="1M", rope_scaling={"kind": "none"})
    assert (first.rope_theta, first.rope_scaling) == (1e6, "")
    assert second.rope_scaling == scaling("yarn", {"factor": 8.0}, 24)


def test_code_beside_the_weights_goes_along_unrun(tmp_path: Path) -> None:
    source = folders.make("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "own.py").write_text("raise SystemExit('ran')\n")
    done = folders.grow(source, tmp_path / "out", *folders.DEEP)
    assert done.exit_code == 0, done.output
    assert "copied, and not run: own.py" in done.stdout
    assert (tmp_path / "out/own.py").read_bytes() == (source / "own.py").read_bytes()
    (source / "own.py").unlink()
    assert "none is in the folder" in folders.grow(source, tmp_path / "other", *folders.DEEP).stdout
