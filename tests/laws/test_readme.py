"""What the README shows: its commands are ones the command line takes, its schedule plans, its folders are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from factories import write_documents
from house import FOLDERS
from raystage.cli.main import main
from raystage.config.schedule import Baseline, Schedule, load
from raystage.config.stage import Data, Grow, Model, Stage, Training
from raystage.growth.operators import OPERATORS
from raystage.plan.build import make_plan
from raystage.sweep.config import AfterGrowth, Constraints, EqualFlops, Objective, Scheduler, Search, Sweep
from raystage.sweep.config import load as load_sweep
from raystage.sweep.space import Entry
from raystage.sweep.trials import plan_sweep
from raystage.units import format_flops

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
OPERATOR_PAGE = (REPOSITORY / "docs/operators.md").read_text()
BLOCKS = [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.M)]


def block_with(text: str) -> str:
    return next(block for block in BLOCKS if text in block)


def commands() -> list[str]:
    lines = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
    return [
        line.split("#")[0].strip()
        for line in lines
        if re.match(r"raystage (plan|run|sweep|status|report|grow|certify|export|store)\b", line)
    ]


@pytest.mark.parametrize("line", commands())
def test_every_command_shown_is_one_the_command_line_takes(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.commands[name]
    if isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    context = command.make_context(name, arguments)
    assert context.params


def test_every_make_target_shown_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)$", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_first_schedule_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "my/texts").mkdir(parents=True)
    write_documents(tmp_path / "my/texts", 60)
    path = tmp_path / "mine.yaml"
    path.write_text(block_with("name: mine"))
    plan = make_plan(load(path))
    assert [stage.shape.num_layers for stage in plan.staged.stages] == [4, 8]
    assert len(plan.baselines) == 3
    assert plan.predicted_saving > 0


def test_the_first_sweep_is_the_one_that_ships() -> None:
    """Its figures too; only the schedule is named as if it lay beside it."""
    path = REPOSITORY / "jobs/sweeps/quickstart.yaml"
    shown, shipped = yaml.safe_load(block_with("name: when-to-grow")), yaml.safe_load(path.read_text())
    assert shown | {"schedule": "../schedules/growth.yaml"} == shipped
    tree = plan_sweep(load_sweep(path)).tree
    apart, shared = format_flops(tree.flops_apart), format_flops(tree.flops_shared)
    figures = f"{apart} FLOPs apart and are {shared}, a factor of {tree.sharing_factor:.2f}"
    assert figures in " ".join(README.split())


def test_the_table_of_folders_is_the_tree() -> None:
    package = REPOSITORY / "raystage"
    shown = re.findall(r"^\| `(\w+)/` \|", README, re.M)
    assert shown == list(FOLDERS)
    assert {path.parent.name for path in package.glob("*/__init__.py")} == set(shown)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_tables_name_every_key_and_operator() -> None:
    """A key or an operator that is added is written down, too."""
    sweep = (Entry, Search, Scheduler, AfterGrowth, Objective, Constraints, EqualFlops, Sweep)
    for section in (Data, Model, Training, Stage, Baseline, Schedule, Grow, *sweep):
        for field in section.model_fields:
            assert re.search(rf"\b{field}\b", README), f"{section.__name__}.{field}"
    for operator in OPERATORS:
        assert f"`{operator}`" in README
        assert re.search(rf"^\| `{operator}` \||^`{operator}` \(", OPERATOR_PAGE, re.M), operator
