"""What downstream tasks came to on a run's stages: `runs/<name>/evaluations/<stage>.json`, beside its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raystage.errors import InputError
from raystage.storage import Folder
from raystage.store import Store

EVALUATIONS = "evaluations"


def kept(store: Store, run: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of a run's stages and baselines, by name; not of stages that the run no longer has."""
    read = ((row["name"], _read(store, run, row)) for row in _rows(report))
    return {name: found for name, found in read if found is not None}


def find_stage(store: Store, run: str, stage: str | None) -> Mapping[str, Any]:
    """The row of a run's report that is meant. Raises InputError."""
    report = store.read_run(run, "report.json")
    if report is None:
        known = ", ".join(store.run_names()) or "none yet"
        raise InputError(f"no run {run!r} in {store.folder.uri}; known runs: {known}", key="RUN")
    rows = {row["name"]: row for row in _rows(report)}
    if not rows:
        raise InputError(
            f"found {run!r}, a sweep; expected a run of one schedule, such as one of its trials", key="RUN"
        )
    name = report["stages"][-1]["name"] if stage is None else stage
    if name not in rows:
        raise InputError(f"no stage {name!r} in {run!r}; expected one of {', '.join(rows)}", key="--stage")
    if store.record(rows[name]["key"]) is None:
        raise InputError(f"stage {name!r} of {run!r} is not finished; expected one that is", key="--stage")
    return rows[name]


def _rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [] if report.get("kind") == "sweep" else [*report["stages"], *report["baseline"]["runs"]]


def keep(store: Store, run: str, made: Mapping[str, Any]) -> None:
    """Write down what was found of a stage, in place of what was."""
    _folder(store, run).write_whole(f"{made['stage']}.json", (json.dumps(made, indent=1) + "\n").encode())


def tasks_before(store: Store, run: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of the same stage before, by task."""
    found = _read(store, run, row)
    return {} if found is None else found["tasks"]


def _read(store: Store, run: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was found of a row's stage; None where that was another stage of its name."""
    try:
        found = json.loads(_folder(store, run).read(f"{row['name']}.json"))
    except FileNotFoundError:
        return None
    return found if found["key"] == row["key"] else None


def _folder(store: Store, run: str) -> Folder:
    return store.run_folder(run) / EVALUATIONS
