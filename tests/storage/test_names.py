"""Runs and stages by name; a name that another schedule takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from factories import make_curves, make_schedule
from raystage.cli.main import main
from raystage.cli.options import model_source
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.runs.driver import Driver
from raystage.runs.earlier import make_way
from raystage.runs.log import Invocation
from raystage.runs.status import RunStatus
from raystage.storage.naming import stage_key
from raystage.storage.store import Store
from raystage.storage.survey import survey
from small_checkpoints import flat_cuts, write


def keys_of(plan: Plan) -> list[str]:
    return [stage.key for run in plan.runs() for stage in run.stages]


def run(store: Store, folder: Path, **changes: Any) -> Plan:
    """A run all of whose stages are finished before."""
    schedule = make_schedule(folder, **{"name": "mine", **changes})
    plan = make_plan(schedule)
    for record in make_curves(plan).values():
        store.commit_record(record)
    Driver(plan, schedule, store, [], draws=False).run()
    return plan


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def call(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--store", store.folder.uri])


# --- a name that another schedule takes -----------------------------------------------------------


def test_the_report_of_an_earlier_schedule_is_kept_and_shown(store: Store, texts: Path) -> None:
    first = run(store, texts)
    before = store.read_run("mine", "report.json")
    second = make_plan(make_schedule(texts, name="mine", seed=7))
    said = make_way(store, "mine", keys_of(second))
    assert "the name 'mine' belonged to another schedule (FINISHED)" in said
    assert "raystage report mine/earlier/1" in said
    assert store.read_run("mine", "report.json") is None
    run(store, texts, seed=7)
    assert store.earlier_runs("mine") == ["mine/earlier/1"]
    assert store.read_run("mine/earlier/1", "report.json") == before
    shown = json.loads(call(store, "report", "mine/earlier/1", "--json").stdout)
    assert (shown["name"], shown["stages"]) == ("mine/earlier/1", before["stages"])
    assert (Path(store.folder.path) / "runs/mine/earlier/1/report.html").is_file()
    needed = next(one for one in survey(store).runs if one.name == "mine").stage_keys
    assert needed >= {*keys_of(first), *keys_of(second)}  # prune keeps both
    third = make_plan(make_schedule(texts, name="mine", seed=8))
    assert "mine/earlier/2" in make_way(store, "mine", keys_of(third))
    assert store.earlier_runs("mine") == ["mine/earlier/1", "mine/earlier/2"]


def test_an_earlier_run_is_kept_although_one_before_it_was_removed(store: Store, texts: Path) -> None:
    run(store, texts)
    make_way(store, "mine", keys_of(make_plan(make_schedule(texts, name="mine", seed=7))))
    run(store, texts, seed=7)
    make_way(store, "mine", keys_of(make_plan(make_schedule(texts, name="mine", seed=8))))
    kept = store.read_run("mine/earlier/2", "report.json")
    store.run_folder("mine/earlier/1").delete()
    run(store, texts, seed=8)
    said = make_way(store, "mine", keys_of(make_plan(make_schedule(texts, name="mine", seed=9))))
    assert "its report is kept: raystage report mine/earlier/3" in said
    assert store.read_run("mine/earlier/2", "report.json") == kept


@pytest.mark.parametrize(
    "part",
    [
        {"delivered": "x"}, {"delivered": {"models": [{"name": [1], "key": "k"}]}}, {"members": [3]},
        {"stages": [{"name": "full", "key": 5}]}, {"stages": [{"name": "full", "key": "../../x"}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_report_that_names_no_stages_is_damaged(store: Store, texts: Path, part: dict) -> None:
    run(store, texts)
    store.write_run("mine", "report.json", store.read_run("mine", "report.json") | part)
    found = call(store, "store", "verify", "mine/full")
    assert found.exit_code == 1
    assert "mine/report.json: damaged" in found.stderr
    assert isinstance(found.exception, SystemExit)


def test_a_plan_warns_of_a_run_of_another_schedule(store: Store, texts: Path) -> None:
    file = texts.parent / "mine.yaml"
    file.write_text(json.dumps(make_schedule(texts, name="mine").content()))
    warning = "Warning: the store has a run 'mine' of another schedule (FINISHED)."
    assert "Warning: the store" not in call(store, "plan", str(file)).stdout
    run(store, texts)
    assert "Warning: the store" not in call(store, "plan", str(file)).stdout
    other = call(store, "plan", str(file), "--set", "seed=7").stdout
    assert warning in other
    assert "its report as mine/earlier/1" in other
    store.run_folder("mine").write_whole("run.json", b'{"a":')
    assert "a run 'mine' that cannot be read" in call(store, "plan", str(file)).stdout


def test_the_same_schedule_goes_on_under_its_name(store: Store, texts: Path) -> None:
    plan = run(store, texts)
    assert make_way(store, "mine", keys_of(plan)) is None
    assert make_way(store, "new", keys_of(plan)) is None
    assert store.earlier_runs("mine") == []


def test_a_broken_run_file_is_kept_too(store: Store, texts: Path) -> None:
    plan = run(store, texts)
    store.run_folder("mine").write_whole("run.json", b'{"a":')
    assert "cannot be read" in make_way(store, "mine", keys_of(plan))
    assert store.run_folder("mine/earlier/1").read("run.json") == b'{"a":'


@pytest.mark.parametrize(("file", "what"), [("sweep.json", "a sweep"), ("trial.json", "a trial of a sweep")])
def test_a_sweeps_name_is_refused(store: Store, file: str, what: str) -> None:
    store.write_run("mine", file, {"digest": "0", "started_at": 1.0})
    with pytest.raises(InputError, match=rf"name: found 'mine', which is {what} in .*expected a name of its own"):
        make_way(store, "mine", [])


def test_a_name_under_which_another_schedule_is_trained_now_is_refused(store: Store, texts: Path) -> None:
    plan = run(store, texts)
    status = RunStatus(plan, Invocation("mine", "raystage run", store.run_folder("mine"), store.folder))
    try:
        with pytest.raises(InputError, match="trains another schedule; expected another name"):
            make_way(store, "mine", ["another"])
        assert store.earlier_runs("mine") == []
    finally:
        status.ended(None)


def test_run_says_so_before_it_begins(store: Store, texts: Path, tmp_path: Path) -> None:
    """All stages are there, so that nothing is trained."""
    run(store, texts)
    other = make_schedule(texts, name="mine", seed=7)
    for record in make_curves(make_plan(other)).values():
        store.commit_record(record)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(other.content()))
    command = ["run", str(tmp_path / "mine.yaml"), "--json", "--wandb", "disabled"]
    first, second = call(store, *command), call(store, *command)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert json.loads(first.stdout)["name"] == "mine"
    assert first.stderr.startswith("raystage: the name 'mine' belonged to another schedule (FINISHED)")
    assert "another schedule" not in second.stderr
    assert store.earlier_runs("mine") == ["mine/earlier/1"]


# --- stages by name -------------------------------------------------------------------------------


def test_a_stage_is_found_by_its_runs_name_and_its_own(store: Store, texts: Path) -> None:
    plan = run(store, texts)
    small, full = plan.staged.stages
    assert stage_key(store, "mine/small", "SOURCE") == small.key
    assert stage_key(store, "mine/full", "SOURCE") == full.key
    budget = plan.baselines[0]
    assert stage_key(store, f"mine/{budget.name}", "SOURCE") == budget.stages[-1].key
    assert stage_key(store, "other/full", "SOURCE") is None
    with pytest.raises(InputError, match="SOURCE: no stage 'ful' in run 'mine'; expected one of mine/small, mine/full"):
        stage_key(store, "mine/ful", "SOURCE")
    with pytest.raises(InputError, match="SOURCE: found run 'mine', not one of its stages; expected one of mine/small"):
        stage_key(store, "mine", "SOURCE")


def test_a_named_stage_that_nobody_trained_yet_is_said_by_its_name(store: Store, texts: Path, tmp_path: Path) -> None:
    plan = run(store, texts)
    store.stage_folder(plan.staged.stages[1].key).delete()
    said = call(store, "export", "mine/full", str(tmp_path / "out"))
    assert said.exit_code == 2
    assert (
        "CHECKPOINT: found stage 'mine/full', of which nothing is trained yet; expected a finished stage" in said.stderr
    )


@pytest.mark.parametrize(
    "command",
    [
        ("export", "mine/full", "{out}"),
        ("grow", "mine/full", "{out}", "--set", "num_layers=8"),
        ("certify", "mine/small", "mine/full"),
        ("store", "verify", "mine/full"),
    ],
)
def test_commands_take_names(store: Store, texts: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The checkpoint is not there: the message says whose."""
    plan = run(store, texts)
    done = call(store, *(part.format(out=tmp_path / "out") for part in command))
    assert done.exit_code in (1, 2)
    keys = [stage.key for stage in plan.staged.stages]
    assert any(key in done.output for key in keys), done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_named_like_a_stage_has_to_be_told_apart(
    store: Store, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, texts)
    monkeypatch.chdir(tmp_path)
    write(open_folder("mine/full"), flat_cuts(1))
    done = call(store, "export", "mine/full", "out")
    assert done.exit_code == 2
    assert "CHECKPOINT: found a folder and a stage of" in done.output
    assert "expected ./mine/full or the stage's key" in done.output


