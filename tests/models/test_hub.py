"""Names of the hub, brought to a commit: in a cache laid out as the hub's own, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from exports import byte_shape, exported, make_checkpoint
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule
from raystage.data.hf_tokenizer import pretrained
from raystage.errors import InputError
from raystage.models import hub
from raystage.planning.build import make_plan
from raystage.plans.initial import check_same
from started_models import make, make_schedule

OLD, NEW = "a" * 40, "b" * 40
MODEL = {"num_layers": 2, "hidden_size": 16, "num_heads": 4, "context_length": 12, "vocab_size": 300}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a machine that is not online."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def put(cache: Path, name: str, commit: str, files: Path) -> None:
    """The files as a commit of a model, which `main` means from now on."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "blobs").mkdir(exist_ok=True)
    (place / "refs/main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    for file in files.iterdir():
        blob = place / "blobs" / f"{commit}-{file.name}"
        blob.write_bytes(file.read_bytes())
        (place / "snapshots" / commit / file.name).symlink_to(Path("../../blobs", blob.name))


def tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer alone."""
    exported(make_checkpoint(folder / "saved", byte_shape("llama")), folder / "whole")
    (folder / "tokens").mkdir()
    for file in (folder / "whole").glob("tokenizer*"):
        file.rename(folder / "tokens" / file.name)
    return folder / "tokens"


def schedule(texts: Path, name: str) -> Schedule:
    texts.mkdir(exist_ok=True)
    return make_schedule(texts, None, model=MODEL, data={"tokenizer": name})


def test_a_tokenizer_is_known_by_its_commit(tmp_path: Path, cache: Path) -> None:
    files = tokenizer(tmp_path)
    put(cache, "some/one", OLD, files)
    (before,) = make_plan(schedule(tmp_path / "texts", "some/one")).staged.stages
    assert (before.data.tokenizer, before.data.tokenizer_fingerprint) == (f"some/one@{OLD}",) * 2
    put(cache, "some/one", NEW, files)
    (after,) = make_plan(schedule(tmp_path / "texts", "some/one")).staged.stages
    assert after.data.tokenizer == f"some/one@{NEW}"
    assert after.key != before.key
    for name in (f"some/one@{OLD}", f"some/one@{NEW}", "some/one@main"):
        (stage,) = make_plan(schedule(tmp_path / "texts", name)).staged.stages
        assert stage.key == (before if OLD in name else after).key
        assert len(pretrained(stage.data.tokenizer, offline=True)) == 257


def test_a_name_that_nothing_knows_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.tokenizer: found 'no/one', no folder here, and the hub did not give"):
        make_plan(schedule(tmp_path / "texts", "no/one"))
    put(cache, "some/one", OLD, tokenizer(tmp_path))
    with pytest.raises(InputError, match="found 'some/one@other'"):
        make_plan(schedule(tmp_path / "texts", "some/one@other"))
    assert hub.pinned(f"no/one@{OLD}", "data.tokenizer") == f"no/one@{OLD}"


def test_a_model_s_commit_is_kept_and_found_on_every_node(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its cache lies elsewhere; there it has to hold the same files."""
    source = make(tmp_path / "model", "llama")
    put(cache, "some/model", OLD, source)
    (tmp_path / "texts").mkdir()
    plan = make_plan(make_schedule(tmp_path / "texts", Path("some/model")))
    (stage,) = plan.staged.stages
    assert f'"from": "some/model@{OLD}"' in json.dumps(plan_json(plan))
    assert stage.key == make_plan(make_schedule(tmp_path / "texts", source)).staged.stages[0].key
    moved = cache.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(moved))
    assert check_same(stage.init) == moved / "models--some--model/snapshots" / OLD
    (moved / f"models--some--model/blobs/{OLD}-model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="found another model"):
        check_same(stage.init)
