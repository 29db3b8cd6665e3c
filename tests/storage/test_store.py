"""The store: a stage is there when its record is, and a checkpoint when it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from factories import make_record, make_schedule
from raystage.errors import CheckpointError, RaystageError
from raystage.files.filesystem import Folder, open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Evaluation
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest
from raystage.storage.shards.writing import placed, shard_name, write_shard
from raystage.storage.store import RECORD, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


@pytest.fixture
def stage(tmp_path: Path) -> StagePlan:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text")).staged.stages[1]


def save(store: Store, stage: StagePlan, tokens: int, whole: bool = True) -> Folder:
    """A checkpoint at `tokens`, with or without its manifest."""
    folder = store.checkpoint_folder(stage.key, tokens, "attempt")
    folder.make()
    shard = write_shard(folder, shard_name(0, 1), [])
    if whole:
        manifest = Manifest(stage.shape, (), placed([shard]), stage.key, 0, tokens, {}, {}, {}, {})
        checkpoint.commit(folder, manifest)
    return folder


def test_a_record_comes_back_as_it_was_committed(store: Store, stage: StagePlan) -> None:
    record = make_record(stage, 1.5)
    assert store.record(stage.key) is None
    store.commit_record(record)
    assert store.record(stage.key) == record


def test_a_damaged_record_is_named(store: Store, stage: StagePlan) -> None:
    store.stage_folder(stage.key).write_whole(RECORD, b'{"key": 1}')
    with pytest.raises(RaystageError, match=rf"{stage.key}/record.json: damaged .* remove it to train the stage again"):
        store.record(stage.key)


def test_the_latest_checkpoint_is_the_furthest_whole_one(store: Store, stage: StagePlan) -> None:
    assert store.latest_checkpoint(stage.key) is None
    expected = save(store, stage, 1000)
    save(store, stage, 200)
    save(store, stage, 3000, whole=False)
    cut_short = save(store, stage, 2000)
    Path(cut_short.path, shard_name(0, 1)).write_bytes(b"")
    assert store.latest_checkpoint(stage.key) == expected


def test_older_checkpoints_go_and_half_written_ones_are_not_counted(store: Store, stage: StagePlan) -> None:
    kept = [save(store, stage, tokens).name for tokens in (1000, 2000, 3000)][1:]
    half = save(store, stage, 4000, whole=False).name
    store.drop_older_checkpoints(stage.key, keep=2)
    assert (store.stage_folder(stage.key) / "checkpoints").names() == [*kept, half]


def test_the_best_checkpoints_stay_while_a_stage_trains_and_after(store: Store, stage: StagePlan) -> None:
    curve = [Evaluation(tokens, 0, 0, 0.0, loss) for tokens, loss in ((1000, 2.0), (2000, 1.0), (3000, 3.0))]
    names = [save(store, stage, tokens).name for tokens in (1000, 2000, 3000, 4000)]
    store.drop_older_checkpoints(stage.key, keep=1, keep_best=1, evaluations=curve)
    checkpoints = store.stage_folder(stage.key) / "checkpoints"
    assert checkpoints.names() == [names[1], names[3]]
    kept = store.best_checkpoints(stage.key, 1, curve)
    assert kept == (f"checkpoints/{names[1]}",)
    record = make_record(stage, 3.0, checkpoint=f"checkpoints/{names[3]}", best_checkpoints=kept)
    store.commit_record(record)
    assert checkpoints.names() == [names[1], names[3]]
    assert store.record(stage.key) == record


def test_a_finished_stage_keeps_its_last_checkpoint_alone(store: Store, stage: StagePlan) -> None:
    save(store, stage, 1000)
    save(store, stage, 2000, whole=False)
    last = save(store, stage, 3000)
    with pytest.raises(CheckpointError, match="the stage is not finished"):
        store.finished_checkpoint(stage.key)
    store.commit_record(make_record(stage, 1.5, checkpoint=f"checkpoints/{last.name}"))
    assert (store.stage_folder(stage.key) / "checkpoints").names() == [last.name]
    assert store.finished_checkpoint(stage.key) == last


def test_files_of_a_run(store: Store) -> None:
    assert store.run_names() == []
    assert store.read_run("mine", "run.json") is None
    store.write_run("mine", "run.json", {"state": "RUNNING"})
    assert store.read_run("mine", "run.json") == {"state": "RUNNING"}
    assert store.run_names() == ["mine"]


def test_a_folders_uri_opens_the_same_folder_elsewhere() -> None:
    """Workers get the store by its URI: what stands behind the question mark must not be lost."""
    remote = Folder(fs.LocalFileSystem(), "bucket/store", "s3", "region=eu-west-1")
    assert (remote / "stages").uri == "s3://bucket/store/stages?region=eu-west-1"
    assert open_folder("/some/where").uri == "/some/where"


def test_a_note_that_is_being_written_is_not_read(store: Store) -> None:
    """A driver lists a trunk while another one notes a stage there: its file has a name of its own at first."""
    store.note_trunk("trunk", 3, "key")
    (store.folder / "trunks" / "trunk").write_whole(".000000000007-other.0123", b"")
    assert store.trunk("trunk") == [(3, "key")]
