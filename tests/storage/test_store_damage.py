"""Files of a store that are broken, strange or not ours: named by whatever reads them, and the rest goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factories import make_curves, make_schedule
from raystage.cli.main import main
from raystage.errors import InputError, RaystageError
from raystage.files import local
from raystage.files.filesystem import open_folder
from raystage.files.sealed_json import sealed, unsealed, written
from raystage.planning.build import make_plan
from raystage.plans.keys import trunk_key
from raystage.plans.plan import Plan
from raystage.runs.driver import Driver
from raystage.runs.earlier import make_way
from raystage.runs.log import Invocation
from raystage.runs.status import RunStatus
from raystage.storage.claims import Claims
from raystage.storage.lease import Leases
from raystage.storage.store import Store
from raystage.storage.survey import survey
from small_checkpoints import flat_cuts, write


def make_store(folder: Path) -> tuple[Store, Plan]:
    """Two finished runs, `broken` and `other`, with all that lies beside them, whole checkpoints among it."""
    (folder / "text").mkdir(parents=True)
    store = Store(open_folder(folder / "store"))
    for name in ("broken", "other"):
        schedule = make_schedule(folder / "text", name=name)
        plan = make_plan(schedule)
        stages = plan.stages_by_key()
        for one in make_curves(plan).values():
            folder_of_stage = store.checkpoint_folder(one.key, 400, "attempt")
            write(folder_of_stage, flat_cuts(1))
            store.commit_record(
                replace(one, checkpoint=f"checkpoints/{folder_of_stage.name}"), trunk_key(stages[one.key])
            )
        driver = Driver(plan, schedule, store, [], draws=False)
        driver.run()
        folder_of_run = store.run_folder(name)
        RunStatus(plan, Invocation(name, "raystage run", folder_of_run, store.folder)).ended(None)
        evaluation = {"stage": "full", "key": plan.staged.stages[-1].key, "tasks": {}}
        (folder_of_run / "evaluations").write_whole("full.json", written(evaluation))
    return store, plan


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder)
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A copy, so that each test breaks its own."""
    shutil.copytree(template / "store", tmp_path / "store")
    return Store(open_folder(tmp_path / "store"))


@pytest.fixture
def plan(template: Path) -> Plan:
    return make_plan(make_schedule(template / "text", name="broken"))


def call(store: Store, *arguments: str) -> Result:
    done = CliRunner().invoke(main, [*arguments, "--store", store.folder.uri])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


# --- every file, every damage, every command ------------------------------------------------------

DEEP = b'{"a":' * 100_000


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_in_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """As by hand: with no checksum, so that the content is judged."""

    def edit(path: Path) -> None:
        content = unsealed(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    return edit


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(b'{"a":'),
    "empty": lambda path: path.write_bytes(b""),
    "deep": lambda path: path.write_bytes(DEEP),
    "deep and closed": lambda path: path.write_bytes(b'{"a":' * 900 + b"1" + b"}" * 900),
    "no object": lambda path: path.write_bytes(b"[1]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe{"),
    "half a character": edited(lambda content: content.update(state="\ud800", name="\ud800", key="\ud800")),
    "a number of 5,000 digits": lambda path: path.write_bytes(b'{"a": ' + b"9" * 5000 + b"}"),
    "a number of 300 digits": lambda path: path.write_bytes(
        path.read_bytes().rpartition(b', "checksum"')[0] + b', "a": ' + b"9" * 300 + b"}"),
    "one bit": lambda path: path.write_bytes(path.read_bytes().replace(b'"FINISHED"', b'"FINISHEE"')
                                             .replace(b'"tokens": 1', b'"tokens": 2')
                                             .replace(b'"tasks"', b'"taskz"')),
    "enormous": lambda path: os.truncate(path, 2**40),
    "a folder": folder_in_place,
    "a pipe": pipe_in_place,
}  # fmt: skip
FILES = {
    "runs/broken/run.json": "run.json",
    "runs/broken/report.json": "report.json",
    "runs/broken/status.json": "status.json",
    "runs/broken/evaluations/full.json": "full.json",
    "stages/{key}/record.json": "record.json",
}
COMMANDS = (
    ("status",), ("status", "broken"), ("status", "other"), ("report", "other"), ("report", "broken"),
    ("report", "broken", "--markdown"), ("store", "list"), ("store", "verify"), ("store", "prune"),
)  # fmt: skip
# What of a damage a command cannot do without: then its status is 1 and the file is named.
NEEDS = {
    "run.json": {("store", "verify"), ("store", "prune")},
    "report.json": {("report", "broken"), ("report", "broken", "--markdown"), ("store", "verify"), ("store", "prune")},
    "status.json": {("status", "broken")},
    "full.json": set(),
    "record.json": {("store", "verify"), ("store", "prune")},
}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        # A third of the pairs is in the suite, of each file and of each damage some; the others are a drill.
        pytest.param(file, damage, id=f"{file}-{name}", marks=[] if (row + column) % 3 == 0 else [pytest.mark.drill])
        for row, file in enumerate(FILES)
        for column, (name, damage) in enumerate(DAMAGES.items())
    ],
)
def test_a_damaged_file_is_named_and_the_rest_goes_on(
    store: Store, plan: Plan, file: str, damage: Callable[[Path], object]
) -> None:
    damage(Path(store.folder.path, file.format(key=plan.staged.stages[-1].key)))
    name = FILES[file]
    for command in COMMANDS:
        done = call(store, *command)
        needs = command in NEEDS[name]
        assert (command, done.exit_code) == (command, int(needs)), done.output
        if needs:
            assert f"/{name}: " in done.output
    assert "other" in call(store, "store", "list").output
    assert len(json.loads(call(store, "store", "list", "--json").stdout)["stages"]) == len(plan.stages_by_key())
    assert "nothing to remove" in call(store, "store", "prune", "--yes", "--older-than", "0").stdout


@pytest.mark.parametrize("damage", ["cut short", "deep", "half a character", "a folder", "a pipe"])
def test_a_run_that_needs_a_damaged_record_says_what_to_do(store: Store, plan: Plan, damage: str) -> None:
    key = plan.staged.stages[-1].key
    DAMAGES[damage](Path(store.folder.path, f"stages/{key}/record.json"))
    with pytest.raises(RaystageError, match=rf"{key}/record.json: (damaged .*remove it to train|cannot be read)"):
        store.record(key)


# --- wrong content in a file that is whole --------------------------------------------------------


def at(*path: object, value: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        inner = content
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


RECORD_CHANGES = {
    "checkpoint": at("checkpoint", value=5),
    "a checkpoint elsewhere": at("checkpoint", value="checkpoints/../../other"),
    "best checkpoints": at("best_checkpoints", value=[7]),
    "a shape": at("shape", value=[]),
    "layers": at("shape", "num_layers", value="3"),
    "a count below zero": at("tokens", value=-1),
    "not a number": at("seconds", value=float("nan")),
    "points": at("train", 0, "loss", value={}),
    "evaluations": at("evaluations", value=None),
    "growth": at("growth", value=True),
    "another stage's": at("key", value="0" * 64),
}


@pytest.mark.parametrize("change", RECORD_CHANGES.values(), ids=RECORD_CHANGES)
@pytest.mark.parametrize("has_checksum", [False, True])
def test_a_record_of_wrong_kinds_is_damaged(
    store: Store, plan: Plan, change: Callable[[dict], None], has_checksum: bool
) -> None:
    key = plan.staged.stages[-1].key
    path = Path(store.folder.path, f"stages/{key}/record.json")
    content = unsealed(path.read_bytes())
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(sealed(text) if has_checksum else text)
    with pytest.raises(RaystageError, match=f"{key}/record.json: damaged"):
        store.record(key)
    done = call(store, "store", "prune", "--yes", "--older-than", "0")
    assert (done.exit_code, done.stdout) == (1, "nothing to remove\n")


def test_a_file_without_a_checksum_is_read(store: Store, plan: Plan) -> None:
    """As versions before wrote them."""
    key = plan.staged.stages[-1].key
    before = store.record(key), store.read_run("broken", "report.json")
    for file in FILES:
        path = Path(store.folder.path, file.format(key=key))
        path.write_text(json.dumps(unsealed(path.read_bytes()), indent=1) + "\n")
        assert b"checksum" not in path.read_bytes()
    assert (store.record(key), store.read_run("broken", "report.json")) == before
    for command in COMMANDS:
        assert call(store, *command).exit_code == 0


# --- what somebody else left ----------------------------------------------------------------------

STRAY = ("Thumbs.db", ".DS_Store", "notes.txt", "~lock", "a b\x1b]0;x\x07")


@pytest.mark.parametrize("is_folder", [False, True])
def test_stray_files_and_folders_stop_nothing(store: Store, plan: Plan, is_folder: bool) -> None:
    stage = plan.staged.stages[-1]
    own = Path(store.folder.path, "stages", stage.key)
    (own / "leases").mkdir(exist_ok=True)
    folders = [own, own / "checkpoints", own / "leases", own.parent, own.parent.parent,
               Path(store.folder.path, "runs"), Path(store.folder.path, "runs/broken"),
               Path(store.folder.path, "trunks"), Path(store.folder.path, "trunks", trunk_key(stage))]  # fmt: skip
    for folder in folders:
        for name in (*STRAY, *((os.fsdecode(b"\xff\xfe"),) if folder != own.parent else ())):
            (folder / name).mkdir() if is_folder else (folder / name).write_bytes(b"\x00")
        if folder.name == "leases":
            (folder / "1-a.json").mkdir()
    for command in COMMANDS:
        assert call(store, *command).exit_code == 0, command
    assert [key for _, key in store.trunk(trunk_key(stage))] == [stage.key]
    assert store.latest_checkpoint(stage.key).name.endswith("-attempt")
    claims = Claims(store, Leases(store.folder / "stages"))
    assert claims.free([stage]) == (stage,)
    store.commit_record(store.record(stage.key), trunk_key(stage))
    assert (own / "checkpoints" / STRAY[0]).exists()


def test_a_damaged_neighbour_is_no_donor_and_no_reason_to_stop(store: Store, plan: Plan) -> None:
    """The record of a shorter version of a stage is of use, but not needed."""
    stage = plan.staged.stages[-1]
    store.stage_folder("shorter").write_whole("record.json", b'{"a":')
    store.note_trunk(trunk_key(stage), stage.steps - 1, "shorter")
    assert store.readable_record("shorter") is None
    assert Claims(store, Leases(store.folder / "stages")).free([stage]) == (stage,)


def test_a_manifest_of_any_size_is_damage(store: Store) -> None:
    manifest = next(Path(store.folder.path).glob("stages/*/checkpoints/*/manifest.json"))
    os.truncate(manifest, 2**40)
    done = call(store, "store", "verify")
    assert done.exit_code == 1
    assert "manifest.json: damaged (found 1099511627776 bytes; expected at most 1073741824)" in done.output
    assert call(store, "store", "prune", "--yes").exit_code == 1
    assert manifest.exists()


# --- links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["runs/loop", "stages/loop", f"stages/{'a' * 64}/loop"])
def test_a_link_that_leads_to_itself_hides_nothing_else(store: Store, place: str) -> None:
    before = survey(store)
    loop = Path(store.folder.path) / place
    loop.parent.mkdir(exist_ok=True)
    loop.symlink_to(loop.name)
    assert survey(store) == before


@pytest.mark.parametrize("target", ["/", "..", "../.."])
def test_a_link_to_a_folder_that_holds_the_store_is_not_followed(store: Store, target: str) -> None:
    before = survey(store)
    beside = Path(store.folder.path).parent / "beside" / "record.json"
    beside.parent.mkdir()
    beside.touch()
    (Path(store.folder.path) / "stages" / "link").symlink_to(target)
    assert survey(store) == before
    assert not [file.path for file in (store.folder / "stages").files() if file.path.startswith("link/")]


def test_links_are_found_although_the_first_attempt_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    entries, failures = local.entries, iter([TimeoutError("the server does not answer")])

    def failing_once(folder: str) -> list:
        for failure in failures:
            raise failure
        return entries(folder)

    monkeypatch.setattr(local, "entries", failing_once)
    assert open_folder(tmp_path).links() == [str(tmp_path / "link")]


def test_setting_a_run_aside_leaves_what_lies_behind_links(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine/sub").mkdir(parents=True)
    (tmp_path / "mine/sub/thesis.txt").write_text("mine")
    run = Path(store.run_folder("broken").path)
    (run / "folder").symlink_to(tmp_path / "mine")
    (run / "file.txt").symlink_to(tmp_path / "mine/sub/thesis.txt")
    assert "is kept: raystage report broken/earlier/1" in make_way(store, "broken", ["another key"])
    assert (tmp_path / "mine/sub/thesis.txt").read_text() == "mine"
    assert not [one for one in run.glob("earlier/1/*") if one.name in ("folder", "file.txt")]
    assert (run / "earlier/1/report.json").exists()
    assert not (run / "report.json").exists()


def test_a_run_behind_a_link_is_not_set_aside(store: Store, tmp_path: Path) -> None:
    run = Path(store.run_folder("broken").path)
    run.rename(tmp_path / "mine")
    run.symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"found .*runs/broken, a symbolic link.*expected another name"):
        make_way(store, "broken", ["another key"])
    assert (tmp_path / "mine/report.json").exists()
    assert not (tmp_path / "mine/earlier").exists()


def test_links_from_every_folder_to_every_other_are_followed_once(store: Store) -> None:
    folders = [Path(store.folder.path, "stages", f"{number:064x}") for number in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "file").touch()
        for other in folders:
            (folder / other.name).symlink_to(other)
    assert call(store, "store", "list").exit_code == 0
    assert sum(file.path.endswith("/file") for file in (store.folder / "stages").files()) == 12
