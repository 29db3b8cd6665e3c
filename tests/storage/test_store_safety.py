"""No good checkpoint is lost: to another attempt, to prune, to a symbolic link, to a power cut."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factories import make_record, make_schedule
from finishers import run_together, whole
from raystage.cli.main import main
from raystage.errors import CheckpointError
from raystage.files import local as local_files
from raystage.files.filesystem import Folder, open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.storage.checkpoint import MANIFEST
from raystage.storage.maintenance import remove
from raystage.storage.prune import removals
from raystage.storage.store import RECORD, Store
from raystage.storage.survey import survey
from s3_server import S3Server
from small_checkpoints import flat_cuts, write


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StagePlan:
    return make_plan(make_schedule(tmp_path_factory.mktemp("texts"))).staged.stages[0]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Store:
    uri = str(tmp_path / "store") if request.param == "local" else s3.uri(f"bucket/{uuid.uuid4().hex}")
    return Store(open_folder(uri))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def key(number: int) -> str:
    return f"{number:064x}"


def save(store: Store, number: int, tokens: int, attempt: str = "attempt") -> Folder:
    folder = store.checkpoint_folder(key(number), tokens, attempt)
    write(folder, flat_cuts(1), tokens=tokens)
    return folder


def finish(store: Store, template: StagePlan, number: int, parent: int | None = None) -> Folder:
    """A finished stage; returns its checkpoint."""
    folder = save(store, number, 400)
    stage = replace(template, key=key(number), parent_key=None if parent is None else key(parent))
    store.commit_record(make_record(stage, 1.5, checkpoint=f"checkpoints/{folder.name}"))
    return folder


def prune(store: Store, *more: str) -> Result:
    return CliRunner().invoke(main, ["store", "prune", "--older-than", "0", "--store", store.folder.uri, *more])


# --- attempts that finish together ----------------------------------------------------------------


@pytest.mark.parametrize("parties", [pytest.param(2, marks=pytest.mark.drill), 3])
def test_of_attempts_that_finish_together_a_whole_checkpoint_stays(
    store: Store, template: StagePlan, parties: int
) -> None:
    rounds = 12 if store.folder.is_local else 4
    records = [make_record(replace(template, key=key(number)), 1.5) for number in range(rounds)]
    run_together(store, records, parties)
    for number in range(rounds):
        folder = store.finished_checkpoint(key(number))
        assert whole(folder)
        names = (store.stage_folder(key(number)) / "checkpoints").names()
        assert folder.name in names
        if store.folder.is_local:  # of several that see nobody's record one alone writes its own
            assert names == [folder.name]


def test_a_record_that_stands_stays_and_the_later_attempt_adopts_it(store: Store, template: StagePlan) -> None:
    first = finish(store, template, 1)
    mine = save(store, 1, 400, "later")
    record = make_record(replace(template, key=key(1)), 1.5, checkpoint=f"checkpoints/{mine.name}", seconds=99.0)
    stands = store.commit_record(record)
    assert (stands.checkpoint, stands.seconds) == (f"checkpoints/{first.name}", store.record(key(1)).seconds)
    assert (store.stage_folder(key(1)) / "checkpoints").names() == [first.name]


@pytest.mark.parametrize("broken", ["checkpoint", "record"])
def test_a_record_of_no_use_gives_way_to_one_with_a_whole_checkpoint(
    store: Store, template: StagePlan, broken: str
) -> None:
    lost = finish(store, template, 1)
    if broken == "checkpoint":
        lost.delete()
    else:
        store.stage_folder(key(1)).write_whole(RECORD, b'{"a":')
    mine = save(store, 1, 400, "later")
    stands = store.commit_record(make_record(replace(template, key=key(1)), 1.5, checkpoint=f"checkpoints/{mine.name}"))
    assert stands.checkpoint == f"checkpoints/{mine.name}"
    assert whole(store.finished_checkpoint(key(1)))


def test_letting_older_checkpoints_go_leaves_what_another_attempt_wrote_as_far(store: Store) -> None:
    names = [save(store, 1, tokens, attempt).name for tokens, attempt in
             ((100, "b"), (200, "a"), (300, "a"), (300, "b"), (400, "a"))]  # fmt: skip
    store.drop_older_checkpoints(key(1), 1, last=names[3])
    assert (store.stage_folder(key(1)) / "checkpoints").names() == names[2:]


def test_the_attempts_own_checkpoint_is_the_latest_of_equally_far_ones(store: Store) -> None:
    for attempt in "abc":
        save(store, 1, 400, attempt)
    assert store.latest_checkpoint(key(1), "b").name.endswith("-b")


def test_nothing_that_fails_after_the_record_undoes_it(local: Store, template: StagePlan) -> None:
    """A file lies where the trunk's folder has to be, another one among the checkpoints, a folder for a certificate."""
    stage = make_plan_of_two(template)
    (local.stage_folder(stage.key) / "certificate.json").make()
    (local.folder / "trunks").write_whole("trunk", b"")
    folder = local.checkpoint_folder(stage.key, 400, "attempt")
    write(folder, flat_cuts(1))
    (local.stage_folder(stage.key) / "checkpoints").write_whole("Thumbs.db", b"")
    record = make_record(stage, 1.5, checkpoint=f"checkpoints/{folder.name}")
    local.commit_record(record, "trunk")
    assert local.record(stage.key) == record
    assert whole(local.finished_checkpoint(stage.key))


def make_plan_of_two(template: StagePlan) -> StagePlan:
    return replace(template, key=key(1), parent_key=None)


# --- what a power cut takes -----------------------------------------------------------------------


def test_every_new_folder_is_brought_to_the_disk_where_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in a folder whose own entry is not on the disk is lost with it."""
    synced, plain = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        plain(descriptor)

    monkeypatch.setattr(local_files.os, "fsync", fsync)
    store = Store(open_folder(tmp_path / "new/store"))
    folder = store.checkpoint_folder("key", 400, "attempt")
    write(folder, flat_cuts(1))
    manifest = next(place for place in synced if f".{MANIFEST}." in place)
    before = synced[: synced.index(manifest)]
    parents = [str(parent) for parent in Path(folder.path).parents]
    assert set(before) >= set(parents[: parents.index(str(tmp_path)) + 1])  # down from the folder that was there
    assert f"{folder.path}/shard-00000-of-00001.safetensors" in before
    assert synced[synced.index(manifest) + 1] == folder.path  # the rename


# --- prune ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "manifest", "shard"])
def test_prune_touches_nothing_of_a_stage_whose_checkpoint_is_lost(
    store: Store, template: StagePlan, damage: str
) -> None:
    """What the record names is not there: the other one may be all that is left. No run refers to either stage."""
    finish(store, template, 1)
    named = finish(store, template, 2, parent=1)
    good = save(store, 2, 300)
    finish(store, template, 3)
    if damage == "gone":
        named.delete()
    elif damage == "manifest":
        named.write_whole(MANIFEST, b'{"a":')
    else:
        named.write_whole("shard-00000-of-00001.safetensors", b"")
    done = prune(store, "--yes", "--json")
    assert (done.exit_code, [one["key"] for one in json.loads(done.stdout)["removals"]]) == (1, [key(3)])
    assert f"{key(2)}/checkpoints/{named.name}" in done.stderr
    assert "nothing of this stage is removed" in done.stderr
    assert whole(good)
    assert store.stage_keys() == [key(1), key(2)]  # what it came from, too
    with pytest.raises(CheckpointError):
        whole(named)


@pytest.mark.parametrize(
    "place", ["stages", "runs", "trunks", "stages/{key}", "stages/{key}/checkpoints", "stages/{key}/record.json",
              "stages/{key}/checkpoints/{name}", "runs/mine", "runs/mine/run.json"],
)  # fmt: skip
def test_prune_refuses_a_store_with_links_in_it(local: Store, template: StagePlan, tmp_path: Path, place: str) -> None:
    folder = finish(local, template, 1)
    save(local, 1, 100)
    local.note_trunk("trunk", 1, key(1))
    local.write_run("mine", "run.json", {"name": "mine", "state": "FINISHED", "stages": []})
    linked = Path(local.folder.path, place.format(key=key(1), name=folder.name))
    elsewhere = linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(elsewhere)
    before = sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))
    for more in ((), ("--yes",)):
        done = prune(local, *more)
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"{linked}: is a symbolic link" in done.stderr
    assert sorted((path, path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*")) == before


def test_a_store_that_is_itself_behind_a_link_is_pruned(local: Store, template: StagePlan, tmp_path: Path) -> None:
    finish(local, template, 1)
    (tmp_path / "link").symlink_to(local.folder.path)
    assert prune(Store(open_folder(tmp_path / "link")), "--yes").exit_code == 0
    assert local.stage_keys() == []


def test_training_removes_nothing_behind_a_link(local: Store, tmp_path: Path) -> None:
    older, last = save(local, 1, 100), save(local, 1, 200)
    checkpoints = Path(older.path).parent
    checkpoints.symlink_to(checkpoints.rename(tmp_path / "elsewhere"))
    local.drop_older_checkpoints(key(1), 1, last=last.name)
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [older.name, last.name]
    assert whole(older)


CHANGES: dict[str, Callable[[Store], object]] = {
    "a run refers to it": lambda store: store.write_run(
        "new", "run.json", {"state": "RUNNING", "stages": [{"run": "staged", "name": "a", "key": key(1), "state": "x"}]}
    ),
    "somebody has its lease": lambda store: (store.stage_folder(key(1)) / "leases").write_whole("1-a.json", b"{}"),
    "a checkpoint is being written": lambda store: save(store, 1, 500, "new"),
    "it was finished": lambda store: store.stage_folder(key(1)).write_whole(RECORD, b"{}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stage_that_changed_since_it_was_listed_stays(store: Store, change: Callable[[Store], object]) -> None:
    kept = save(store, 1, 400)
    gone = save(store, 2, 400)
    listing = survey(store)
    planned = removals(listing, 4e9, 0)
    assert {one.key for one in planned} == {key(1), key(2)}
    change(store)
    assert [one.key for one in remove(store, listing, planned)] == [key(2)]
    assert whole(kept)
    assert not gone.exists()


@pytest.mark.parametrize("file", ["run.json", "report.json"])
def test_a_damaged_run_keeps_what_it_may_need_and_no_more(store: Store, template: StagePlan, file: str) -> None:
    """Which stages it needs is not known: whole ones stay, what finished ones have left over goes."""
    finish(store, template, 1)
    finish(store, template, 2)
    left_over = save(store, 2, 100)
    store.run_folder("mine").write_whole(file, b'{"stages": [{"key": "' + key(1).encode())
    done = prune(store, "--yes")
    assert done.exit_code == 1
    assert re.search(rf"mine/{re.escape(file)}\S*: damaged", done.stderr)  # an S3 path has its options behind it
    assert store.stage_keys() == [key(1), key(2)]
    assert not left_over.exists()
