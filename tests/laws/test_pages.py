"""What the documents show: commands that the command line takes, files that plan, links that lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml
from mixtures import write_texts

import labelled_files
import raystage
import started_models
from chats import conversations, save_chat_words, write_chats
from factories import make_curves, save_words, write_documents
from house import FOLDERS
from pages import (
    BLOCKS,
    DOCS,
    GENERATED,
    PAGES,
    REPOSITORY,
    Block,
    block_with,
    github_anchor,
    headings,
    links,
    prose,
    shell_lines,
    site_anchor,
)
from raystage.cli.main import main
from raystage.config.schedule import Baseline, Schedule, load, parse
from raystage.config.section import keys_of
from raystage.config.stage import Data, Grow, Model, Stage
from raystage.config.training import Training
from raystage.config.yaml_file import parse_value
from raystage.files.filesystem import open_folder
from raystage.growth.operators import OPERATORS
from raystage.planning.build import make_plan
from raystage.storage.store import Store
from raystage.sweeps.config import Constraints, EqualFlops, Objective, Search, Sweep
from raystage.sweeps.config import load as load_sweep
from raystage.sweeps.scheduler import AfterGrowth, Scheduler
from raystage.sweeps.space import SpaceEntry
from raystage.sweeps.trials import plan_sweep
from raystage.units import format_count, format_flops
from row_files import TEXTS, write_jsonl, write_saved
from token_writers import write_nanogpt

MOST_README_BYTES = 8_192
HAND_WRITTEN = "\n".join(text for page, text in PAGES.items() if page not in GENERATED)
FIRST_SCHEDULE = yaml.safe_load(block_with("name: mine", "README.md").text)
IMAGES_SCHEDULE = yaml.safe_load(block_with("name: which-digit", "docs/objectives.md").text)
_BERT = {"family": "bert", "num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 64}
TEXTS_SCHEDULE = IMAGES_SCHEDULE | {"model": _BERT}
YAML_BLOCKS = [block for block in BLOCKS if block.kind == "yaml"]


def ids(found: list) -> list[str]:
    return [f"{page}: {line}" for page, line in found]


# --- commands


COMMANDS = shell_lines("raystage ")
JOBS = [(page, line) for start in ("python jobs/run.py", "RAY_AUTH_MODE") for page, line in shell_lines(start)]


def parsed(name: str, arguments: list[str]) -> click.Context:
    command = main.commands[name]
    if isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    return command.make_context(name, list(arguments))


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=ids(COMMANDS))
def test_every_command_shown_is_one_the_command_line_takes(page: str, line: str) -> None:
    name, *arguments = shlex.split(line.partition(" > ")[0])[1:]  # without a redirection of what it prints
    assert parsed(name, arguments).params
    if name in ("plan", "run", "sweep") and arguments[0].startswith("jobs/"):
        overrides = tuple(value for option, value in pairwise(arguments) if option == "--set")
        read = load_sweep if arguments[0].startswith("jobs/sweeps/") else load
        assert read(REPOSITORY / arguments[0], overrides).name


@pytest.mark.parametrize(("page", "line"), JOBS, ids=ids(JOBS))
def test_every_job_shown_is_a_run(page: str, line: str) -> None:
    script, *arguments = shlex.split(line.partition("python ")[2])
    assert (REPOSITORY / script).is_file()
    assert parsed("run", arguments).params["store"], "the nodes of a cluster share no default store"
    assert load(REPOSITORY / arguments[0]).name == "quickstart"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_there(page: str) -> None:
    for name, further in re.findall(r"`raystage ([a-z]+) ?([a-z]*)", prose(page)):
        command = main.commands[name]
        assert not isinstance(command, click.Group) or not further or further in command.commands, f"{name} {further}"
    makefile = (REPOSITORY / "Makefile").read_text()
    shown = [line.split()[1] for _, line in shell_lines("make ", page)] + re.findall(r"`make (\w+)", PAGES[page])
    for target in shown:
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"


# --- Python


PYTHON = [block for block in BLOCKS if block.kind == "python" and "import raystage\n" in block.text]


def overrides_of(block: Block) -> list[str]:
    """Those with which the block loads its schedule."""
    calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "raystage.load" and len(call.args) > 1]
    return [one for call in loads for one in ast.literal_eval(call.args[1])]


@pytest.mark.parametrize("block", PYTHON, ids=[f"{one.page} {place}" for place, one in enumerate(PYTHON)])
def test_python_shown_runs(block: Block, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs find all their stages finished, and so train nothing."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (user_folder / "mine.yaml").write_text(block_with("name: mine", "README.md").text)
    schedule = raystage.load("mine.yaml", overrides_of(block))
    for record in make_curves(raystage.plan(schedule)).values():
        Store(open_folder(".raystage")).commit_record(record)
    exec(compile(block.text, block.page, "exec"), found := {})
    assert found.keys() & {"report", "plan"}


def test_the_page_of_the_python_interface_names_all_of_it() -> None:
    page = PAGES["docs/python.md"]
    for name in raystage.__all__:
        found = getattr(raystage, name)
        if inspect.isfunction(found):
            assert f"| `raystage.{name}(" in page, name
        for parameter in inspect.signature(found).parameters:
            assert re.search(rf"\b{parameter}\b", page), f"{name}: {parameter}"
    rows = "\n".join(re.findall(r"^\| `.*", page.partition("## Reports")[2], re.M))
    public = {name for name in dir(raystage.Report) if not name.startswith("_")} | {"found"}
    assert set(re.findall(r"`(\w+)(?:\(\))?`", " ".join(row.split("|")[1] for row in rows.splitlines()))) == public


# --- files


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the schedules of the documents read: texts, a model, functions."""
    (tmp_path / "my/texts").mkdir(parents=True)
    write_documents(tmp_path / "my/texts", 60)
    (tmp_path / "my/page.txt").write_text("a page of its own\n" * 20)
    write_jsonl(tmp_path / "my/rows/a.jsonl", [text * 10 for text in TEXTS])
    write_saved(tmp_path / "my/dataset", [text * 10 for text in TEXTS])
    write_texts(tmp_path / "my", ("web", "code", "math"), 60)
    (tmp_path / "my/tokens").mkdir()
    write_nanogpt(
        tmp_path / "my/tokens", [[*range(60), 50256]] * 5 + [[*range(first, 600), 50256] for first in range(60)]
    )
    reviews = ({"text": f"film {number}", "stars": number % 5 + 1} for number in range(60))
    (tmp_path / "my/reviews.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reviews))
    labelled_files.write_folders(tmp_path / "my/pets", labelled_files.images())
    labelled_files.write_saved(tmp_path / "my/photos", labelled_files.images(), ("photo", "kind"))
    write_chats(tmp_path / "my/chats.jsonl", conversations(900))
    save_chat_words(tmp_path / "my/tokenizer", None)
    (tmp_path / "my/chat.jinja").write_text(block_with("{% generation %}", "docs/objectives.md").text)
    (tmp_path / "exact.py").write_text(block_with("# exact.py", "docs/savings.md").text)
    (tmp_path / "losses.py").write_text(block_with("def smooth", "docs/objectives.md").text)
    (tmp_path / "reader.py").write_text(block_with("class Reader", "docs/architectures.md").text)
    (tmp_path / "my_package").mkdir()
    calibration = "def calibration(logits, targets):\n    return {'calibration': (0, targets.numel())}\n"
    (tmp_path / "my_package/metrics.py").write_text(calibration)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_model(folder: Path) -> None:
    started_models.make(folder, "llama", num_hidden_layers=4, max_position_embeddings=256, vocab_size=3)
    save_words(folder, "document")


def content_of(block: Block) -> dict:
    """What a block is a part of: the first schedule of the README, or one of samples, under what the block says."""
    written = parse_value(block.text)  # as a schedule is read: `on` is a key
    if "name" in written:
        return written
    under = schedule_under(written)
    return under | {
        key: {**under.get(key, {}), **value} if isinstance(value, dict) and key != "objective" else value
        for key, value in written.items()
    }


def schedule_under(written: dict) -> dict:
    """The schedule that a block changes: a block about samples belongs to one that classifies them."""
    data, objective = written.get("data", {}), written.get("objective")
    if data.get("source") in ("images", "arrays") or "image" in data or "noise" in (objective or ()):
        return IMAGES_SCHEDULE
    return TEXTS_SCHEDULE if "label" in data else FIRST_SCHEDULE


SCHEDULES = [block for block in YAML_BLOCKS if set(yaml.safe_load(block.text)) <= set(keys_of(Schedule))]
SWEEPS = [block for block in YAML_BLOCKS if "space" in yaml.safe_load(block.text)]


def test_every_file_shown_is_a_schedule_a_sweep_or_a_family() -> None:
    others = [block for block in YAML_BLOCKS if block not in SCHEDULES and block not in SWEEPS]
    assert {block.page for block in others} <= {"docs/families.md"}, "tests/config/test_family.py reads that one"
    assert len(SCHEDULES) >= 12
    written = re.findall(
        r"^```(?!yaml)\w*\n(?:name|data|model|objective|training|stages):", "\n".join(PAGES.values()), re.M
    )
    assert not written, "a block of another kind is planned by no test"


@pytest.mark.parametrize("block", SCHEDULES, ids=[f"{one.page} {one.text.split()[0]}" for one in SCHEDULES])
def test_every_schedule_shown_can_be_planned(block: Block, user_folder: Path) -> None:
    if "my/llama" in block.text:
        make_model(user_folder / "my/llama")
    plan = make_plan(parse(content_of(block), user_folder))
    assert plan.staged.stages


def test_the_first_schedule_is_what_it_says(user_folder: Path) -> None:
    (user_folder / "mine.yaml").write_text(block_with("name: mine", "README.md").text)
    plan = make_plan(load(user_folder / "mine.yaml"))
    assert [stage.shape.num_layers for stage in plan.staged.stages] == [4, 8]
    assert len(plan.baselines) == 3
    assert plan.predicted_saving > 0


@pytest.mark.parametrize("block", SWEEPS, ids=[one.page for one in SWEEPS])
def test_the_sweep_shown_is_the_one_that_ships(block: Block) -> None:
    """A page may name the schedule as if it lay beside it, and leave out how the points are searched."""
    shown = yaml.safe_load(block.text)
    files = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "jobs/sweeps").glob("*.yaml")]
    shipped = next(one for one in files if one["name"] == shown["name"])
    if "/" not in shown["schedule"]:
        shown["schedule"] = f"../schedules/{shown['schedule']}"
    assert {"search": shipped["search"]} | shown == shipped


def test_figures_of_the_sweep_are_computed() -> None:
    planned = plan_sweep(load_sweep(REPOSITORY / "jobs/sweeps/quickstart.yaml"))
    apart, shared = format_flops(planned.tree.flops_apart), format_flops(planned.tree.flops_shared)
    trials, factor = len(planned.trials), f"{planned.tree.sharing_factor:.2f}"
    text = " ".join(PAGES["docs/sweeps.md"].split())
    assert f"the {trials} trials above would cost {apart} FLOPs; shared, they cost {shared} FLOPs" in text
    assert f"a factor of {factor} less" in text
    assert f"# {trials} trials that share stages: {factor} times fewer FLOPs" in PAGES["README.md"]


def test_figures_of_the_demo_are_those_of_its_plan() -> None:
    """All but what only a run knows: its losses."""
    plan = make_plan(load(REPOSITORY / "jobs/schedules/quickstart.yaml"))
    rows = [(stage.name, stage, stage.flops, stage.duration) for stage in plan.staged.stages]
    rows += [(run.name, run.stages[-1], run.stages[-1].end_flops, run.stages[-1].end) for run in plan.baselines]
    for name, stage, flops, tokens in rows:
        figures = (stage.shape.num_layers, format_count(stage.num_params), format_count(tokens), format_flops(flops))
        assert re.search(rf"^{name} +{' +'.join(map(re.escape, map(str, figures)))} ", PAGES["README.md"], re.M), name


# --- places


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (REPOSITORY / page).parent
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (folder / target).resolve() if target else REPOSITORY / page
        assert path.exists(), link
        if page.startswith("docs/"):
            assert path.is_relative_to(DOCS), f"{link}: the site has the pages of docs/ alone"
        if anchor:
            named = [one for one in headings(path.read_text(encoding="utf-8")) if github_anchor(one) == anchor]
            assert named, link
            assert site_anchor(named[0]) == anchor, f"{link}: the site names this heading otherwise"


@pytest.mark.parametrize("page", PAGES)
def test_files_named_are_there(page: str) -> None:
    """By their paths from the repository; a folder's other files may be left out, `cluster/...`."""
    for path in re.findall(r"`((?:raystage|jobs|tests|docs|benchmarks|cluster)/[\w/.-]+\.\w+)`", PAGES[page]):
        assert (REPOSITORY / path).is_file(), path


def test_the_table_of_folders_is_the_tree() -> None:
    shown = re.findall(r"^\| (\d+) \| `(\w+)/` \|", PAGES["docs/architecture.md"], re.M)
    assert shown == [(str(rank), folder) for rank, folder in enumerate(FOLDERS, start=1)]
    assert {path.parent.name for path in (REPOSITORY / "raystage").glob("*/__init__.py")} == set(FOLDERS)


def test_the_site_has_every_page() -> None:
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = [path for entry in navigation for path in entry.values()]
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))
    for page in named:
        assert page == "index.md" or f"({page})" in PAGES["docs/index.md"], f"docs/index.md does not name {page}"


# --- completeness


def test_the_readme_takes_five_minutes() -> None:
    assert len(PAGES["README.md"].encode()) <= MOST_README_BYTES


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    sys.modules["generate"] = generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert {f"docs/{name}" for name in generate.PAGES} == set(GENERATED)
    assert generate.run(["--check"]) == 0, "run: .venv/bin/python docs/generate.py"


@pytest.mark.parametrize("page", GENERATED)
def test_every_row_of_a_reference_says_what_it_means(page: str) -> None:
    rows = re.findall(r"^\| `.*", PAGES[page], re.M)
    assert len(rows) > 60
    assert not [row for row in rows if re.search(r"\|\s*\|$", row)]


def test_the_text_explains_every_key_and_operator() -> None:
    """The reference lists every key by itself; a key that is added is explained by hand, too."""
    sweep = (SpaceEntry, Search, Scheduler, AfterGrowth, Objective, Constraints, EqualFlops, Sweep)
    for section in (Data, Model, Training, Stage, Baseline, Schedule, Grow, *sweep):
        for field in section.model_fields:
            assert re.search(rf"\b{field}\b", HAND_WRITTEN), f"{section.__name__}.{field}"
    for operator in OPERATORS:
        assert f"`{operator}`" in PAGES["docs/growth.md"]
        row = rf"^\| `{operator}` \||^`{operator}` \("
        assert re.search(row, PAGES["docs/operators.md"], re.M), operator
