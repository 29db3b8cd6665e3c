"""A config that says "tied" against the tensors beside it: what transformers makes of the two is what grows, starts a
run and is certified, and no tensor is dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import folders
from folders import assert_same, grow, grown
from raystage.cli.main import main
from raystage.files.reading import LocalFiles
from raystage.models.families import FAMILIES
from raystage.models.hf_folder import open_model
from raystage.planning.build import make_plan
from raystage.storage.huggingface import FolderWeights
from started_models import make_schedule

TIED = {"tie_word_embeddings": True}
UNTIED = {"llama": TIED, "qwen2": TIED, "qwen3": TIED, "mixtral": TIED, "gpt2": {}, "bert, untied": {}}
by_family = pytest.mark.parametrize("name", UNTIED)
HEADS = ("lm_head.weight", "cls.predictions.decoder.weight")


def contradicting(name: str, path: Path, **changes: object) -> Path:
    """Two different matrices, and a config that says they are one: by its key, or by the family's default."""
    model_class, sizes = folders.MODELS[name]
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**{**sizes, "tie_word_embeddings": False, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(path)
    say(path, UNTIED[name].get("tie_word_embeddings"))
    return path


def say(path: Path, tied: bool | None) -> None:
    config = json.loads((path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (path / "config.json").write_text(json.dumps(config | ({} if tied is None else {"tie_word_embeddings": tied})))


def change(path: Path, **changed: object) -> None:
    """The folder's tensors with some replaced, or removed where None."""
    file = path / "model.safetensors"
    tensors = load_file(file) | {name.replace("__", "."): value for name, value in changed.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, file, {"format": "pt"})


def head_of(path: Path) -> str:
    return next(name for name in HEADS if name in load_file(path / "model.safetensors"))


def exact(name: str) -> tuple[str, ...]:
    """A growth that keeps the function: a layer whose norm comes last cannot be an identity."""
    if "bert" in name:
        return "--operator=duplicate", *folders.WIDE
    return "--operator=depth=identity,width=duplicate", *folders.width_of(name, folders.WIDE), *folders.DEEP


@by_family
def test_a_head_of_its_own_grows_along(tmp_path: Path, name: str) -> None:
    source = contradicting(name, tmp_path / "source")
    assert grown(source, tmp_path / "out", *exact(name))["exact"]
    assert_same(source, tmp_path / "out")
    assert head_of(tmp_path / "out") == head_of(source)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


@by_family
def test_it_is_certified_as_it_is(tmp_path: Path, name: str) -> None:
    source = contradicting(name, tmp_path / "source")
    grown(source, tmp_path / "out", *exact(name))
    done = CliRunner().invoke(main, ["certify", str(source), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["exact"]
    assert found["certificate"]["max_logit_difference"] < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral", "gpt2"])
def test_a_run_starts_with_it(tmp_path: Path, name: str) -> None:
    vocab = {"vocab_size": 257}
    source = contradicting(name, tmp_path / "source", **vocab)
    (tmp_path / "texts").mkdir()
    (stage,) = make_plan(make_schedule(tmp_path / "texts", source)).staged.stages
    assert not stage.shape.tied_embeddings
    weights, head = FolderWeights(open_model(LocalFiles(source))), FAMILIES[stage.shape.family].head
    expected = load_file(source / "model.safetensors")[head].flatten().numpy()
    assert (weights.read(head, "fp32", 0, expected.size) == expected).all()
    weights.close()


@by_family
def test_equal_bytes_are_tied(tmp_path: Path, name: str) -> None:
    """As many models of the hub have them; the folder that comes of it has one."""
    source = contradicting(name, tmp_path / "source")
    head, tensors = head_of(source), load_file(source / "model.safetensors")
    family = open_model(LocalFiles(source)).table
    change(source, **{head: tensors[family.embeddings[0]].clone()})
    if "bert" in name:
        change(source, **{"cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()})
    assert open_model(LocalFiles(source)).shape.tied_embeddings
    grown(source, tmp_path / "out", *exact(name))
    assert_same(source, tmp_path / "out")
    assert not any(name in HEADS for name in load_file(tmp_path / "out/model.safetensors"))


@by_family
def test_no_head_is_tied(tmp_path: Path, name: str) -> None:
    source = contradicting(name, tmp_path / "source")
    change(source, **{head_of(source): None}, **({"cls.predictions.decoder.bias": None} if "bert" in name else {}))
    assert open_model(LocalFiles(source)).shape.tied_embeddings
    grown(source, tmp_path / "out", *exact(name))
    assert_same(source, tmp_path / "out")


def test_a_bert_s_bias_counts_as_well(tmp_path: Path) -> None:
    """Equal matrices and two biases: plain transformers keeps both, so the growth does. Half a head is refused."""
    source = contradicting("bert, untied", tmp_path / "source")
    embedding = load_file(source / "model.safetensors")["bert.embeddings.word_embeddings.weight"].clone()
    change(source, **{"cls.predictions.decoder.weight": embedding})
    grown(source, tmp_path / "out", *exact("bert"))
    assert_same(source, tmp_path / "out")
    change(source, **{"cls.predictions.decoder.weight": None})
    done = grow(source, tmp_path / "half", *folders.DEEP)
    assert done.exit_code == 2, done.output
    assert "cls.predictions.decoder.bias unlike cls.predictions.bias" in done.stderr
    assert not (tmp_path / "half").exists()
