"""Schedules whose stages read different texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factories import make_schedule, write_documents
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan


def write_named_texts(folder: Path) -> dict[str, dict[str, Any]]:
    """Three texts of their own, as `data` sections of stages."""
    found = {}
    for number, name in enumerate("abc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place in range(12):
            (folder / name / f"{place}.txt").write_text(f"{name} {place} {number * 1000 + place}\n" * 10)
        found[name] = {"path": str(folder / name)}
    return found


def changing_plan(folder: Path, data: str | None, reads: str = "ab", **changes: Any) -> Plan:
    """A stage for each letter of `reads`, 1,000 tokens in all; the model grows once, at the second.

    data: what the baselines read.
    """
    known, own = write_named_texts(folder), 1000 // len(reads)
    stages = [
        {
            "name": f"{name}{index}", "data": known[name], "model": {"num_layers": 4 if index else 2},
            "until": {"tokens": own}, **({"grow": {"operator": "stack"}} if index == 1 else {}),
        }
        for index, name in enumerate(reads)
    ]  # fmt: skip
    baseline = {"budgets": [1000, 1500, 2000], **({"data": data} if data else {}), **changes.pop("baseline", {})}
    write_documents(folder)
    return make_plan(make_schedule(folder, stages=stages, baseline=baseline, **changes))
