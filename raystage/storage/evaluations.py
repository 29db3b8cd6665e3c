"""What was found of a run's stages since it ended, beside its report.

runs/<name>/evaluations/<stage>.json     downstream tasks (`raystage evaluate`)
runs/<name>/ensembles/<name>.json        ensembles (`raystage ensemble`)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from raystage.errors import InputError, RaystageError
from raystage.files.filesystem import Folder
from raystage.files.sealed_json import written
from raystage.files.typed_json import from_json, to_json
from raystage.results.report import Ensemble, RunReport, StageTasks, TaskResult
from raystage.storage.naming import known_run, known_stages, stage_key
from raystage.storage.store import Store, read_as
from raystage.storage.stored_files import REPORT_FILE

EVALUATIONS, ENSEMBLES = "evaluations", "ensembles"

Found = TypeVar("Found")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundStage:
    """A stage of a run, or a budget of its baseline by the name of its run."""

    run: str
    name: str
    key: str


def kept(store: Store, run: str, report: RunReport) -> dict[str, StageTasks]:
    """What was found of a run's stages and baselines, by name; not of stages that the run no longer has. What cannot
    be read is said and left out."""
    found: dict[str, StageTasks] = {}
    for row in (*report.stages, *report.baseline.runs):
        its = _readable(partial(_read, store, FoundStage(run, row.name, row.key)))
        if its is not None:
            found[row.name] = its
    return found


def find_stage(store: Store, run: str, stage: str | None) -> FoundStage:
    """The stage that is meant. run: its name, or with its stage's: mine/full. Raises InputError."""
    if stage is None and "/" in run and stage_key(store, run, "RUN"):
        run, _, stage = run.rpartition("/")
    known = known_stages(store.read_run(known_run(store, run, "RUN"), REPORT_FILE) or {})
    keys = known.all
    if not keys:
        raise InputError(
            f"found {run!r}, a sweep; expected a run of one schedule, such as one of its trials", key="RUN"
        )
    name = stage or list(known.stages or keys)[-1]
    if name not in keys:
        raise InputError(f"no stage {name!r} in {run!r}; expected one of {', '.join(keys)}", key="--stage")
    if store.record(keys[name]) is None:
        raise InputError(f"stage {name!r} of {run!r} is not finished; expected one that is", key="--stage")
    return FoundStage(run, name, keys[name])


def keep(store: Store, run: str, made: StageTasks) -> None:
    """Write down what was found of a stage, in place of what was."""
    _folder(store, run).write_whole(f"{made.stage}.json", written(to_json(made)))


def tasks_before(store: Store, stage: FoundStage) -> Mapping[str, TaskResult]:
    """What was found of the same stage before, by task."""
    found = _read(store, stage)
    return {} if found is None else found.tasks


def _read(store: Store, stage: FoundStage) -> StageTasks | None:
    """What was found of a stage; None where that was another stage of its name."""
    read = partial(from_json, StageTasks)
    found = read_as(_folder(store, stage.run), f"{stage.name}.json", read)
    return found if found is not None and found.key == stage.key else None


def _readable(read: Callable[[], Found | None]) -> Found | None:
    """What is read; None, after a warning, where that is damaged or cannot be reached."""
    try:
        return read()
    except RaystageError as error:
        _logger.warning("left out: %s", error)
        return None


def _folder(store: Store, run: str) -> Folder:
    return store.run_folder(run) / EVALUATIONS


# --- ensembles --------------------------------------------------------------------------------


def keep_ensemble(store: Store, run: str, made: Ensemble) -> None:
    """Write down what was found of an ensemble, in place of what was under its name."""
    (store.run_folder(run) / ENSEMBLES).write_whole(f"{made.name}.json", written(to_json(made)))


def ensembles(store: Store, run: str) -> dict[str, Ensemble]:
    """By name what was found for a run. What cannot be read is said and left out."""
    folder, found = store.run_folder(run) / ENSEMBLES, {}
    for file in sorted(folder.file_names()):
        made = _readable(partial(read_as, folder, file, partial(from_json, Ensemble)))
        if made is not None:
            found[made.name] = made
    return found
