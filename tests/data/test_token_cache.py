"""The token cache of a machine: whole or made anew, and made of just the text that was planned with."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chats import conversations, save_chat_words, write_chats
from factories import make_schedule
from raystage.data import token_cache, token_streams
from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.data.token_index import cache_folder, read_index
from raystage.data.tokens import open_streams
from raystage.errors import InputError, StorageError
from raystage.planning.build import make_plan
from raystage.sources.corpus import Corpus
from raystage.sources.table import read_corpus

SIZE = 257


@pytest.fixture
def planned(tmp_path: Path) -> DataPlan:
    folder = tmp_path / "text"
    folder.mkdir()
    return make_plan(make_schedule(folder)).staged.stages[0].data


def cut(folder: Path) -> None:
    os.truncate(folder / "train.bin", 100)


def flip(folder: Path) -> None:
    """One bit, under the time stamp that the file had."""
    path = folder / "held_out.bin"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def empty_index(folder: Path) -> None:
    (folder / "index.json").write_text("")


def other_type(folder: Path) -> None:
    index = folder / "index.json"
    index.write_text(index.read_text().replace("uint16", "uint32"))


def older_version(folder: Path) -> None:
    (folder / "index.json").write_text('{"dtype": "uint16", "tokenizer_size": 257}')


def flip_mark(folder: Path) -> None:
    path = folder / "train_marks.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def missing_marks(folder: Path) -> None:
    (folder / "held_out_marks.bin").unlink()


def missing(folder: Path) -> None:
    (folder / "held_out.bin").unlink()


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def link_to_elsewhere(folder: Path) -> None:
    shutil.rmtree(folder)
    elsewhere = folder.parent.parent / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)


def folder_in_a_file(folder: Path) -> None:
    (folder / "train.bin").unlink()
    (folder / "train.bin").mkdir()


DAMAGES = [
    cut, flip, empty_index, other_type, older_version, missing, file_in_its_place, link_to_elsewhere, folder_in_a_file,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(damage, planned: DataPlan, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = [np.array(stream) for stream in _streams(planned, cache)]
    damage(cache_folder(planned, cache))
    for one, other in zip(_streams(planned, cache), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
    assert sorted(path.name for path in cache_folder(planned, cache).iterdir()) == [
        "held_out.bin", "held_out_lengths.bin", "index.json", "train.bin", "train_lengths.bin",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [cut, lambda folder: (folder / "train.bin").write_bytes(bytes(1080))])
def test_of_long_streams_size_and_time_stamp_are_looked_at(
    damage, planned: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "SMALL_BYTES", 0)
    before = [np.array(stream) for stream in _streams(planned, tmp_path)]
    damage(cache_folder(planned, tmp_path))
    for one, other in zip(_streams(planned, tmp_path), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_long_streams_are_not_read_whole(planned: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [np.array(stream) for stream in _streams(planned, tmp_path)]
    monkeypatch.setattr(token_cache, "SMALL_BYTES", 0)
    monkeypatch.setattr(token_cache, "_checksum", lambda _: pytest.fail("read"))
    for one, other in zip(_streams(planned, tmp_path), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_document_that_is_edited_in_between_is_no_part_of_the_cache(
    planned: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was looked at, and before it is tokenized."""

    def then_edit(*asked: object) -> Corpus:
        found = read_corpus(*asked)
        (Path(planned.path[0]) / "3.txt").write_text("edited in between, and as long as it was, or longer" * 4)
        return found

    monkeypatch.setattr(token_cache, "read_corpus", then_edit)
    with pytest.raises(InputError, match=r"data.path: '.*3.txt' changed while it was read"):
        _streams(planned, tmp_path / "cache")
    assert read_index(cache_folder(planned, tmp_path / "cache")) is None
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_many_processes_make_one_cache(planned: DataPlan, tmp_path: Path) -> None:
    """Only one of them does; the others wait for it and read the same."""
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        found = pool.starmap(_made_by, [(planned, tmp_path)] * 4)
    assert len({total for _, total in found}) == 1
    assert sum(made for made, _ in found) == 1


def _made_by(planned: DataPlan, cache: Path) -> tuple[bool, int]:
    made, real = [], token_cache._make
    token_cache._make = lambda *asked: made.append(1) or real(*asked)
    streams = _streams(planned, cache)
    return bool(made), int(sum(int(stream.sum()) for stream in streams))


