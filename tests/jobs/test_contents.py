"""The files that go with a job: those that a schedule names by relative paths, and no others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from raystage.jobs.contents import Contents, contents_of

MODEL = {"hidden_size": 32, "num_heads": 4, "context_length": 32}
SCHEDULE = {
    "name": "mine",
    "data": {"source": "text", "path": "text"},
    "model": MODEL,
    "training": {"workers": 1, "global_batch_tokens": 64},
    "stages": [{"name": "one", "model": {"num_layers": 1}, "until": {"steps": 1}}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project: schedules in a folder of their own, texts beside it, and much that no schedule names."""
    for name in ("schedules", "text", "more/deep", ".venv/lib", ".raystage/stages"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("text/a.txt", "more/b.txt", "more/deep/c.txt", ".venv/lib/large", "metrics.py", "notes.md"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(path: Path, **changes: object) -> Contents:
    content = {**SCHEDULE, **changes}
    path.write_text(yaml.safe_dump(content))
    return contents_of(path, content)


def names(found: Contents) -> set[str]:
    return {str(path) for path in found.files}


def test_only_what_is_named_goes(folder: Path) -> None:
    found = contents(folder / "mine.yaml")
    assert (found.root, found.folder) == (folder, Path())
    assert names(found) == {"mine.yaml", "text"}


def test_files_keep_their_places_to_each_other(folder: Path) -> None:
    found = contents(folder / "schedules/mine.yaml", data={"source": "text", "path": "../text"})
    assert (found.root, found.folder) == (folder, Path("schedules"))
    assert names(found) == {"schedules/mine.yaml", "text"}


def test_a_path_from_the_working_directory_is_found_from_there(folder: Path) -> None:
    found = contents(folder / "schedules/mine.yaml")
    assert (found.root, found.folder) == (folder, Path())
    assert names(found) == {"schedules/mine.yaml", "text"}


def test_every_kind_of_file_goes(folder: Path) -> None:
    metrics = {"every": 64, "tokens": 64, "metrics": ["metrics.py:exact"]}
    found = contents(
        folder / "mine.yaml",
        data={"mixture": [
            {"name": "a", "source": "text", "path": "more/**/*.txt", "weight": 1},
            {"name": "b", "source": "text", "path": "text/a.txt", "weight": 1},
        ]},
        training={**SCHEDULE["training"], "evaluate": metrics},
    )  # fmt: skip
    assert names(found) == {"mine.yaml", "metrics.py", "more/b.txt", "more/deep/c.txt", "text/a.txt"}


def test_what_the_cluster_has_does_not_go(folder: Path) -> None:
    for path in (str(folder / "text"), "s3://bucket/text"):
        assert names(contents(folder / "mine.yaml", data={"source": "text", "path": path})) == {"mine.yaml"}


def test_a_sweep_goes_with_its_schedule_and_with_the_files_that_it_varies(folder: Path) -> None:
    base = folder / "schedules/mine.yaml"
    base.write_text(yaml.safe_dump(SCHEDULE))
    space = {"data.path": {"grid": ["text", "more"]}, "stages[0].until.steps": {"grid": [1, 2]}}
    sweep = {"name": "which", "schedule": "schedules/mine.yaml", "space": space}
    found = contents_of(folder / "sweep.yaml", sweep, (base, dict(SCHEDULE)))
    assert names(found) == {"sweep.yaml", "schedules/mine.yaml", "text", "more"}


def test_a_module_of_the_users_own_goes_and_an_installed_one_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "src/mymetrics").mkdir(parents=True)
    (folder / "src/mymetrics/__init__.py").write_text("raise SystemExit('submitting runs no code')")
    monkeypatch.syspath_prepend(str(folder / "src"))
    metrics = {"every": 64, "tokens": 64, "metrics": ["mymetrics.exact:match", "json:dumps", "yaml:dump"]}
    found = contents(folder / "mine.yaml", training={**SCHEDULE["training"], "evaluate": metrics})
    assert found.modules == (folder / "src/mymetrics",)
    assert "mymetrics" not in sys.modules
