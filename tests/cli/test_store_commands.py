"""`raystage store` on real stores: what is listed, what verify finds, what prune leaves."""

from __future__ import annotations

import json
import os
import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factories import make_record, make_schedule
from raystage.cli.main import main
from raystage.errors import StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import MANIFEST, Checkpoint
from raystage.storage.maintenance import remove
from raystage.storage.prune import removals, with_ancestors
from raystage.storage.shards.writing import shard_name
from raystage.storage.store import RECORD, Store
from raystage.storage.survey import survey
from s3_server import S3Server
from small_checkpoints import flat_cuts, write

LONG_AGO = 1e9


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StagePlan:
    folder = tmp_path_factory.mktemp("texts")
    return make_plan(make_schedule(folder)).staged.stages[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def key(number: int) -> str:
    return f"{number:064x}"


def save(store: Store, number: int, tokens: int, whole: bool = True) -> Folder:
    folder = store.checkpoint_folder(key(number), tokens, "attempt")
    write(folder, flat_cuts(2), tokens=tokens)
    if not whole:
        folder.delete_file(MANIFEST)
    return folder


def finish(store: Store, template: StagePlan, number: int, parent: int | None = None, best: bool = False) -> None:
    """A finished stage with its last checkpoint and perhaps its best one."""
    last, older = save(store, number, 400), save(store, number, 200)
    record = make_record(
        replace(template, key=key(number), parent_key=None if parent is None else key(parent)), 1.5,
        checkpoint=f"checkpoints/{last.name}", best_checkpoints=(f"checkpoints/{older.name}",) if best else (),
    )  # fmt: skip
    store.commit_record(record)


def note_run(store: Store, name: str, numbers: list[int]) -> None:
    rows = [{"run": "staged", "name": "stage", "key": key(number), "state": "FINISHED"} for number in numbers]
    store.write_run(name, "run.json", {"name": name, "state": "FINISHED", "stages": rows})
    store.write_run(name, "report.json", {"name": name, "state": "FINISHED", "stages": rows})


def age(store: Store) -> None:
    """As if all of it had been written long ago."""
    for path in Path(store.folder.path).rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def call(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["store", *arguments, "--store", store.folder.path])


def test_list_shows_stages_and_runs(store: Store, template: StagePlan) -> None:
    finish(store, template, 1)
    save(store, 2, 100)
    note_run(store, "mine", [1])
    found = json.loads(call(store, "list", "--json").stdout)
    first, second = found["stages"]
    assert (first["key"], first["name"], first["state"], first["tokens"], first["eval_loss"], first["runs"]) == (
        key(1), template.name, "finished", template.duration, 1.5, ["mine"])  # fmt: skip
    files = [path for path in Path(store.stage_folder(key(1)).path).rglob("*") if path.is_file()]
    assert first["bytes"] == sum(path.stat().st_size for path in files)
    assert (second["state"], second["tokens"], len(second["checkpoints"]), second["runs"]) == (
        "unfinished",
        None,
        1,
        [],
    )
    assert found["runs"] == [{"name": "mine", "state": "FINISHED", "stage_keys": [key(1)]}]
    shown = call(store, "list")
    assert shown.exit_code == 0
    assert all(text in shown.stdout for text in (key(1)[:12], "finished", "unfinished", "1.5000", "mine"))


def test_a_second_list_reads_only_records_that_changed(
    store: Store, template: StagePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        finish(store, template, number)
    age(store)
    first, read, record = call(store, "list", "--json").stdout, [], Store.record

    def recorded(self: Store, stage: str) -> StageRecord | None:
        read.append(stage)
        return record(self, stage)

    monkeypatch.setattr(Store, "record", recorded)
    assert call(store, "list", "--json").stdout == first
    assert read == []
    path = Path(store.folder.path, "stages", key(2), RECORD)
    path.write_bytes(path.read_bytes().replace(b'"name"', b'"nome"', 1))
    os.utime(path, (LONG_AGO + 5, LONG_AGO + 5))
    assert [stage["state"] for stage in json.loads(call(store, "list", "--json").stdout)["stages"]] == [
        "finished", "damaged", "finished"]  # fmt: skip
    assert set(read) == {key(2)}


def test_verify_and_prune_read_every_record(store: Store, template: StagePlan) -> None:
    """One that the disk changed, under the same time and size."""
    finish(store, template, 1)
    age(store)
    call(store, "list")
    path = Path(store.folder.path, "stages", key(1), RECORD)
    path.write_bytes(path.read_bytes().replace(b'"name"', b'"nome"', 1))
    age(store)
    for command in ("verify", "prune"):
        done = call(store, command)
        assert done.exit_code == 1
        assert "does not match its checksum" in done.output


def test_a_damaged_record_is_listed_and_verified_and_stops_no_one(store: Store, template: StagePlan) -> None:
    finish(store, template, 1)
    store.stage_folder(key(1)).write_whole(RECORD, b"{}")
    assert json.loads(call(store, "list", "--json").stdout)["stages"][0]["state"] == "damaged"
    done = call(store, "verify")
    assert done.exit_code == 1
    assert f"{RECORD}: damaged" in done.stdout
    assert call(store, "prune", "--yes", "--older-than", "0").stdout == "nothing to remove\n"


def test_verify_finds_nothing_in_a_whole_store(store: Store, template: StagePlan) -> None:
    finish(store, template, 1, best=True)
    save(store, 2, 100)
    save(store, 2, 200, whole=False)  # is no checkpoint
    done = call(store, "verify", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["checkpoints"], found["damaged"]) == (0, 3, [])
    shards = [path for path in Path(store.folder.path).rglob("*.safetensors") if (path.parent / MANIFEST).exists()]
    assert found["bytes"] == sum(path.stat().st_size for path in shards)


def test_verify_names_every_bad_shard_and_goes_on(store: Store, template: StagePlan) -> None:
    finish(store, template, 1)
    other = save(store, 2, 100)
    folder = store.finished_checkpoint(key(1))
    opened = Checkpoint(folder)
    shard, hit = opened.manifest.shards[1], opened.fragments(1)[2]
    path = Path(folder.path, shard.file)
    content = bytearray(path.read_bytes())
    content[hit.offset] ^= 1
    path.write_bytes(content)
    Path(other.path, shard_name(0, 2)).unlink()
    done = call(store, "verify", "--json")
    assert done.exit_code == 1
    first, second = json.loads(done.stdout)["damaged"]
    assert (first["key"], first["file"], first["parameter"], first["state"]) == (
        key(1), shard.file, hit.parameter, hit.state)  # fmt: skip
    assert (second["key"], second["file"], second["problem"][:12]) == (
        key(2),
        shard_name(0, 2),
        "no such file",
    )
    assert (
        f"damaged: stages/{key(1)}/checkpoints/{folder.name}/{shard.file}: {hit.state} of {hit.parameter}"
        in done.stderr
    )
    assert call(store, "verify", key(2)).exit_code == 1
    finish(store, template, 3)
    assert "1 checkpoints" in call(store, "verify", key(3)).stdout


def test_verify_misses_a_checkpoint_that_a_record_names(store: Store, template: StagePlan) -> None:
    finish(store, template, 1)
    store.finished_checkpoint(key(1)).delete()
    assert MANIFEST in call(store, "verify").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "abc"], "KEY: no stage key begins with 'abc'"),
        (["prune", "--older-than", "soon"], "--older-than: found 'soon'; expected a time such as 30m, 1h or 2d"),
    ],
)
def test_wrong_arguments_are_one_message(store: Store, arguments: list[str], message: str) -> None:
    store.folder.make()
    done = call(store, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_store_that_is_not_there_is_an_error(store: Store, command: str) -> None:
    done = call(store, command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"raystage: --store: found no store at {store.folder.uri}; expected the folder that runs wrote into\n"
    )


def test_a_damaged_run_stops_prune(store: Store, template: StagePlan) -> None:
    """What it needs is not known."""
    finish(store, template, 1)
    store.run_folder("mine").write_whole("run.json", b"[1")
    done = call(store, "prune", "--yes")
    assert done.exit_code == 1
    assert "mine/run.json: damaged" in done.stderr
    assert store.record(key(1)) is not None


def test_prune_shows_and_only_with_yes_removes(store: Store, template: StagePlan) -> None:
    for number, parent in ((1, None), (2, 1), (3, 1)):
        finish(store, template, number, parent)
    save(store, 2, 300, whole=False)
    note_run(store, "mine", [2])
    age(store)
    before = sorted(Path(store.folder.path).rglob("*"))
    shown = json.loads(call(store, "prune", "--json").stdout)
    assert sorted(Path(store.folder.path).rglob("*")) == before
    assert [(one["key"], one["reason"]) for one in shown["removals"]] == [
        (key(2), "half written"),
        (key(3), "no run refers to it, and nothing that is kept grew from it"),
    ]
    done = call(store, "prune", "--yes", "--json")
    assert json.loads(done.stdout) == shown | {"removed": True}
    assert (store.stage_keys(), call(store, "prune").stdout) == ([key(1), key(2)], "nothing to remove\n")
    assert (store.stage_folder(key(2)) / "checkpoints").names() == [store.finished_checkpoint(key(2)).name]


def test_a_store_of_objects_is_listed_verified_and_pruned(s3: S3Server, template: StagePlan) -> None:
    """The service's times are those of now: only what is older than nothing at all goes."""
    store = Store(open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}")))
    for number, parent in ((1, None), (2, 1), (3, 1)):
        finish(store, template, number, parent)
    save(store, 4, 100)
    note_run(store, "mine", [2])
    uri = ["--store", store.folder.uri, "--json"]
    verified = CliRunner().invoke(main, ["store", "verify", *uri])
    assert (verified.exit_code, json.loads(verified.stdout)["checkpoints"]) == (0, 4)
    shown = json.loads(CliRunner().invoke(main, ["store", "prune", *uri]).stdout)
    assert shown["removals"] == []  # the unfinished stage may be training, and come from any other
    done = CliRunner().invoke(main, ["store", "prune", "--yes", "--older-than", "0", *uri])
    assert sorted(one["key"] for one in json.loads(done.stdout)["removals"]) == [key(3), key(4)]
    assert store.stage_keys() == [key(1), key(2)]
    assert_loads(store)


def random_store(store: Store, template: StagePlan, seed: int) -> None:
    """Up to 7 stages in a forest, finished or not, with leftovers, and up to 2 runs that refer to some of them."""
    dice = random.Random(seed)
    numbers = list(range(1, dice.randint(2, 8)))
    for number in numbers:
        if dice.random() < 0.75:
            finish(store, template, number, dice.choice([None, *range(1, number)]), best=dice.random() < 0.3)
        if dice.random() < 0.4:
            save(store, number, 100, whole=dice.random() < 0.5)
    for name in "ab"[: dice.randint(0, 2)]:
        note_run(store, name, dice.sample(numbers, dice.randint(0, len(numbers))))


def assert_loads(store: Store) -> None:
    """Every record's checkpoints open and read."""
    for one in survey(store).stages:
        for name in one.needed:
            opened = Checkpoint(store.stage_folder(one.key) / "checkpoints" / name)
            opened.read("scale", "fp32", 0, 1)
            opened.close()


@pytest.mark.parametrize("seed", range(12))
def test_after_prune_all_that_runs_need_is_there(store: Store, template: StagePlan, seed: int) -> None:
    random_store(store, template, seed)
    age(store)
    before = survey(store)
    assert call(store, "prune", "--yes").exit_code == 0
    after = {stage.key: stage for stage in survey(store).stages}
    stages = {stage.key: stage for stage in before.stages}
    needed = with_ancestors({one for run in before.runs for one in run.stage_keys}, stages)
    assert set(after) == needed & set(stages)
    for one in after.values():
        assert one.finished == stages[one.key].finished
        assert one.checkpoints == stages[one.key].checkpoints if not one.finished else len(one.checkpoints)
    assert_loads(store)
    for run in before.runs:
        assert store.read_run(run.name, "report.json")["name"] == run.name
    assert call(store, "prune").stdout == "nothing to remove\n"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_prune_that_is_interrupted_leaves_no_record_without_its_checkpoint(
    tmp_path: Path, template: StagePlan, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its deletions in turn; the next one goes on, to the same end."""
    deletions = 0
    allowed = 0
    plain = {name: getattr(Folder, name) for name in ("delete", "delete_file")}

    def counted(name: str):
        def delete(*arguments: object) -> None:
            nonlocal deletions
            deletions += 1
            if deletions > allowed:
                raise StorageError("interrupted")
            plain[name](*arguments)

        return delete

    while True:
        store = Store(open_folder(tmp_path / str(allowed)))
        random_store(store, template, seed)
        age(store)
        planned = removals(survey(store), LONG_AGO * 2, 3600)
        deletions = 0
        with monkeypatch.context() as patch:
            for name in plain:
                patch.setattr(Folder, name, counted(name))
            try:
                list(remove(store, survey(store), planned))
                stopped = False
            except StorageError:
                stopped = True
        assert_loads(store)
        list(remove(store, survey(store), removals(survey(store), LONG_AGO * 2, 3600)))
        assert removals(survey(store), LONG_AGO * 2, 3600) == ()
        if not stopped:
            break
        allowed += 1
    assert allowed > 0
