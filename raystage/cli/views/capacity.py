"""What a running cluster has for the stages of a plan, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from raystage.config.types import Workers
from raystage.reports.columns import WholeTable, name_column, number_column
from raystage.units import format_bytes


def capacity_json(found: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def capacity_table(found: Sequence[Any]) -> RenderableType:
    """A row per stage, and a warning for each that does not fit."""
    has_gpus = any(one.gpus for one in found)
    titles = ["workers", "places", "with\nmemory", "memory\nper worker", *(["idle\nGPUs"] if has_gpus else [])]
    columns = [name_column("stage"), *map(number_column, titles)]
    rows = [
        [
            one.stage,
            str(Workers(one.most_workers, one.least_workers)),
            str(one.places),
            str(one.with_memory),
            f"≥ {format_bytes(one.worker_bytes)}",
            *([f"{one.idle_gpus} of {one.gpus}"] if has_gpus else []),
        ]
        for one in found
    ]
    return Group(WholeTable("on this cluster", columns, rows), *(Text(line, style="yellow") for line in _lacks(found)))


def _lacks(found: Sequence[Any]) -> list[str]:
    return [
        f"Warning: stage {one.stage} does not fit on this cluster as it is now."
        for one in found
        if min(one.places, one.with_memory) < one.least_workers
    ]
