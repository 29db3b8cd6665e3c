"""Which commands run code that a file names, and which never do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from factories import make_curves, make_schedule
from raystage import user_code as hooks
from raystage.cli.main import main
from raystage.config.schedule import Schedule, load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.runs.driver import Driver
from raystage.storage.store import Store

METRIC = "import pathlib\npathlib.Path(__file__ + '.ran').touch()\n\ndef right(answers, targets):\n    return {}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A schedule with a metric in a file that leaves a mark when it runs, and a sweep over it."""
    (tmp_path / "texts").mkdir()
    content = make_schedule(tmp_path / "texts").content()
    content["training"]["evaluate"] = {"metrics": ["exact.py:right"]}
    (tmp_path / "exact.py").write_text(METRIC)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    sweep = {"name": "search", "schedule": "tiny.yaml", "space": {"seed": {"grid": [1, 2]}}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    hooks.find.cache_clear()
    return tmp_path


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done


def ran(folder: Path) -> bool:
    mark = folder / "exact.py.ran"
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("file", ["tiny.yaml", "search.yaml"])
def test_a_plan_runs_metric_files_unless_told_not_to(folder: Path, file: str) -> None:
    said = call("plan", file, "--no-code").output
    assert "Not known: whether" in said
    assert "exact.py:right can be imported" in " ".join(said.split())
    assert json.loads(call("plan", file, "--no-code", "--json").stdout)["unchecked"] == [f"{folder}/exact.py:right"]
    assert not ran(folder)
    assert "unchecked" not in json.loads(call("plan", file, "--json").stdout)
    assert ran(folder)


def test_without_code_a_missing_function_is_not_known(folder: Path) -> None:
    (folder / "exact.py").unlink()
    call("plan", "tiny.yaml", "--no-code")
    done = CliRunner().invoke(main, ["plan", "tiny.yaml"])
    assert done.exit_code == 2
    assert "training.evaluate.metrics: " in done.output


def test_the_keys_are_the_same(folder: Path) -> None:
    found = [json.loads(call("plan", "tiny.yaml", "--json", *options).stdout) for options in ((), ("--no-code",))]
    assert found[0]["stages"] == found[1]["stages"]


def test_nothing_that_lies_in_a_store_runs(folder: Path) -> None:
    """Its reports name the file of a metric; to read them needs none of it."""
    schedule: Schedule = load("tiny.yaml")
    plan, store = make_plan(schedule), Store(open_folder(folder / "store"))
    for record in make_curves(plan).values():
        store.commit_record(record)
    Driver(plan, schedule, store, []).run()
    assert "exact.py" in (folder / "store/runs/tiny/run.json").read_text()
    hooks.find.cache_clear()
    ran(folder)
    for command in ("report tiny", "status", "status tiny", "store list", "store verify", "store prune"):
        CliRunner().invoke(main, [*command.split(), "--store", "store"])
        assert not ran(folder), command
