"""Tokenizing by several processes: the bytes of one process, with finished shards kept where it is killed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import raystage.sources.jsonl
from factories import make_schedule
from labelled_files import images, write_folders
from raystage.cli.main import main
from raystage.config.schedule import parse
from raystage.data import token_cache, token_shards
from raystage.data.plan import DataPlan
from raystage.data.samples import open_samples
from raystage.data.token_cache import open_index
from raystage.data.token_index import cache_folder, read_index
from raystage.errors import InputError, StorageError
from raystage.planning.build import make_plan
from raystage.process_pool import ProcessFailed, in_processes
from row_files import TEXTS, write_jsonl


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataPlan:
    """Rows in many blocks."""
    monkeypatch.setattr(raystage.sources.jsonl, "BLOCK_BYTES", 500)
    write_jsonl(tmp_path / "rows/a.jsonl", TEXTS[:50])
    write_jsonl(tmp_path / "rows/b.jsonl", TEXTS[50:])
    content = make_schedule(tmp_path / "rows").content()
    content["data"] = {"source": "jsonl", "path": str(tmp_path / "rows"), "validation_fraction": 0.3}
    return make_plan(parse(content)).staged.stages[0].data


def streams_of(data: DataPlan, cache: Path, workers: int, progress: token_shards.Progress | None = None) -> list[bytes]:
    folder = cache_folder(data, cache)
    open_index(data, folder, workers, progress)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["held_out.bin", "held_out_lengths.bin", "index.json", "train.bin", "train_lengths.bin"]
    return [(folder / name).read_bytes() for name in names if name != "index.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_killed_is_continued_and_makes_the_same_bytes(
    planned: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """By several processes, and on one core where the text is long."""
    alone = streams_of(planned, tmp_path / "alone", 1)
    monkeypatch.setattr(token_cache, "PARALLEL_BYTES", 0)
    told: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        told.append((done, total))
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streams_of(planned, tmp_path / "cache", workers, killed)
    shards = Path(f"{cache_folder(planned, tmp_path / 'cache')}.shards")
    finished = sorted(path.name for path in shards.glob("*.json"))
    assert len(finished) >= 2
    damaged = shards / finished[0].replace(".json", ".train")
    os.truncate(damaged, max(0, damaged.stat().st_size - 2))
    kept = {name: (shards / name).stat().st_mtime_ns for name in finished[1:]}
    again: list[tuple[int, int]] = []

    def look(done: int, total: int) -> None:
        again.append((done, total))
        assert {name: (shards / name).stat().st_mtime_ns for name in kept} == kept

    assert streams_of(planned, tmp_path / "cache", workers, look) == alone
    assert 0 < again[0][0] < 60
    assert again[-1] == (60, 60)
    assert again == sorted(again)
    assert told[0] == (0, 60)
    assert not shards.exists()


def test_a_shard_whose_content_changed_is_noticed_and_made_again(planned: DataPlan, tmp_path: Path) -> None:
    """A changed bit, under the size that it had. The shards are written by this process."""
    corpus = raystage.sources.jsonl.read(planned.path, planned.options)
    pieces = corpus.pieces(0.3)
    for number, piece in enumerate(pieces):
        token_shards.write_shard(piece, number, planned, "uint16", str(tmp_path))
    whole = b"".join(token_shards.read_shards(pieces, tmp_path, "train"))
    content = bytearray((tmp_path / "000001.train").read_bytes())
    content[3] ^= 1
    (tmp_path / "000001.train").write_bytes(content)
    with pytest.raises(StorageError, match="shard 1 was damaged and is removed"):
        list(token_shards.read_shards(pieces, tmp_path, "train"))
    assert token_shards._described(tmp_path, 1, pieces[1]) is None
    token_shards.write_shard(pieces[1], 1, planned, "uint16", str(tmp_path))
    assert b"".join(token_shards.read_shards(pieces, tmp_path, "train")) == whole
    assert token_shards._described(tmp_path, 1, pieces[2]) is None


def test_an_error_of_a_process_is_that_of_the_caller(planned: DataPlan, tmp_path: Path) -> None:
    """A file that changed after it was hashed, and a process that dies."""
    corpus = raystage.sources.jsonl.read(planned.path, planned.options)
    write_jsonl(tmp_path / "rows/a.jsonl", TEXTS[::-1])
    (tmp_path / "shards").mkdir()
    with pytest.raises(InputError, match=r"^data.path: '.*a.jsonl' changed after it was planned with"):
        token_shards.write_shards(corpus.pieces(0.3), planned, np.dtype("uint16"), tmp_path / "shards", 2, None)
    with pytest.raises(ProcessFailed, match="a process ended with status 3 while it ran os:_exit"):
        list(in_processes("os:_exit", [(3,)], 2))
    assert sorted(in_processes("builtins:len", [("ab",), ("abc",)], 2)) == [(0, 2), (1, 3)]


def test_long_texts_are_worth_processes(planned: DataPlan, tmp_path: Path) -> None:
    making = token_cache.Making(tmp_path)
    assert making.workers_for(planned) == 1
    long = replace(planned, train=replace(planned.train, num_bytes=token_cache.PARALLEL_BYTES))
    assert making.workers_for(long) == token_cache.num_cpus()
    assert replace(making, workers=3).workers_for(planned) == 3


def test_the_command_prepares_every_text_of_a_schedule(
    planned: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    schedule = make_schedule(tmp_path / "rows")
    content = schedule.content() | {"data": {"source": "jsonl", "path": planned.path[0], "validation_fraction": 0.3}}
    entries = [
        content["data"],
        {"source": "text", "path": planned.path[0], "files": "*.txt", "validation_fraction": 0.5},
    ]
    mixture = [{**entry, "name": name, "weight": 0.5} for name, entry in zip(("rows", "files"), entries, strict=True)]
    content["stages"][1]["data"] = {"mixture": mixture}
    (tmp_path / "schedule.json").write_text(json.dumps(content))
    done = CliRunner().invoke(main, ["data", "prepare", str(tmp_path / "schedule.json"), "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    texts = json.loads(done.stdout)["texts"]
    assert [one["source"] for one in texts] == ["jsonl", "text"]
    assert texts[0]["tokens"] == planned.train.num_bytes + planned.train.documents
    assert {path.name for path in (tmp_path / "home/raystage/tokens").iterdir() if path.is_dir()} == {
        Path(one["folder"]).name for one in texts
    }


def test_the_command_prepares_the_samples_of_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prepares is what a stage then opens, and it says nothing but that: no bar where nobody looks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    model = {"family": "vit", "patch_size": 2, "num_layers": 1, "hidden_size": 16, "num_heads": 2}
    content = {
        "name": "t", "model": model, "training": {"global_batch_samples": 4},
        "data": {"source": "images", "path": str(write_folders(tmp_path / "pets", images(40)))},
        "stages": [
            {"name": "seen", "objective": "denoising", "until": {"samples": 8}},
            {"name": "named", "objective": "classification", "until": {"epochs": 1}},
        ],
    }  # fmt: skip
    (tmp_path / "schedule.json").write_text(json.dumps(content))
    done = CliRunner().invoke(main, ["data", "prepare", str(tmp_path / "schedule.json"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    stages = make_plan(parse(content)).staged.stages
    index = read_index(cache_folder(stages[1].data))
    counts = f"{index.train_samples} samples, {index.held_out_samples} held out"
    assert index.train_samples + index.held_out_samples == 40
    assert re.fullmatch(rf"images {tmp_path}/pets: {counts}, .* s, in {cache_folder(stages[1].data)}\n", done.output)
    assert len(open_samples(stages[1].data).train) == index.train_samples


def test_processes_run_no_code_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('code of the working folder')")
    monkeypatch.chdir(tmp_path)
    assert list(in_processes("os.path:basename", [("/a/b",)], 1)) == [(0, "b")]