def test_init_takes_a_stages_name_and_writes_down_its_key(store: Store, texts: Path, tmp_path: Path) -> None:
    full = run(store, texts).staged.stages[-1].key
    assert model_source("mine/full", store.folder.uri, "init.from") == store.stage_folder(full).path
    with pytest.raises(InputError, match=r"init.from: no stage 'x' in run 'mine'; expected one of mine/small"):
        model_source("mine/x", store.folder.uri, "init.from")
    for by_key in (full, full[:8]):
        assert model_source(by_key, store.folder.uri, "init.from") == store.stage_folder(full).path
    none = "0" * 8 if full[0] != "0" else "1" * 8
    with pytest.raises(InputError, match=rf"init.from: no stage key begins with '{none}'; expected just one, or a fol"):
        model_source(none, store.folder.uri, "init.from")
    for other in ("org/model", "gpt2", "s3://mine/full", str(tmp_path)):
        assert model_source(other, store.folder.uri, "init.from") == other


@pytest.fixture
def full(store: Store, texts: Path) -> str:
    """The folder of the stage mine/full, which is finished in the store."""
    stage = run(store, texts).staged.stages[-1]
    write(store.stage_folder(stage.key) / "checkpoint", flat_cuts(1), shape=stage.shape)
    return store.stage_folder(stage.key).path


