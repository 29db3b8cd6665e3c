"""`raystage average`: the weighted average of whole models of one shape, and what it says where they are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file

import raystage
from raystage.cli.main import main
from raystage.data.trained_on import NOT_KNOWN, TrainedOn, TrainingText
from raystage.errors import InputError
from raystage.files.filesystem import Folder, open_folder
from raystage.growth.apply import STATES
from raystage.models.shape import ModelShape, parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.writing import Piece, placed, shard_name, write_shard
from raystage.storage.store import Store
from raystage.tools.average import average
from raystage.tools.grow import open_source, open_target

SHAPE = ModelShape("llama", 2, 16, 4, 2, 4, 24, 31, 12)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["average", *map(str, arguments)])


def text(number: int) -> TrainedOn:
    return TrainedOn((TrainingText(f"corpus {number}", 0.5, number, frozenset()),))


def make_checkpoint(
    folder: Folder, seed: int, shape: ModelShape = SHAPE, workers: int = 2, states: tuple[str, ...] = STATES,
    cursor: dict | None = None,
) -> Manifest:  # fmt: skip
    """A checkpoint such as `workers` leave, with numbers drawn from a seed, at 1,000 tokens for each."""
    generator = np.random.default_rng(seed)
    pieces: list[list[Piece]] = [[] for _ in range(workers)]
    for one in parameters(shape):
        for state in states:
            start = 0
            for rank, part in enumerate(np.array_split(generator.random(one.numel, dtype=np.float32), workers)):
                pieces[rank].append((one.name, state, start, part))
                start += part.size
    shards = placed(write_shard(folder, shard_name(rank, workers), own) for rank, own in enumerate(pieces))
    manifest = Manifest(
        model=shape,
        parameters=tuple(ParameterEntry(one.name, one.shape, "float32", 10 * seed) for one in parameters(shape)),
        shards=shards,
        stage_key=f"{seed}" * 64,
        step=10 * seed,
        tokens=1000 * seed,
        data_cursor={"tokens": 1000 * seed, "seed": 3, "trained_on": text(seed).to_json(), **(cursor or {})},
        rng={"seed": 3},
        optimizer={"name": "adamw", "lr": 1e-3},
        progress={"steps": 10 * seed, "tokens": 1000 * seed, "flops": 10**9, "seconds": 7.5, "evaluations": [1]},
    )
    checkpoint.commit(folder, manifest)
    return manifest


def states_of(path: Path) -> dict[tuple[str, str], np.ndarray]:
    opened = Checkpoint(open_folder(path))
    found = {
        (one.name, state): opened.read(one.name, state, 0, one.numel)
        for one in parameters(opened.manifest.model)
        for state in opened.states
    }
    opened.close()
    return found


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three checkpoints, each in the layout of other workers."""
    for seed in (1, 2, 3):
        make_checkpoint(open_folder(tmp_path / str(seed)), seed, workers=seed)
    return [tmp_path / str(seed) for seed in (1, 2, 3)]


# --- raystage checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ((), (1 / 3, 1 / 3, 1 / 3)),
        (("--weights", "0.2,0.3,0.5"), (0.2, 0.3, 0.5)),
        (("--weights", "1,2,1"), (0.25, 0.5, 0.25)),
        (("--weights", "wsm"), (0.25, 0.5, 0.25)),
        (("--weights", "wsm", "--decay-shape", "1-sqrt"), (0.4714, 0.3905, 0.1381)),
    ],
    ids=str,
)
def test_weights_are_averaged_and_the_rest_is_of_the_last(
    three: list[Path], tmp_path: Path, options: tuple, weights: tuple
) -> None:
    done = run(*three, "--output", tmp_path / "out", *options, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["weights"] == pytest.approx(weights, abs=1e-4)
    members, found = [states_of(path) for path in three], states_of(tmp_path / "out")
    assert found.keys() == members[0].keys()
    for key, values in found.items():
        if key[1] == "fp32":
            exact = sum(w * one[key].astype(np.float64) for w, one in zip(said["weights"], members, strict=True))
            np.testing.assert_array_equal(values, exact.astype(np.float32), err_msg=str(key))
        else:
            np.testing.assert_array_equal(values, members[-1][key], err_msg=str(key))


def test_the_manifest_is_that_of_the_last_and_says_what_was_averaged(three: list[Path], tmp_path: Path) -> None:
    assert run(*three, "--output", tmp_path / "out").exit_code == 0
    last, found = (checkpoint.read_manifest(open_folder(path)) for path in (three[-1], tmp_path / "out"))
    assert (found.parameters, found.step, found.tokens, found.rng) == (last.parameters, 30, 3000, last.rng)
    assert (found.stage_key, found.grown_from) == ("", None)
    assert found.averaged_from["sources"] == [open_folder(path).uri for path in three]
    seen = TrainedOn.from_json(found.data_cursor["trained_on"])
    assert {one.fingerprint for one in seen.texts} == {"corpus 1", "corpus 2", "corpus 3"}
    assert (found.progress["evaluations"], found.progress["flops"], found.progress["seconds"]) == ([], 10**9, 0.0)
    assert b"averaged_from" not in last.to_bytes()


def test_a_text_that_is_not_known_stays_so(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_checkpoint(open_folder(tmp_path / str(seed)), seed, cursor={"trained_on": None} if seed == 1 else None)
    assert run(tmp_path / "1", tmp_path / "2", "--output", tmp_path / "out").exit_code == 0
    found = checkpoint.read_manifest(open_folder(tmp_path / "out")).data_cursor["trained_on"]
    assert not TrainedOn.from_json(found).is_whole
    assert NOT_KNOWN.is_whole is False


def test_an_average_of_equals_is_that_model_to_the_bit(tmp_path: Path) -> None:
    make_checkpoint(open_folder(tmp_path / "one"), 1)
    same = [tmp_path / "one"] * 7
    assert run(*same, "--output", tmp_path / "out").exit_code == 0
    for key, values in states_of(tmp_path / "one").items():
        np.testing.assert_array_equal(states_of(tmp_path / "out")[key], values)


def test_it_is_written_in_pieces(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystage.tools.average._STEP", 100)
    store = Store(open_folder(tmp_path / "store"))
    sources = [open_source(str(path), store) for path in three]
    average(sources, open_target(str(tmp_path / "pieces")), max_shard_bytes=10_000)
    assert run(*three, "--output", tmp_path / "whole").exit_code == 0
    manifest = checkpoint.read_manifest(open_folder(tmp_path / "pieces"))
    assert len(manifest.shards) > 3
    pieces, whole = states_of(tmp_path / "pieces"), states_of(tmp_path / "whole")
    assert all(np.array_equal(values, whole[key]) for key, values in pieces.items())


def test_from_python(three: list[Path], tmp_path: Path) -> None:
    done = raystage.average(three[:2], tmp_path / "out", weights=[0.9, 0.1], store=str(tmp_path / "store"))
    assert done["weights"] == pytest.approx([0.9, 0.1])
    assert (done["kind"], done["target"]) == ("checkpoint", open_folder(tmp_path / "out").uri)
    with pytest.raises(InputError, match="output: exists and is not empty"):
        raystage.average(three, tmp_path / "out", store=str(tmp_path / "store"))


# --- Hugging Face folders -----------------------------------------------------------------------


def make_llama(path: Path, seed: int, dtype: torch.dtype = torch.float32, layers: int = 2) -> Path:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=12, pad_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(path, max_shard_size="8KB" if seed == 2 else "1GB")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folders_are_averaged_in_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """However their tensors are spread over files; the files beside the weights are the last model's."""
    folders = [make_llama(tmp_path / str(seed), seed, dtype) for seed in (1, 2, 3)]
    (folders[2] / "tokenizer.json").write_text("{}")
    done = run(*folders, "--output", tmp_path / "out", "--weights", "0.5,0.25,0.25", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kind"] == "huggingface"
    models = [transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype) for folder in folders]
    states = [model.state_dict() for model in models]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == states[0].keys()
    for name, values in found.items():
        exact = sum(w * state[name].double() for w, state in zip((0.5, 0.25, 0.25), states, strict=True))
        assert torch.equal(values, exact.to(dtype)), name
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["averaged_from"])["weights"] == [0.5, 0.25, 0.25]
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")


# --- what is refused ----------------------------------------------------------------------------


def refused(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.stderr.split())


def test_models_that_are_not_alike(three: list[Path], tmp_path: Path) -> None:
    deeper, other = tmp_path / "deeper", tmp_path / "other tokens"
    make_checkpoint(open_folder(deeper), 4, replace(SHAPE, num_layers=3))
    make_checkpoint(open_folder(other), 4, cursor={"tokenizer_fingerprint": "b"})
    make_checkpoint(open_folder(tmp_path / "these tokens"), 5, cursor={"tokenizer_fingerprint": "a"})
    folder, untied = make_llama(tmp_path / "hf", 1), make_llama(tmp_path / "hf deeper", 1, layers=3)
    out = ("--output", tmp_path / "out")
    said = refused(three[0], deeper, *out)
    assert f"{open_folder(deeper).uri}: CHECKPOINT: found num_layers 3; expected 2, as in {three[0]}" in said.replace(
        open_folder(three[0]).uri, str(three[0])
    )
    assert "found a Hugging Face folder; expected a checkpoint" in refused(three[0], folder, *out)
    assert "found num_layers 3; expected 2" in refused(folder, untied, *out)
    assert "another tokenizer; expected the same" in refused(other, tmp_path / "these tokens", *out)
    assert "found one model; expected two or more" in refused(three[0], *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("mean", "--weights: found 'mean'; expected uniform, wsm, or a number for each model such as 0.2,0.3,0.5"),
        ("1,2", "--weights: found 2 numbers for 3 models; expected one for each"),
        ("1,-1,1", "--weights: found '1,-1,1'; expected numbers from 0 on, one of them above 0"),
        ("0,0,0", "--weights: found '0,0,0'; expected numbers from 0 on, one of them above 0"),
        ("nan,1,1", "--weights: found 'nan,1,1'; expected"),
    ],
)
def test_weights_that_make_no_sense(three: list[Path], tmp_path: Path, weights: str, said: str) -> None:
    assert said in refused(*three, "--output", tmp_path / "out", "--weights", weights)
    assert not (tmp_path / "out").exists()


def test_wsm_wants_the_checkpoints_in_their_order(three: list[Path], tmp_path: Path) -> None:
    said = refused(*reversed(three), "--output", tmp_path / "out", "--weights", "wsm")
    assert "found a checkpoint at 2000 after one at 3000; expected those of one run in their order" in said


def test_a_damaged_model_is_named_and_nothing_stays(three: list[Path], tmp_path: Path) -> None:
    opened = Checkpoint(open_folder(three[1]))
    first, weight = opened.manifest.shards[0], next(one for one in opened.fragments(0) if one.state == "fp32")
    content = bytearray((three[1] / first.file).read_bytes())
    content[weight.offset] ^= 1  # moments of all but the last are not read
    (three[1] / first.file).write_bytes(content)
    assert "damaged; " in refused(*three, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(three[2])
    assert "no such folder; expected a raystage checkpoint" in refused(*three, "--output", tmp_path / "out")
    assert "--output" in refused(three[0], three[0], "--output", three[0])
