"""The house: one corridor of modules, imports go down only. And what floors 0 and 1 must not pull in."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raystage"

# Every module of the package has its floor here; a new one is added by hand, with a thought about where it belongs.
FLOORS: dict[int, set[str]] = {
    0: {
        "", "addresses", "errors", "families", "findings", "growth", "notice", "lazy", "plain_text", "retry", "shape",
        "synonyms", "ticker", "units",
    },
    1: {
        "advice", "attempts", "baseline", "chart", "comparison", "conditions", "corpus", "costs", "curves", "data_use",
        "deepspeed_options", "differences", "doubts", "family_file", "freezing", "gates", "growth.counts",
        "growth.depth", "growth.exact", "growth.explain", "growth.maps", "growth.operator", "growth.refusal",
        "growth.request", "growth.trained", "growth.units", "growth.width", "hf_config", "hf_family", "holder", "hooks",
        "initial", "interpolation", "ledger", "listener", "mailbox", "manifest_check", "memory", "objectives", "page",
        "panels", "plan", "plan_json", "planned", "promises", "prune", "ramps", "rates", "record", "report",
        "report_tables", "resolve", "resolve_shape", "retention", "savings", "schedule", "section", "seeds", "sources",
        "space", "sweep_file", "sweep_layout", "sweep_page", "sweep_panels", "sweep_report", "text_files",
        "token_index", "tokenizer_folder", "trained_on", "tree", "trial_queue", "trials", "triggers", "tuning",
        "values", "variants", "versions", "wandb_rows", "yamlfile",
        "stored_files",
        "files", "hf_folder", "hub", "rope", "tensorfile",
        "cadence", "pace", "starters",
    },
    2: {
        "data", "encoding", "energy", "figures", "growth.apply", "growth.certificate", "growth.learned", "growth.mask",
        "growth.twins", "hardware", "hf_tokenizer", "metrics", "model", "objective", "repeats", "sweep_figures",
        "hf_layers", "token_files",
    },
    3: {
        "surroundings",
        "certify", "checkpoint", "downstream", "evaluations", "export", "grow", "housekeeping", "huggingface",
        "integrity", "lease", "local_files", "machine_check", "naming", "processes", "sealed_json", "storage", "store",
        "tracking", "train_notes", "zero",
    },
    4: {
        "cluster_check", "crew", "engine", "fit", "fitting", "guardian", "handover", "joined_cluster", "launch",
        "lifeline", "optimizer", "own_cluster",
        "probe", "room", "same_code", "saving", "stage_runner", "train_loop", "watch", "worker",
    },
    5: {
        "columns", "display", "driver", "earlier", "importance", "narrator", "next_steps", "outcomes", "runlog",
        "search", "searchers", "status", "status_view", "sweep_result", "sweep_tables", "tables", "terminal",
        "trial_reports", "trial_run", "turns",
        "sweep_display", "sweep_standing", "sweep_status", "sweep_status_view",
    },
    6: {
        "cli", "doctor_command", "evaluate_command", "init_command", "options", "output", "report_command",
        "status_commands", "store_commands", "sweep_commands",
    },
}  # fmt: skip

# What a floor may import from outside, besides what the floors below it may.
PACKAGES: dict[int, set[str]] = {
    0: set(),
    1: {"huggingface_hub", "jinja2", "markupsafe", "packaging", "pydantic", "typing_extensions", "yaml"},
    2: {"matplotlib", "numpy", "pynvml", "tokenizers", "torch", "transformers", "xxhash"},
    3: {"deepspeed", "psutil", "pyarrow", "safetensors", "wandb", "xxhash"},
    4: {"ray"},
    5: {"optuna", "rich"},
    6: {"click"},
}

# Modules that are poorer than their floor.
POORER: dict[str, set[str]] = {
    "yamlfile": {"yaml"},
    "corpus": set(),
    "text_files": set(),
    "tokenizer_folder": set(),
    "rates": set(),
    "growth.counts": set(),
    "growth.depth": set(),
    "growth.operator": set(),
    "growth.maps": set(),
    "growth.width": set(),
    "growth.units": {"numpy"},  # maps as long as an axis, which numbers are looked up in
    "interpolation": set(),
    "savings": set(),
    "seeds": set(),
    "costs": set(),
    "comparison": set(),
    "differences": set(),
    "doubts": set(),
    "report": set(),
    "report_tables": set(),
    "ledger": set(),
    "tuning": set(),
    "curves": set(),
    "chart": set(),
    "panels": set(),
    "trial_queue": set(),
    "page": {"jinja2", "markupsafe", "yaml"},
    "figures": {"matplotlib", "numpy"},  # a report is drawn without torch
    "sweep_figures": {"matplotlib"},
}

FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
# numpy is not among them: it takes a tenth of a second, and axis maps are made of it.
HEAVY = ("torch", "ray", "deepspeed", "wandb", "transformers", "matplotlib", "pyarrow")


def module_name(path: Path) -> str:
    """'growth.operator'; '' is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", FILES, ids=[name or "raystage" for name in FILES])


def imports_of(module: str) -> list[tuple[str, bool]]:
    """(what is imported, whether inside a function) for each import statement of a module."""
    tree = ast.parse(FILES[module].read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    return [
        (name, node in inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
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


@every_module
def test_every_module_has_a_floor(module: str) -> None:
    assert module in FLOOR_OF, f"raystage/{module.replace('.', '/')}.py has no floor: add it to FLOORS in this test"
    assert sum(module in modules for modules in FLOORS.values()) == 1


@every_module
def test_imports_go_down_or_stay_on_the_floor(module: str) -> None:
    up = {other for other in own_imports(module) if FLOOR_OF.get(other, 99) > FLOOR_OF.get(module, -1)}
    assert not up, f"{module} (floor {FLOOR_OF.get(module)}) imports from above: {sorted(up)}"


def test_imports_have_no_cycles() -> None:
    order = list(graphlib.TopologicalSorter({module: own_imports(module) for module in FILES}).static_order())
    assert set(FILES) <= set(order)


@every_module
def test_imports_stand_at_the_top(module: str) -> None:
    """The command line may import inside a function: `raystage --help` should not wait for torch."""
    late = {name for name, inside in imports_of(module) if inside}
    assert FLOOR_OF.get(module) == 6 or not late, f"{module} imports inside a function: {sorted(late)}"


@every_module
def test_a_floor_imports_only_what_it_may(module: str) -> None:
    floor = FLOOR_OF.get(module, -1)
    allowed = POORER.get(module, set().union(*(PACKAGES[below] for below in range(floor + 1))))
    beyond = packages_of(module) - allowed
    assert not beyond, f"{module} (floor {floor}) imports {sorted(beyond)}; it may import {sorted(allowed)}"


def test_floors_0_and_1_import_nothing_heavy() -> None:
    """In a process of their own, since this one has imported what other tests need."""
    light = [f"raystage.{module}".rstrip(".") for module in FILES if FLOOR_OF.get(module, 99) <= 1]
    script = f"import sys, {', '.join(light)}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_plan_imports_what_it_needs() -> None:
    """numpy takes as long as half of a plan, and only the axis maps of a growth are made of it."""
    script = (
        "import sys; from click.testing import CliRunner; from raystage.cli import main\n"
        "done = CliRunner().invoke(main, ['plan', 'jobs/schedules/quickstart.yaml'])\n"
        "assert not done.exit_code, done.output\n"
        f"print(*(name for name in {(*HEAVY, 'numpy', 'huggingface_hub')} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []
