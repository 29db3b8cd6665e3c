"""`raystage init`: what it writes can be planned, nothing is overwritten, and a wheel has the examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raystage.cli.init import examples_folder, find_examples
from raystage.cli.main import main
from raystage.config.schedule import load
from raystage.config.yaml_file import read_mapping
from raystage.planning.build import make_plan
from raystage.reports.advice import warnings

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = find_examples(examples_folder())
# The others read tokens that only their user has, which tests/laws/test_recipes.py plans, or what a script makes.
WITH_TEXT = [
    name for name, path in EXAMPLES.items() if "source: tokens" not in path.read_text() and name != "languages"
]
BUILD = """
import glob, os, sys, tarfile
from setuptools import build_meta
sdist = build_meta.build_sdist("made")
with tarfile.open(f"made/{sdist}") as archive:
    archive.extractall("unpacked", filter="data")
made = os.path.abspath("made")
os.chdir(glob.glob("unpacked/*")[0])
build_meta.build_wheel(made)
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def raystage(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def done(*arguments: str) -> str:
    result = raystage(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    """What it says, with nothing written or changed."""
    before = contents()
    result = raystage(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert contents() == before
    return result.stderr.strip()


def contents() -> dict[str, str]:
    return {str(path): path.read_text() for path in Path().rglob("*") if path.is_file()}


def test_the_starter_plans_without_a_warning_and_costs_less_than_the_quickstart() -> None:
    assert done("init").splitlines() == [
        "wrote schedule.yaml",
        "next: raystage plan schedule.yaml, then raystage run schedule.yaml",
    ]
    starter, quickstart = make_plan(load("schedule.yaml")), make_plan(load(EXAMPLES["quickstart"]))
    assert warnings(starter) == ()
    cost, of_quickstart = (sum(run.flops for run in plan.runs()) for plan in (starter, quickstart))
    assert cost < of_quickstart
    done("plan", "schedule.yaml")


@pytest.mark.parametrize("name", WITH_TEXT)
def test_every_example_that_is_written_can_be_planned(name: str) -> None:
    done("init", "--example", name)
    assert (Path(EXAMPLES[name].name)).is_file()
    done("plan", EXAMPLES[name].name)


def test_an_example_whose_text_a_script_makes_brings_the_script() -> None:
    done("init", "--example", "languages")
    assert sorted(path.name for path in Path().iterdir()) == ["languages.py", "languages.yaml"]
    assert "`python languages.py`" in Path("languages.yaml").read_text()
    assert read_mapping(Path("languages.yaml"))["data"]["path"] == "languages/sentences.jsonl"


def test_a_sweep_brings_the_schedule_that_it_varies() -> None:
    Path("mine").mkdir()
    assert done("init", "--example", "sweeps/quickstart", "mine/lengths.yaml").splitlines() == [
        "wrote mine/growth.yaml",
        "wrote mine/lengths.yaml",
        "next: raystage plan mine/lengths.yaml, then raystage sweep mine/lengths.yaml",
    ]
    shipped = read_mapping(EXAMPLES["sweeps/quickstart"])
    assert read_mapping(Path("mine/lengths.yaml")) == shipped | {"schedule": "growth.yaml"}
    done("init", "--example", "sweeps/quickstart", "mine/again.yaml")  # the schedule is there as it would be written
    Path("mine/growth.yaml").write_text("name: of my own\n")
    assert "mine/growth.yaml: FILE: is there already" in refused(
        "init", "--example", "sweeps/quickstart", "mine/x.yaml"
    )


def test_what_is_listed_can_be_copied() -> None:
    lines = done("init", "--list").splitlines()
    assert [line.split()[0] for line in lines] == list(EXAMPLES)
    assert lines[list(EXAMPLES).index("quickstart")].endswith(
        "  3 -> 6 -> 12 layers in three stages, on the source text of Python's own library."
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["there.yaml"], "there.yaml: FILE: is there already, and is not overwritten; expected a new file"),
        (["folder.yaml"], "folder.yaml: FILE: is there already, and is not overwritten; expected a new file"),
        (["link.yaml"], "link.yaml: FILE: is there already, and is not overwritten; expected a new file"),
        (["--example", "growth", "there.yaml"], "there.yaml: FILE: is there already, and is not overwritten; "
         "expected a new file"),
        (["none/mine.yaml"], "none/mine.yaml: FILE: found no folder none; expected a file in a folder that is there"),
        (["growth"], "growth: FILE: expected a name that ends in .yaml (an example is named by --example)"),
        (["--example", "quickstrat"], "--example: found 'quickstrat'; did you mean 'quickstart'?"),
        (["--example", "../secret"], f"--example: found '../secret'; expected one of {', '.join(EXAMPLES)}"),
        (["--example", "sweeps/quickstart", "growth.yaml"],
         "growth.yaml: FILE: found the name of a file that quickstart.yaml reads; expected another one"),
        (["--list", "mine.yaml"], "--list: found FILE 'mine.yaml' too; expected it alone"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments: list[str], expected: str) -> None:
    Path("there.yaml").write_text("name: of my own\n")
    Path("folder.yaml").mkdir()
    Path("link.yaml").symlink_to("nowhere.yaml")
    assert refused("init", *arguments) == f"raystage: {expected}"


def test_a_wheel_has_the_examples_and_so_has_what_it_is_built_from(tmp_path: Path) -> None:
    """Of the files that the cluster's image is made of."""
    source = tmp_path / "source"
    source.mkdir()
    copied = re.findall(r"^COPY --chown=ray (.*) \S+$", (REPOSITORY / "cluster/docker/Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "made").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (sdist,) = (source / "made").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        for shipped in ("sweeps/quickstart.yaml", "text/chats.jsonl", "text/characters/tokenizer.json"):
            assert any(name.endswith(f"/jobs/{shipped}") for name in archive.getnames())
    script = (
        "import sys; from raystage.cli.main import main; from raystage.cli.init import examples_folder\n"
        "print(examples_folder(), flush=True); main(sys.argv[1:])"
    )
    listed = subprocess.run(
        [sys.executable, "-c", script, "init", "--list"], cwd=tmp_path, check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    folder, *lines = listed.stdout.splitlines()
    assert folder == str(tmp_path / "installed/raystage/examples")
    assert lines == done("init", "--list").splitlines()
