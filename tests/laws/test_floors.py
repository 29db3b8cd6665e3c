"""The house: folders of modules, each with its rank; imports go down only. And who may import what is slow to load."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from house import FOLDERS

PACKAGE = Path(__file__).parents[2] / "raystage"

MOST_FILES = 17
MOST_LINES = 350
# The one file in the package itself that stands above all folders: what `import raystage` gives.
API = "api"

# Packages from outside that every module of a folder may import.
PACKAGES: dict[str, set[str]] = {
    "": set(),
    "files": {"pyarrow", "xxhash"},
    "models": set(),
    "sources": {"numpy", "xxhash"},
    "data": {"numpy", "xxhash"},
    "objectives": {"numpy", "torch"},
    "growth": {"numpy", "torch"},
    "config": {"pydantic", "yaml"},
    "plans": set(),
    "planning": set(),
    "results": set(),
    "storage": {"numpy", "psutil", "pydantic", "typing_extensions", "xxhash"},
    "train": {"deepspeed", "numpy", "pynvml", "ray", "safetensors", "torch", "transformers"},
    "cluster": {"psutil", "ray"},
    "reports": {"jinja2", "markupsafe", "rich", "yaml"},
    "runs": {"psutil", "rich"},
    "sweeps": {"optuna", "pydantic", "ray", "rich", "yaml"},
    "jobs": {"packaging", "ray", "yaml"},
    "tools": {"numpy", "packaging", "ray", "safetensors", "torch", "transformers"},
    "cli": {"click", "rich"},
}
# What single modules may import besides: what is slow to load stays in few files.
FURTHER: dict[str, set[str]] = {
    API: {"pandas", "ray", "rich"},
    "data.hf_tokenizer": {"tokenizers", "transformers"},
    "jobs.follow": {"aiohttp"},
    "models.build": {"torch", "transformers"},
    "train.collectives": {"psutil"},
    "models.networks.cnn": {"torch", "transformers"},
    "models.networks.lstm": {"torch", "transformers"},
    "models.networks.answers": {"torch", "transformers"},
    "models.networks.inspection": {"torch", "transformers"},
    "models.networks.mlp": {"torch", "transformers"},
    "models.networks.network": {"torch"},
    "models.networks.own_build": {"torch", "transformers"},
    "models.document_attention": {"torch", "transformers"},
    "models.hf_layers": {"torch", "transformers"},
    "reports.image": {"matplotlib"},
    "sources.hub_files": {"yaml"},
    "sources.labelled.columns": {"pyarrow"},
    "sources.labelled.decoding": {"PIL"},
    "sources.huggingface": {"pyarrow"},
    "sources.parquet": {"pyarrow"},
    "sources.places": {"pyarrow"},
    "runs.wandb": {"wandb"},
    "safe_console": {"rich"},
    "storage.huggingface": {"pyarrow", "torch"},
}
# numpy is not among them: it takes a tenth of a second, and axis maps are made of it.
HEAVY = ("torch", "ray", "deepspeed", "wandb", "transformers", "matplotlib", "pyarrow")
# What a plan is made and shown with imports nothing heavy; nor does the command line before a command is chosen.
LIGHT = ("", "config", "plans", "planning", "results", "cli.main", "cli.options", "cli.views.plan_json", "growth.rules",
         "growth.operators", "growth.checks", "growth.axis_maps", "models.families", "models.shape", "models.hf_folder",
         "sources.table", "sources.text", "sources.python_stdlib", "data.tokenizer_names", "data.plan",
         "reports.plan_tables", "reports.advice", "reports.suggestions", "reports.build",
         "reports.html", "sweeps.trials", "sweeps.reports.figures",
         "train.control_actor")  # fmt: skip


def module_name(path: Path) -> str:
    """'growth.operators'; '' is the package itself, 'growth' a folder's `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_folder = pytest.mark.parametrize("folder", FOLDERS)


def folder_of(module: str) -> str:
    return module.partition(".")[0] if (PACKAGE / module.partition(".")[0]).is_dir() else ""


