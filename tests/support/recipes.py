"""The published recipes that ship, and stand-ins for the tokens that those of public size read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from raystage.units import format_count, format_flops

JOBS = Path(__file__).parents[2] / "jobs"
FOLDER = JOBS / "schedules/recipes"
NAMES = ("smollm3", "olmo3", "llama3", "deepseek_v3", "qwen3")


def stand_ins() -> ModuleType:
    """`jobs/stand_ins.py`, as a module."""
    spec = importlib.util.spec_from_file_location("stand_ins", JOBS / "stand_ins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, plan: object) -> str:
    """The row of a recipe in docs/recipes.md: what its plan says."""
    stages = plan.staged.stages
    contexts = [stage.shape.context_length for stage in stages]
    cells = (
        f"`{name}`",
        ", ".join(stage.name for stage in stages),
        format_count(stages[-1].num_params),
        format_count(sum(stage.duration for stage in stages)),
        f"{min(contexts):,} to {max(contexts):,}",
        format_flops(plan.staged.flops),
    )
    return f"| {' | '.join(cells)} |"
