"""Checkpoints of raystage's own networks in the tools: exported, loaded, grown, averaged and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

import raystage
from exports import exported, invoke, make_checkpoint, network_of
from growths import SOURCES
from networks import NETWORKS, said
from raystage.cli.main import main
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.models.hf_folder import open_trainable
from raystage.models.shape import ModelShape, num_params, stored
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint

SHAPES = {**NETWORKS, "lstm tied": replace(SOURCES["lstm"], tied_embeddings=True)}
every_network = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def saved(path: Path, shape: ModelShape, **cursor: object) -> Path:
    return make_checkpoint(path, shape, tokenizer=None, **cursor)


def answers(network: torch.nn.Module, shape: ModelShape) -> torch.Tensor:
    with torch.no_grad():
        return said(network, shape)


def ask(command: str, *arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, [command, *map(str, arguments)])


@every_network
@pytest.mark.parametrize("size", ["5GB", "2KB"])
def test_an_exported_network_is_the_same_to_the_bit(tmp_path: Path, shape: ModelShape, size: str) -> None:
    made = exported(saved(tmp_path / "saved", shape), tmp_path / "out", "--max-shard-size", size)
    assert (made["format"], made["num_params"]) == ("raystage", num_params(shape))
    for source in ("saved", "out"):
        network = raystage.load_model(tmp_path / source)
        assert not network.training
        assert torch.equal(answers(network, shape), answers(network_of(shape), shape))
    assert open_trainable(open_folder(tmp_path / "out")).shape == shape


def test_what_a_folder_holds(tmp_path: Path) -> None:
    """Names as in the model, buffers among them, which stay in fp32; the classes by name; nothing for transformers."""
    shape = SOURCES["cnn"]
    exported(saved(tmp_path / "saved", shape, classes=list("abcde")), tmp_path / "out", "--dtype", "bfloat16")
    tensors = transformers.modeling_utils.load_state_dict(tmp_path / "out/model.safetensors")
    assert list(tensors.keys() ^ {one.name for one in stored(shape)}) == []
    assert {str(one.dtype) for name, one in tensors.items() if "running" in name} == {"torch.float32"}
    assert {str(one.dtype) for name, one in tensors.items() if "running" not in name} == {"torch.bfloat16"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {
        "model_type": "cnn", "library_name": "raystage", "num_layers": 2, "hidden_size": 16, "ffn_size": 24,
        "norm_eps": 1e-05, "image_size": 12, "patch_size": 4, "num_channels": 2, "head": "classes", "num_labels": 5,
        "dtype": "bfloat16", "id2label": {str(number): name for number, name in enumerate("abcde")},
        "label2id": {name: number for number, name in enumerate("abcde")},
    }  # fmt: skip
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


WRONG = {
    "head": ("wings", "head: found 'wings'; expected 'classes' or 'pixels'"),
    "num_labels": (0, "num_labels: found 0; expected a whole number from 1 on"),
    "hidden_size": (8, "stem.weight: found the shape [16, 2, 3, 3]; expected [8, 2, 3, 3]"),
    "patch_size": (13, "patch_size: found 13; expected at most image_size (12)"),
    "model_type": ("lstm", "found no tensor for embed.weight and"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_configuration_is_refused(tmp_path: Path, key: str) -> None:
    exported(saved(tmp_path / "saved", SOURCES["cnn"]), tmp_path / "out")
    file = tmp_path / "out/config.json"
    value, message = WRONG[key]
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError) as caught:
        raystage.load_model(tmp_path / "out")
    assert message in str(caught.value)


def without(path: Path, name: str) -> None:
    """The checkpoint as if it had never held that parameter."""
    folder = open_folder(path)
    manifest = checkpoint.read_manifest(folder)
    kept = tuple(one for one in manifest.parameters if one.name != name)
    checkpoint.commit(folder, replace(manifest, parameters=kept))


def test_a_buffer_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    lost = saved(tmp_path / "lost", SOURCES["cnn"])
    without(lost, "norm.running_var")
    for command, *more in (("export", tmp_path / "out"), ("grow", tmp_path / "out", "--set", "num_layers=4")):
        done = ask(command, lost, *more)
        assert done.exit_code == 2
        assert "manifest.json: damaged" in done.output
        assert "norm.running_var" in done.output
    torn = saved(tmp_path / "torn", SOURCES["cnn"])
    opened = Checkpoint(open_folder(torn))
    shard = opened.manifest.shards[0]
    place = next(one.offset for one in opened.fragments(0) if one.parameter == "norm.running_var")
    content = bytearray((torn / shard.file).read_bytes())
    content[place] ^= 1
    (torn / shard.file).write_bytes(content)
    done = ask("export", torn, tmp_path / "out")
    assert done.exit_code == 2
    assert "fp32 of norm.running_var does not match its checksum" in done.output
    assert not (tmp_path / "out").exists()


@every_network
@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_it_is_grown_exactly(tmp_path: Path, shape: ModelShape, kind: str) -> None:
    source = saved(tmp_path / "saved", shape)
    if kind == "folder":
        exported(source, tmp_path / "out")
        source = tmp_path / "out"
    done = ask("grow", source, tmp_path / "grown", "--set", "num_layers=4", "--set", "hidden_size=32",
               "--operator", "num_layers=identity,width=duplicate")  # fmt: skip
    assert done.exit_code == 0, done.output
    grown = raystage.load_model(tmp_path / "grown")
    assert len(grown.layers) == 4
    torch.testing.assert_close(answers(grown, shape), answers(network_of(shape), shape), atol=1e-4, rtol=1e-4)


def test_averages_hold_buffers(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, SOURCES["cnn"], scale=scale) for name, scale in (("one", 1.0), ("two", 3.0)))
    done = ask("average", one, other, "--output", tmp_path / "both")
    assert done.exit_code == 0, done.output
    found = Checkpoint(open_folder(tmp_path / "both"))
    for name in ("norm.running_var", "layers.1.conv1.weight"):
        mean, single = (it.read(name, "fp32", 0, 16) for it in (found, Checkpoint(open_folder(one))))
        assert mean == pytest.approx(2 * single, rel=1e-6)


def test_a_language_lstm_is_certified_and_a_classifier_is_not(tmp_path: Path) -> None:
    for name in ("lstm", "cnn"):
        source = saved(tmp_path / name, SOURCES[name])
        grown = tmp_path / f"{name} grown"
        assert ask("grow", source, grown, "--set", "num_layers=4", "--operator", "identity").exit_code == 0
    done = ask("certify", tmp_path / "lstm", tmp_path / "lstm grown", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["certificate"]["max_logit_difference"] < 1e-5
    done = ask("certify", tmp_path / "cnn", tmp_path / "cnn grown")
    assert done.exit_code == 2
    assert "expected a language model" in done.output


def test_a_tokenizer_for_a_network_of_images_is_refused(tmp_path: Path) -> None:
    done = invoke(saved(tmp_path / "saved", SOURCES["cnn"]), tmp_path / "out", "--tokenizer", "bytes")
    assert done.exit_code == 2
    assert "vocab" in done.output
