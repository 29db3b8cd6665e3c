"""Results of downstream tasks on a run's stages: `runs/<name>/evaluations/<stage>.json`, beside the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from raystage.errors import InputError, RaystageError
from raystage.files.filesystem import Folder
from raystage.files.sealed_json import written
from raystage.storage.naming import known_run, stage_key
from raystage.storage.store import Store, read_file
from raystage.storage.stored_files import REPORT_FILE

EVALUATIONS = "evaluations"

_logger = logging.getLogger(__name__)


def kept(store: Store, run: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of a run's stages and baselines, by name; not of stages that the run no longer has. What cannot
    be read is said and left out."""
    found: dict[str, Any] = {}
    for row in _rows(report):
        try:
            its = _read(store, run, row)
        except RaystageError as error:
            _logger.warning("left out: %s", error)
            continue
        if its is not None:
            found[row["name"]] = its
    return found


def find_stage(store: Store, run: str, stage: str | None) -> Mapping[str, Any]:
    """The row of a run's report that is meant; run: its name, or with its stage's: mine/full. Raises InputError."""
    if stage is None and "/" in run and stage_key(store, run, "RUN"):
        run, _, stage = run.rpartition("/")
    report = store.read_run(known_run(store, run, "RUN"), REPORT_FILE)
    rows = {row["name"]: row for row in _rows(report or {})}
    if not rows:
        raise InputError(
            f"found {run!r}, a sweep; expected a run of one schedule, such as one of its trials", key="RUN"
        )
    name = report["stages"][-1]["name"] if stage is None else stage
    if name not in rows:
        raise InputError(f"no stage {name!r} in {run!r}; expected one of {', '.join(rows)}", key="--stage")
    if store.record(rows[name]["key"]) is None:
        raise InputError(f"stage {name!r} of {run!r} is not finished; expected one that is", key="--stage")
    return {**rows[name], "run": run}


def _rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Also of a report that is half there."""
    return (
        []
        if report.get("kind") == "sweep"
        else [*report.get("stages", ()), *report.get("baseline", {}).get("runs", ())]
    )


def keep(store: Store, run: str, made: Mapping[str, Any]) -> None:
    """Write down what was found of a stage, in place of what was."""
    _folder(store, run).write_whole(f"{made['stage']}.json", written(dict(made)))


def tasks_before(store: Store, run: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What was found of the same stage before, by task."""
    found = _read(store, run, row)
    return {} if found is None else found["tasks"]


def _read(store: Store, run: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was found of a row's stage; None where that was another stage of its name."""
    found = read_file(_folder(store, run), f"{row['name']}.json", "evaluation")
    return found if found is not None and found["key"] == row["key"] else None


def _folder(store: Store, run: str) -> Folder:
    return store.run_folder(run) / EVALUATIONS
