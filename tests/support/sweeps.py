"""Small sweeps for tests: a schedule of two stages and a file that varies it, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from factories import write_documents
from raystage.config import yaml_file
from raystage.sweeps.config import Sweep, load

SCHEDULE = """
name: tiny
data: {source: text, path: texts, validation_fraction: 0.5}
model: {hidden_size: 8, num_heads: 2, ffn_size: 16, context_length: 10}
training: {global_batch_tokens: 100, lr_schedule: {kind: constant, warmup: 100}}
stages:
  - {name: small, model: {num_layers: 2}, until: {tokens: 800}}
  - {name: middle, model: {num_layers: 4}, until: {tokens: 400}, grow: {operator: stack}}
  - {name: full, model: {num_layers: 8}, until: {tokens: 400}, grow: {operator: stack}}
baseline: {budgets: [1000, 1500, 2000]}
"""

SPACE = """
stages[0].until.tokens: {grid: [400, 800]}
stages[2].grow.operator: {choice: [stack, interleave]}
"""


def base() -> dict[str, Any]:
    return yaml.safe_load(SCHEDULE)


def write_sweep(folder: Path, space: str = SPACE, *changes: str, **sections: Any) -> Path:
    """The file of a sweep in `folder`, beside its schedule; `changes` are overrides of the schedule."""
    (folder / "texts").mkdir(exist_ok=True)
    write_documents(folder / "texts")
    schedule = base()
    for change in changes:
        yaml_file.apply_override(schedule, change)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(schedule, sort_keys=False))
    content = {"name": "search", "schedule": "tiny.yaml", "space": yaml.safe_load(space), **sections}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_sweep(folder: Path, space: str = SPACE, *changes: str, **sections: Any) -> Sweep:
    return load(write_sweep(folder, space, *changes, **sections))
