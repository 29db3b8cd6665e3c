"""Files from elsewhere: nothing in them runs, nothing is fetched for them, and nobody is asked to trust them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import folders
from exports import byte_shape, exported, make_checkpoint
from raystage.cli.main import main

PACKAGE = Path(__file__).parents[2] / "raystage"
# What of transformers would run a folder's own code, and asks for leave unless it is told.
LOADERS = {"from_pretrained", "from_config"}


def invoke(*arguments: object) -> Result:
    """Whatever is asked is answered with yes."""
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, [*map(str, arguments)], input="y\n" * 20)


def foreign_tokenizer(folder: Path, marker: Path) -> Path:
    """A tokenizer whose own code writes a file."""
    folder.mkdir()
    code = f"open({str(marker)!r}, 'w')\nimport transformers\nclass Own(transformers.PreTrainedTokenizer):\n    pass\n"
    (folder / "own.py").write_text(code)
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_no_call_leaves_open_whether_foreign_code_is_trusted() -> None:
    calls = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in LOADERS:
                said = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
                calls[f"{path.name}:{node.lineno}"] = said.get("trust_remote_code")
            if isinstance(node, ast.Dict):  # what lm-eval passes on
                said = {getattr(key, "value", None): getattr(value, "value", None) for key, value in
                        zip(node.keys, node.values, strict=True)}  # fmt: skip
                if "pretrained" in said:
                    calls[f"{path.name}:{node.lineno}"] = said.get("trust_remote_code")
    assert len(calls) >= 3
    assert not {place for place, trusted in calls.items() if trusted is not False}


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_a_checkpoint_s_tokenizer_runs_no_code(tmp_path: Path, is_asked_for: bool) -> None:
    marker = tmp_path / "ran"
    tokenizer = foreign_tokenizer(tmp_path / "tokenizer", marker)
    saved = make_checkpoint(tmp_path / "saved", byte_shape("llama"), None if is_asked_for else str(tokenizer))
    done = invoke("export", saved, tmp_path / "out", *([f"--tokenizer={tokenizer}"] if is_asked_for else []))
    assert not marker.exists()
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert "custom code" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_s_tokenizer_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a hub name is looked up on this machine, unless the user names it."""
    asked: list[str] = []

    def get(*arguments: object, **options: object) -> None:
        asked.append(str(arguments))
        raise OSError("no network here")

    monkeypatch.setattr("httpx.Client.send", get)
    monkeypatch.setattr("socket.create_connection", get)
    done = invoke("export", make_checkpoint(tmp_path / "saved", byte_shape("llama"), "some/one"), tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "'some/one' cannot be loaded" in done.stderr
    assert "it is not in this machine's cache" in done.stderr
    assert not asked


def test_a_folder_in_place_of_a_hub_name_is_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make_checkpoint(tmp_path / "saved", byte_shape("llama"), "some/one")
    exported(make_checkpoint(tmp_path / "plain", byte_shape("llama")), tmp_path / "some/one")
    monkeypatch.chdir(tmp_path)
    done = invoke("export", saved, "out")
    assert (done.exit_code, "found other files in 'some/one'" in done.stderr) == (2, True), done.output
    assert invoke("export", saved, "out", "--tokenizer=some/one").exit_code == 0


def test_a_folder_s_adapter_is_refused(tmp_path: Path) -> None:
    source = folders.make("llama", tmp_path / "source")
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/one"}))
    done = invoke("grow", source, tmp_path / "out", "--set=num_layers=4")
    assert (done.exit_code, "adapter_config.json: found an adapter" in done.stderr) == (2, True), done.output


def test_kernels_of_the_hub_are_refused(tmp_path: Path) -> None:
    source = folders.make("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_attn_implementation": "some/kernel"}))
    done = invoke("certify", source, source)
    assert done.exit_code == 2, done.output
    assert "_attn_implementation: found 'some/kernel', which is code of the hub" in done.stderr
