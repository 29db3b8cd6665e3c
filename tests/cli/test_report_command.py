"""`raystage report` as users call it, on runs that lie in a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from factories import make_curves, make_schedule
from raystage.cli.main import main
from raystage.config.schedule import parse
from raystage.files.filesystem import open_folder
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.reports.markdown import markdown
from raystage.results.sweep_report import SweepReport
from raystage.runs.driver import Driver
from raystage.storage.store import Store
from raystage.sweeps.reports.html import write_papers
from raystage.sweeps.reports.summary import verdict
from raystage.sweeps.trials import plan_sweep
from sweep_results import finished, swept
from sweeps import make_sweep


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs; all their stages were there before, so that the driver trains nothing."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "text").mkdir()
    opened = Store(open_folder(str(folder / "store")))
    for name in ("mine", "other"):
        schedule = make_schedule(folder / "text", name=name)
        plan = make_plan(schedule)
        for record in make_curves(plan).values():
            opened.commit_record(record)
        Driver(plan, schedule, opened, []).run()
    return folder / "store"


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A copy, for a test to write to."""
    shutil.copytree(template, tmp_path / "store")
    return Store(open_folder(str(tmp_path / "store")))


@pytest.fixture
def sweep(store: Store, tmp_path: Path) -> SweepReport:
    """The report of a sweep named search, in the store with its papers."""
    plan = plan_sweep(make_sweep(tmp_path))
    found = swept(plan, finished(plan, 2.0, 1.5, 1.7, 1.9))
    store.write_run("search", "report.json", to_json(found))
    write_papers(store, plan, found)
    return found


@pytest.fixture
def report(store: Store):
    def call(*arguments: object, status: int = 0) -> Result:
        done = CliRunner().invoke(main, ["report", *map(str, arguments), "--store", store.folder.uri])
        assert done.exit_code == status, done.output
        return done

    return call


def test_a_run_leaves_its_page_beside_its_report(store: Store) -> None:
    folder = Path(store.folder.uri) / "runs/mine"
    assert {path.name for path in folder.iterdir()} >= {"report.html", "report.md", "report.json", "curves.png"}
    found = json.loads((folder / "report.json").read_text())
    text = (folder / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert found["stages"][1]["key"][:12] in text


def test_the_schedule_in_run_json_can_be_run_again(store: Store) -> None:
    """What stages do not set themselves is the file's, not a default of their own."""
    content = store.read_run("mine", "run.json")
    keys = {stage["key"] for stage in content["stages"]}
    again = make_plan(parse(yaml.safe_load(yaml.safe_dump(content["schedule_as_set"]))))
    assert {stage.key for run in again.runs() for stage in run.stages} == keys


def test_html_writes_one_page_of_all_runs(report, tmp_path: Path) -> None:
    done = report("mine", "other", "--html", tmp_path / "both.html")
    assert done.stdout == f"wrote {tmp_path / 'both.html'}\n"
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<h1>2 runs side by side</h1>" in text
    assert '<h2 id="run-2">other</h2>' in text


def test_markdown_is_the_page_of_each_run(report, store: Store) -> None:
    done = report("mine", "other", "--markdown")
    pages = [markdown(store.run_report(name)) for name in ("mine", "other")]
    assert done.stdout == "\n".join(pages)


def test_figures_are_drawn_again(report, tmp_path: Path) -> None:
    report("mine", "other", "--figures", tmp_path / "new/pictures")
    names = {path.name for path in (tmp_path / "new/pictures").iterdir()}
    assert names == {"mine.png", "mine.svg", "other.png", "other.svg"}
    assert (tmp_path / "new/pictures/mine.png").read_bytes().startswith(b"\x89PNG")


def test_json_stays_json_beside_files(report, store: Store, tmp_path: Path) -> None:
    done = report("mine", "--json", "--html", tmp_path / "mine.html")
    assert json.loads(done.stdout) == store.read_run("mine", "report.json")
    assert done.stderr == f"wrote {tmp_path / 'mine.html'}\n"


def test_without_options_the_tables_are_shown(report) -> None:
    assert "loss at growth" in report("mine").stdout


def test_a_sweep_leaves_its_page_beside_its_report(store: Store, sweep: SweepReport) -> None:
    folder = Path(store.folder.uri) / "runs/search"
    assert {path.name for path in folder.iterdir()} == {
        "report.json", "report.html", "report.md", "sweep.png", "sweep.svg", "best.yaml",
    }  # fmt: skip
    assert f"<h1>{verdict(sweep)}</h1>" in (folder / "report.html").read_text()
    assert (folder / "report.md").read_text().startswith(f"# search\n\n{verdict(sweep)}\n")


def test_a_sweep_is_reported_like_a_run(report, store: Store, sweep: SweepReport, tmp_path: Path) -> None:
    folder = Path(store.folder.uri) / "runs/search"
    report("search", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()
    assert report("search", "--markdown").stdout == (folder / "report.md").read_text()
    report("search", "mine", "--figures", tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"search.png", "search.svg", "mine.png", "mine.svg"}
    assert (tmp_path / "pictures/search.svg").read_bytes() == (folder / "sweep.svg").read_bytes()
    assert json.loads(report("search", "--json").stdout) == to_json(sweep)


def test_a_sweep_has_a_page_of_its_own(report, sweep: SweepReport, tmp_path: Path) -> None:
    done = report("mine", "search", "--html", tmp_path / "both.html", status=2)
    assert (
        done.stderr == "raystage: --html: found sweep 'search' among others; expected it alone, on a page of its own\n"
    )
    assert not (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine", "nobody"], "NAME: no run 'nobody' in"),
        (["mine", "--json", "--markdown"], "--markdown: found --json too; expected one of them"),
        (["mine", "--html", "missing/page.html"], "missing/page.html: --html: cannot be written (No such file"),
        (["mine", "--figures", "/dev/null/here"], "/dev/null/here: --figures: cannot be written (Not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_message(report, arguments: list[str], message: str) -> None:
    done = report(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith("raystage: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
