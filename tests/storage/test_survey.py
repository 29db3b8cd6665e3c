"""What a list of a store reads of its files, and that it says what the whole files say."""

from __future__ import annotations

import json
import random
import re
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_record, make_schedule
from raystage.files import file_facts
from raystage.files.filesystem import open_folder
from raystage.files.sealed_json import body_of, sealed, unsealed, without_lists, written
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.endings import AdapterRecord, AverageRecord
from raystage.results.record import StageRecord
from raystage.storage import maintenance
from raystage.storage import survey as survey_module
from raystage.storage.maintenance import remove
from raystage.storage.prune import removals
from raystage.storage.store import RECORD, Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE, record_head
from raystage.storage.survey import facts_of, keys_in, survey
from s3_server import S3Server


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StagePlan:
    return make_plan(make_schedule(tmp_path_factory.mktemp("texts"))).staged.stages[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def key(number: int) -> str:
    return f"{number:064x}"


def note(store: Store, template: StagePlan, number: int, **changes: object) -> StageRecord:
    record = make_record(replace(template, key=key(number)), 1.5, **changes)
    store.stage_folder(record.key).write_whole(RECORD, written(record.to_json()))
    return record


AVERAGE = AverageRecord((100, 200), (0.5, 0.5), 1.4, 1.5, 1.45, True, "checkpoints/single", ("checkpoints/a", "b"), 1.0)
ENDINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "its best": {"best_checkpoints": ("checkpoints/one", "checkpoints/two")},
    "an average": {"average": AVERAGE},
    "an adapter": {"adapter": AdapterRecord(4, 8.0, 3, 100, 1.4, 1.4, "merged", "checkpoints/single", 1.0)},
    "no curves": {"train": (), "evaluations": ()},
    "a parent": {"parent_key": key(7)},
}


@pytest.mark.parametrize("changes", ENDINGS.values(), ids=ENDINGS)
def test_the_head_of_a_record_says_what_the_record_says(template: StagePlan, changes: dict[str, object]) -> None:
    record = make_record(replace(template, key=key(1)), 1.5, **changes)
    assert {"finished": True, **record_head(written(record.to_json()), record.key)} == facts_of(record)


def test_a_list_reads_no_curves_and_a_whole_survey_does(store: Store, template: StagePlan) -> None:
    """Where somebody changed a curve and the checksum with it: nothing that a list shows."""
    record = note(store, template, 1)
    assert survey(store, whole=False) == survey(store)
    content = record.to_json()
    content["train"][0]["loss"] = {}
    store.stage_folder(record.key).write_whole(RECORD, written(content))
    (light,), (whole,) = survey(store, whole=False).stages, survey(store).stages
    assert (light.state, whole.state) == ("finished", "damaged")


def test_folders_that_are_no_stages_are_not_listed_and_so_never_removed(store: Store, template: StagePlan) -> None:
    """A folder of snapshots, or a store that was put into a project."""
    note(store, template, 1)
    for name in (".snapshot", "prod", "A" * 64, key(2) + "0"):
        (store.folder / "stages" / name / "src").write_whole("main.tf", b"mine")
    assert [stage.key for stage in survey(store).stages] == [key(1)]


@pytest.mark.parametrize("name", ["key", "name", "tokens", "checkpoint", "eval_loss"])
@pytest.mark.parametrize("value", [None, -1, 10**400, [], "../x", 1e999])
def test_what_a_list_shows_is_checked(store: Store, template: StagePlan, name: str, value: object) -> None:
    content = note(store, template, 1).to_json() | {name: value}
    store.stage_folder(key(1)).write_whole(RECORD, sealed(json.dumps(content).encode()))
    assert survey(store, whole=False) == survey(store)


def test_lists_are_cut_out_of_an_object_as_it_is_written() -> None:
    content = {"a": [1, [2]], "b": {"a": [3]}, "c": '\n "a": [\n', "d": [], "e": [[], {"d": [1]}]}
    body = body_of(written(content))
    assert json.loads(without_lists(body, ("a", "d", "c", "none"))) == {**content, "a": []}
    assert json.loads(without_lists(body_of(sealed(json.dumps(content).encode())), ("a",))) == content
    assert unsealed(written(content)) == content
    assert body_of(written(content).replace(b"3", b"4")) is None
    assert body_of(json.dumps(content).encode()) is None


def test_keys_are_found_wherever_they_are() -> None:
    chance = random.Random(0)
    for _ in range(200):
        parts = ["".join(chance.choices("0123456789abcdef", k=chance.choice((63, 64, 65, 128)))) for _ in range(3)]
        text = "".join(chance.choice(("", "g", '"', "/", "A")) + part for part in parts)
        assert list(keys_in(text.encode())) == re.findall(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", text)


def test_on_an_object_store_a_record_takes_two_requests(s3: S3Server, template: StagePlan) -> None:
    """pyarrow asks for the size of an object, then for its content. What it sends again on a slow day counts once, and
    what threads of earlier tests still ask for not at all."""
    name, taken = uuid.uuid4().hex, []
    store = Store(open_folder(s3.uri(f"bucket/{name}")))
    for number in range(8):
        note(store, template, number)
        if number in (2, 7):
            with s3.faults.injected(fault=None) as faults:
                survey(store, whole=False)
                taken.append({request for request in faults.distinct if name in "".join(request)})
    assert len(taken[1]) - len(taken[0]) == 2 * 5, taken[1] - taken[0]


def test_files_of_runs_are_read_again_where_they_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged ones each time, for the reason; those of earlier runs of the name as well."""
    for name in ("a", "b", "b/earlier/1", "c"):
        store.write_run(name, REPORT_FILE, {"state": "FINISHED", "stages": [key(ord(name[0]))]})
    (Path(store.folder.path) / "runs/c/report.json").write_text("{")
    read = []
    plain = survey_module.run_of
    monkeypatch.setattr(survey_module, "run_of", lambda at, name, whole: read.append(name) or plain(at, name, whole))
    monkeypatch.setattr(file_facts, "FRESH_SECONDS", -100.0)  # as if all had been written long ago

    def listed() -> list[str]:
        """The runs that a list reads."""
        found = survey(store, whole=False)
        read.clear()
        assert survey(store, may_remember=True, whole=False) == found
        return sorted(set(read))

    assert listed() == ["a", "b", "c"]
    assert listed() == ["c"]
    store.write_run("b/earlier/1", REPORT_FILE, {"state": "FINISHED", "stages": [key(1), key(2)]})
    assert listed() == ["b", "c"]
    store.write_run("a", RUN_FILE, {"state": "RUNNING", "stages": [key(3)]})
    store.write_run("d", RUN_FILE, {"state": "RUNNING", "stages": [key(4)]})
    assert listed() == ["a", "c", "d"]
    (Path(store.folder.path) / "runs/a/run.json").unlink()
    assert listed() == ["a", "c"]


def test_while_stages_are_removed_a_run_is_read_again_where_it_changed(
    store: Store, template: StagePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        note(store, template, number)
    for name in ("one", "two"):
        store.write_run(name, "run.json", {"state": "FINISHED", "stages": []})
    read, run_of = [], maintenance.run_of
    monkeypatch.setattr(maintenance, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(maintenance, "run_of", lambda store, name: read.append(name) or run_of(store, name))
    listing, done = survey(store), []
    for one in remove(store, listing, removals(listing, 4e9, 0)):
        done.append(one.key)
        if len(done) == 2:
            row = {"run": "staged", "name": "a", "key": key(3), "state": "x"}
            store.write_run("two", "run.json", {"state": "RUNNING", "stages": [row]})
    assert done == [key(0), key(1), key(2)]
    assert read == ["one", "two", "two"]