def distilled(teacher: str) -> dict[str, Any]:
    return {"name": "distillation", "teacher": teacher}


def planned_json(store: Store, file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What `raystage plan` says of a schedule or a sweep with this content."""
    file.write_text(yaml.safe_dump(content))
    done = call(store, "plan", str(file), "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", ["init", "objective", "stages"])
def test_a_schedule_that_names_a_stage_plans_as_with_its_folder(
    place: str, store: Store, texts: Path, tmp_path: Path, full: str
) -> None:
    planned = []
    for source in ("mine/full", full):
        content = make_schedule(texts, name="next").content()
        if place == "init":
            content |= {"init": {"from": source}, "stages": [content["stages"][1] | {"grow": None}]}
        else:
            (content if place == "objective" else content["stages"][1])["objective"] = distilled(source)
        planned.append(planned_json(store, tmp_path / "next.yaml", content))
    assert planned[0] == planned[1]


def test_a_sweep_may_learn_from_a_named_stage(store: Store, texts: Path, tmp_path: Path, full: str) -> None:
    planned = []
    for source in ("mine/full", full):
        content = make_schedule(texts, name="next").content()
        content["stages"][1]["objective"] = distilled(source)
        (tmp_path / "next.yaml").write_text(yaml.safe_dump(content))
        sweep = {"name": "rates", "schedule": "next.yaml", "space": {"training.optimizer.lr": {"grid": [1e-3, 2e-3]}}}
        planned.append(planned_json(store, tmp_path / "sweep.yaml", sweep))
    assert planned[0] == planned[1]


def test_a_teacher_that_the_run_does_not_have_is_told_at_its_place(
    store: Store, texts: Path, tmp_path: Path, full: str
) -> None:
    content = make_schedule(texts, name="next").content()
    content["stages"][1]["objective"] = distilled("mine/other")
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(content))
    done = call(store, "plan", str(tmp_path / "next.yaml"))
    assert done.exit_code == 2
    assert "stages[1].objective.teacher: no stage 'other' in run 'mine'; expected one of mine/small" in done.output


def test_the_text_of_a_schedule_that_names_stages_is_prepared(
    store: Store, texts: Path, tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    content = make_schedule(texts, name="next").content()
    content["stages"][1]["objective"] = distilled("mine/full")
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(content))
    done = call(store, "data", "prepare", str(tmp_path / "next.yaml"), "--workers", "1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["texts"][0]["tokens"] > 0
