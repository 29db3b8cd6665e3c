"""Names and messages of a store's files on a terminal, in Markdown, as file names: they show, and do nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factories import make_curves, make_schedule
from raystage.cli.main import main
from raystage.config.types import check_name
from raystage.errors import InputError
from raystage.files.filesystem import open_folder
from raystage.files.sealed_json import unsealed
from raystage.files.typed_json import from_json
from raystage.planning.build import make_plan
from raystage.results.report import StageTasks
from raystage.runs.driver import Driver
from raystage.safe_console import SafeConsole
from raystage.safe_text import in_markdown, visible
from raystage.storage.store import Store

EVIL = "\x1b]0;title\x07\x1b[31mred\x1b[0m\r\x9b2J\u202eabc [red]x[/red] [link=http://evil]y[/link] <img src=x> | `z`"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Its one run says everything with EVIL."""
    (tmp_path / "text").mkdir()
    opened = Store(open_folder(tmp_path / "store"))
    schedule = make_schedule(tmp_path / "text", name="mine")
    plan = make_plan(schedule)
    for record in make_curves(plan).values():
        opened.commit_record(record)
    Driver(plan, schedule, opened, [], draws=False).run()
    return opened


def spoil(store: Store, name: str = EVIL) -> None:
    for file in ("report.json", "run.json"):
        path = Path(store.run_folder("mine").path, file)
        content = unsealed(path.read_bytes())
        content.update(name=name, state=EVIL)
        for row in content["stages"]:
            row.update(name=EVIL.replace("/", "-"), state=EVIL)
        if file == "report.json":
            content["savings"]["verdict"] = EVIL
            content["warnings"] = [EVIL]
        path.write_text(json.dumps(content))


def call(store: Store, *arguments: str) -> Result:
    done = CliRunner().invoke(main, [*arguments, "--store", store.folder.uri])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(
    "command", [("status",), ("status", "mine"), ("report", "mine"), ("report", "mine", "--markdown"),
                ("store", "list"), ("store", "verify"), ("store", "prune"), ("report", EVIL), ("status", EVIL)]
)  # fmt: skip
def test_nothing_in_a_file_steers_the_terminal(store: Store, command: tuple[str, ...]) -> None:
    spoil(store)
    shown = call(store, *command).output
    assert not set("\x1b\x07\x9b\r\u202e") & set(shown)


def test_a_console_shows_markup_and_steering_and_keeps_its_own_colours() -> None:
    stream = io.StringIO()
    SafeConsole(stream, force_terminal=True, color_system="standard", width=200).print(
        EVIL, style="bold", highlight=False
    )
    shown = stream.getvalue()
    assert shown.startswith("\x1b[1m\\x1b]0;title")
    assert "[red]x[/red] [link=http://evil]y[/link]" in shown
    assert shown.count("\x1b") == 2  # bold, and its end


def test_markdown_shows_html_links_and_bars_as_text(store: Store) -> None:
    spoil(store)
    page = call(store, "report", "mine", "--markdown").stdout
    assert "<img" not in page
    assert "&lt;img src=x> \\| \\`z\\`" in page
    table = [line for line in page.splitlines() if line.startswith("| ") and "title" in line]
    assert len({line.replace("\\|", "").count("|") for line in table[:2]}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 -> 0.4, zero_pad, **", "0.5 -> 0.4, zero_pad, **"),
        ("a\nb", "a b"),
        ("[a](javascript:x)", "\\[a](javascript:x)"),
        ("stages[1].until", "stages[1].until"),
        ("a|b`c\\", "a\\|b\\`c\\\\"),
        ("&#60;b", "&amp;#60;b"),
        ("a & b", "a & b"),
    ],
)
def test_text_in_markdown(text: str, expected: str) -> None:
    assert in_markdown(text) == expected


def test_the_page_of_html_escapes_every_name(store: Store, tmp_path: Path) -> None:
    spoil(store)
    assert call(store, "report", "mine", "--html", str(tmp_path / "page.html")).exit_code == 0
    assert "<img" not in (tmp_path / "page.html").read_text()


def test_no_file_is_written_where_a_report_says(store: Store, tmp_path: Path) -> None:
    """Figures are named after the run as it was asked for."""
    content = store.read_run("mine", "report.json") | {"name": "../../escaped"}
    store.write_run("mine", "report.json", content)
    (tmp_path / "x").mkdir()
    call(store, "report", "mine", "--figures", str(tmp_path / "x/y"))
    assert {path.name for path in (tmp_path / "x/y").iterdir()} == {"mine.png", "mine.svg"}
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize(
    "name", ["../store/runs/mine", "mine/..", ".", "..", "", "/etc", "mine/earlier/../..", "mine/earlier/1"]
)
def test_a_name_is_no_path(store: Store, name: str) -> None:
    for command in ("report", "status"):
        done = call(store, command, name)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "known runs: mine" in done.stderr


def test_a_stage_whose_name_is_a_path_is_damage(store: Store) -> None:
    path = Path(store.run_folder("mine").path, "report.json")
    content = unsealed(path.read_bytes())
    content["stages"][-1]["name"] = "../../../evil"
    path.write_text(json.dumps(content))
    for command in (("report", "mine"), ("evaluate", "mine", "--tasks", "a")):
        done = call(store, *command)
        assert done.exit_code in (1, 2)
        assert not done.stdout


@pytest.mark.parametrize("text", ["plain", "Grüße 模型", "a\tb\nc", "emoji 🙂"])
def test_plain_text_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("name", ["a\x1b", "a\u202eb", "a b", "a/b", "模" * 60, "x" * 161, "a\n", "-a", ""])
def test_names_of_schedules_hold_no_such_characters(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_name(name)


def test_a_long_name_is_refused_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    with pytest.raises(InputError, match=r"name: found '模.*180 bytes.*at most 160 bytes"):
        make_schedule(tmp_path / "text", name="模" * 60)
    assert make_schedule(tmp_path / "text", name="模" * 53).name == "模" * 53


def test_what_is_wrong_with_a_file_steers_nothing_where_it_is_logged() -> None:
    with pytest.raises(ValueError, match=r"tasks\.\\x1b\]0;title\\x07"):
        from_json(StageTasks, {"key": "k", "tasks": {"\x1b]0;title\x07": 5}})