def rank(module: str) -> int:
    if module == API:
        return len(FOLDERS)
    folder = folder_of(module)
    return FOLDERS.index(folder) if folder else -1


@cache
def imports_of(module: str) -> list[tuple[str, bool]]:
    """(what is imported, whether inside a function) for each import statement of a module."""
    tree = ast.parse(FILES[module].read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for_types = {
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    return [
        (name, node in inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in for_types
        for name in names_in(node)
    ]


def names_in(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"line {node.lineno}: relative import; write raystage...."
    return [f"{node.module}.{alias.name}" for alias in node.names]


def own_imports(module: str) -> set[str]:
    """The modules of raystage that a module imports: of 'raystage.growth.depth.stack' the longest that is a file."""
    found = set()
    for name, _ in imports_of(module):
        parts = name.split(".")
        if parts[0] == "raystage":
            found.add(next(own for end in range(len(parts), 0, -1) if (own := ".".join(parts[1:end])) in FILES))
    return found - {module}


def packages_of(module: str) -> set[str]:
    names = {name.split(".")[0] for name, _ in imports_of(module)}
    return names - {"raystage", "__future__"} - sys.stdlib_module_names


def test_every_folder_has_a_rank() -> None:
    assert {folder_of(module) for module in FILES} - {""} == set(FOLDERS)


@every_folder
def test_a_folder_is_no_street(folder: str) -> None:
    assert len(list((PACKAGE / folder).glob("[!_]*.py"))) <= MOST_FILES
    assert (PACKAGE / folder / "__init__.py").read_text() == ""


def test_every_module_is_short_enough_to_read() -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert not {module: count for module, count in lines.items() if count > MOST_LINES}


def test_imports_go_down_or_stay_in_the_folder() -> None:
    up = {module: {other for other in own_imports(module) if rank(other) > rank(module)} for module in FILES}
    assert not {module: sorted(others) for module, others in up.items() if others}, "they import from above"


def test_imports_have_no_cycles() -> None:
    order = list(graphlib.TopologicalSorter({module: own_imports(module) for module in FILES}).static_order())
    assert set(FILES) <= set(order)


def test_imports_stand_at_the_top() -> None:
    """The command line may import inside a function: `raystage --help` should not wait for torch."""
    late = {module: {name for name, inside in imports_of(module) if inside} for module in FILES}
    found = {module: sorted(names) for module, names in late.items() if names and folder_of(module) != "cli"}
    assert not found, "they import inside a function"


def test_every_module_imports_only_what_it_may() -> None:
    allowed = {module: PACKAGES[folder_of(module)] | FURTHER.get(module, set()) for module in FILES}
    beyond = {module: sorted(packages_of(module) - allowed[module]) for module in FILES}
    assert not {module: names for module, names in beyond.items() if names}, "they import more than they may"


def test_names_that_ray_does_not_document_stand_in_one_file() -> None:
    private = ("ray._private", "ray._raylet", "ray.core", "ray_constants")
    users = {module for module, path in FILES.items() if any(name in path.read_text() for name in private)}
    assert users == {"cluster.ray_private"}


def test_what_a_plan_needs_imports_nothing_heavy() -> None:
    """In a process of their own, since this one has imported what other tests need."""
    light = [module for module in FILES if module in LIGHT or folder_of(module) in LIGHT[1:]]
    script = f"import sys, {', '.join(f'raystage.{module}'.rstrip('.') for module in light)}; "
    script += f"print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_plan_imports_what_it_needs() -> None:
    """numpy takes as long as half of a plan, and only the axis maps of a growth are made of it."""
    script = (
        "import sys; from click.testing import CliRunner; from raystage.cli.main import main\n"
        "done = CliRunner().invoke(main, ['plan', 'jobs/schedules/quickstart.yaml'])\n"
        "assert not done.exit_code, done.output\n"
        f"print(*(name for name in {(*HEAVY, 'numpy', 'huggingface_hub')} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []
