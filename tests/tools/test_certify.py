"""`raystage certify` on real folders: Hugging Face models made by save_pretrained, raystage checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from growths import tiny
from raystage.cli.main import main
from raystage.files.filesystem import open_folder
from raystage.models.shape import parameters
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.writing import placed, shard_name, write_shard
from real_models import made_up

SIZES = {
    "vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, [*map(str, arguments)])


def certified(*arguments: object) -> dict:
    done = invoke("certify", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def grow(source: Path, target: Path, *arguments: str) -> Path:
    done = invoke("grow", source, target, *arguments)
    assert done.exit_code == 0, done.output
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("models") / "llama"
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deeper(llama: Path) -> Path:
    return grow(llama, llama.with_name("deeper"), "--set=num_layers=4", "--operator=identity")


def test_an_exact_growth_of_a_folder(llama: Path, deeper: Path) -> None:
    found = certified(llama, deeper)
    assert (found["source"], found["target"]) == (str(llama), str(deeper))
    assert (found["operator"], found["exact"], found["exact_in"]) == ("identity", True, "any")
    certificate = found["certificate"]
    assert list(certificate)[:3] == ["eval_loss_before", "eval_loss_after", "max_logit_difference"]
    assert certificate["max_logit_difference"] < 1e-5
    assert certificate["eval_loss_after"] == pytest.approx(certificate["eval_loss_before"], abs=1e-5)
    assert certificate["activation_rms_ratio"] == pytest.approx([1.0] * 4)
    assert certificate["gradient_error"] < 1e-4
    assert certificate["twin_distance"] > 1e-3
    assert certificate["twin_steps"] == 20
    assert certificate["moment_norms"] == {}


def test_width_and_a_growth_that_is_not_exact(llama: Path, tmp_path: Path) -> None:
    wider = grow(llama, tmp_path / "wider", "--set=hidden_size=32", "--set=ffn_size=48", "--operator=duplicate")
    assert certified(llama, wider)["certificate"]["gradient_error"] < 1e-4
    stacked = certified(llama, grow(llama, tmp_path / "stacked", "--set=num_layers=4", "--operator=stack"))
    assert stacked["exact"] is False
    assert stacked["certificate"]["max_logit_difference"] > 0.1
    assert stacked["certificate"]["gradient_error"] is None
    assert stacked["certificate"]["gradient_error_estimated"] > 0.1


def test_a_target_that_does_not_say_how_it_was_grown(llama: Path, deeper: Path, tmp_path: Path) -> None:
    """Grown by someone else: what needs no growth map is measured all the same."""
    foreign = tmp_path / "foreign"
    transformers.LlamaForCausalLM.from_pretrained(deeper).save_pretrained(foreign)
    found = certified(llama, foreign)
    assert (found["operator"], found["exact"]) == (None, None)
    certificate = found["certificate"]
    assert certificate["max_logit_difference"] < 1e-5
    assert certificate["activation_rms_ratio"] == [None] * 4
    assert (certificate["gradient_error"], certificate["twin_distance"]) == (None, None)
    same = certified(llama, llama)["certificate"]
    assert (same["max_logit_difference"], same["activation_rms_ratio"]) == (0.0, [1.0, 1.0])


def test_the_table_is_for_people(llama: Path, deeper: Path) -> None:
    done = invoke("certify", llama, deeper)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "grown by identity, which claims the same function" in text
    assert "logits differ by 0 " in text
    assert "activation RMS, layer by layer 1.000 1.000 1.000 1.000" in text
    assert done.stderr == ""


def test_real_text_gives_another_loss(llama: Path, deeper: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three " * 100)
    random = certified(llama, deeper)["certificate"]
    read = certified(llama, deeper, "--text", tmp_path / "text.txt")["certificate"]
    assert read["eval_loss_before"] != random["eval_loss_before"]
    assert read["max_logit_difference"] < 1e-5


# --- raystage checkpoints -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with moments, as a stage leaves it."""
    shape, folder = tiny("llama"), tmp_path_factory.mktemp("checkpoints") / "source"
    pieces = [
        (parameter.name, state, 0, (1e-3 if state != "fp32" else 1.0) * made_up(shape, state)[parameter.name])
        for parameter in parameters(shape)
        for state in ("fp32", "exp_avg", "exp_avg_sq")
    ]
    shard = write_shard(
        open_folder(folder), shard_name(0, 1), [(n, s, i, v.astype(np.float32)) for n, s, i, v in pieces]
    )
    entries = tuple(ParameterEntry(one.name, one.shape, "float32", 7) for one in parameters(shape))
    manifest = Manifest(shape, entries, placed([shard]), "", 7, 700, {}, {"seed": 0}, {}, {})
    checkpoint.commit(open_folder(folder), manifest)
    return folder


def test_a_checkpoint_has_moments_to_compare(saved: Path, tmp_path: Path) -> None:
    found = certified(saved, grow(saved, tmp_path / "grown", "--set=num_layers=4", "--operator=identity"))
    assert found["exact"] is True
    certificate = found["certificate"]
    assert certificate["max_logit_difference"] < 1e-5
    assert certificate["gradient_error"] < 1e-4
    for state in ("exp_avg", "exp_avg_sq"):
        norms = certificate["moment_norms"][state]
        assert norms["before"] > 0
        assert norms["after"] == pytest.approx(norms["before"])  # kept layers keep theirs, new ones have none


def test_moments_that_were_reset_have_no_norm(saved: Path, tmp_path: Path) -> None:
    target = grow(saved, tmp_path / "grown", "--set=num_layers=4", "--optimizer-state=reset")
    norms = certified(saved, target)["certificate"]["moment_norms"]
    assert {norm["after"] for norm in norms.values()} == {0.0}


# --- what cannot be certified ---------------------------------------------------------------------


def refused(*arguments: object) -> str:
    done = invoke("certify", *arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    return done.stderr


def test_what_is_not_there(llama: Path, tmp_path: Path) -> None:
    assert "TARGET: no such folder" in refused(llama, tmp_path / "nothing")
    assert "SOURCE: no such folder" in refused(tmp_path / "nothing", llama)
    assert "--text: cannot be read" in refused(llama, llama, "--text", tmp_path / "nothing")


def test_a_source_that_the_target_was_not_grown_from(llama: Path, deeper: Path, saved: Path) -> None:
    said = refused(deeper, grow(saved, saved.with_name("other"), "--set=num_layers=6"))
    assert "TARGET: was grown by stack" in said
    assert "does not lead to it from SOURCE" in said


def test_a_text_for_other_tokens_or_too_short(llama: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short")
    text = ("--text", tmp_path / "text.txt")
    assert "--text: found 5 bytes; expected at least 128" in refused(llama, llama, *text)
    assert "--text: found a vocabulary of 31; expected 257" in refused(saved, saved, *text)


def test_a_model_without_a_head(tmp_path: Path) -> None:
    transformers.LlamaModel(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path / "bare")
    said = refused(tmp_path / "bare", tmp_path / "bare")
    assert "architectures: found LlamaModel; expected a language model of transformers" in said