def test_the_file_of_the_lock_is_not_emptied_where_it_is_a_link(planned: DataPlan, tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", cache_folder(planned, tmp_path / "cache")
    mine.write_text("to be kept")
    folder.parent.mkdir()
    Path(f"{folder}.lock").symlink_to(mine)
    _streams(planned, tmp_path / "cache")
    assert mine.read_text() == "to be kept"


def test_one_that_is_killed_leaves_nothing_that_counts(planned: DataPlan, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("forkserver").Process(target=_stop_halfway, args=(planned, cache))
    process.start()
    while not list(cache.glob("*.part-*/train.bin")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(_streams(planned, cache)[0]) == sum(_sizes(planned))
    assert not list(cache.glob("*.part-*"))


def _stop_halfway(planned: DataPlan, cache: Path) -> None:
    token_cache.find_repeats = lambda *_: time.sleep(600)
    _streams(planned, cache)


def _sizes(planned: DataPlan) -> tuple[int, int]:
    return planned.train.num_bytes, planned.train.documents


def test_a_cache_that_cannot_be_written_is_one_message(planned: DataPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the tokens of the text cannot be kept there .*XDG_CACHE_HOME"):
        _streams(planned, tmp_path / "file" / "cache")


def test_an_id_that_the_tokenizer_does_not_know_is_refused() -> None:
    ids = np.array([3, 70000])
    with pytest.raises(InputError, match=r"found the id 70000 in encoded text; expected ids up to .* largest, 255"):
        token_streams.cast(ids, 256, np.dtype(np.uint16))
    assert token_streams.cast(ids, 70001, np.dtype(np.uint32)).tolist() == [3, 70000]


def test_other_facts_are_another_cache(planned: DataPlan, tmp_path: Path) -> None:
    pretrained = replace(planned, tokenizer="words")
    folders = [
        cache_folder(one, tmp_path)
        for one in (
            planned, replace(planned, validation_fraction=0.3), replace(pretrained, end_token="[SEP]"),
            replace(pretrained, encoding_errors="replace"), replace(pretrained, has_controls=True),
        )
    ]  # fmt: skip
    assert len(set(folders)) == 5
    assert cache_folder(replace(planned, end_token="x", encoding_errors="replace"), tmp_path) == folders[0]


def test_what_a_vocabulary_must_hold_is_said_in_ids() -> None:
    assert vocabulary_problem(257, "mine", 1000) == (
        "found 257; expected at least 1000: the ids of the tokenizer 'mine' go up to 999"
    )


def _streams(planned: DataPlan, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    streams = open_streams(planned, SIZE, cache)
    return streams.train, streams.held_out


@pytest.fixture
def chats(tmp_path: Path) -> DataPlan:
    """Conversations in several files, of which each is a shard."""
    for number in range(3):
        write_chats(tmp_path / f"chats/{number}.jsonl", conversations(80)[number::3])
    tokenizer = str(save_chat_words(tmp_path / "words"))
    data = {"source": "jsonl", "path": str(tmp_path / "chats"), "tokenizer": tokenizer}
    (tmp_path / "none").mkdir()
    return make_plan(make_schedule(tmp_path / "none", data=data, objective="instruct")).staged.stages[0].data


@pytest.mark.parametrize("damage", [cut, flip, empty_index, flip_mark, missing_marks])
def test_damaged_marks_are_made_anew(damage, chats: DataPlan, tmp_path: Path) -> None:
    before = open_streams(chats, SIZE, tmp_path / "cache")
    kept = [np.array(one) for one in (before.train, before.held_out, before.train_marks, before.held_out_marks)]
    damage(cache_folder(chats, tmp_path / "cache"))
    after = open_streams(chats, SIZE, tmp_path / "cache")
    for one, other in zip((after.train, after.held_out, after.train_marks, after.held_out_marks), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert after.train_marks.shape == after.train.shape
    assert after.held_out_marks.shape == after.held_out.shape
    assert set(np.unique(after.train_marks)) == {0, 1}


def test_shards_of_conversations_are_joined_to_the_same_streams(chats: DataPlan, tmp_path: Path) -> None:
    folders = [cache_folder(chats, tmp_path / name) for name in ("alone", "together")]
    for folder, workers in zip(folders, (1, 2), strict=True):
        token_cache.open_index(chats, folder, workers)
    names = sorted(path.name for path in folders[0].iterdir())
    sides = [f"{side}{kind}.bin" for side in ("held_out", "train") for kind in ("", "_lengths", "_marks")]
    assert names == sorted([*sides, "index.json"])
    for name in names:
        if name != "index.json":  # it has time stamps
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
