"""Runs and stages by the names that users give them: `mine`, `mine/full`; and stages by the first digits of a key.

A name only serves to find a key; files contain keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystage.errors import InputError
from raystage.safe_text import visible
from raystage.storage.store import Store
from raystage.storage.stored_files import REPORT_FILE

# A stage's key, or the beginning of one.
STAGE_KEY = re.compile(r"[0-9a-f]{8,64}")


def known_run(store: Store, name: str, argument: str) -> str:
    """The name of a run in the store, earlier runs of a name included. Raises InputError, which lists the runs.

    The name is checked against the folders that exist, so no path can lead out of the store.
    """
    names = store.run_names()
    first, *more = name.split("/")
    if first in names and (not more or name in store.earlier_runs(first)):
        return name
    known = ", ".join([*names, *(store.earlier_runs(first) if first in names else ())]) or "none yet"
    raise InputError(visible(f"no run {name!r} in {store.folder.uri}; known runs: {known}"), key=argument)


@dataclass(frozen=True)
class KnownStages:
    """By name the keys of a run's stages; of the last stages of its baselines, by the names of their runs; of the
    stages that end with its delivered models; and of the members of its ensembles."""

    stages: Mapping[str, str]
    baselines: Mapping[str, str]
    delivered: Mapping[str, str]
    members: Mapping[str, str]

    @property
    def all(self) -> Mapping[str, str]:
        beside = {**self.baselines, **self.delivered, **self.members}
        return {**self.stages, **beside, **self.stages}  # stages come first, also where one has another one's name


def known_stages(report: Mapping[str, Any]) -> KnownStages:
    """The stages that report.json names, also where the rest of it is damaged; none for a sweep."""
    stages, baselines = report.get("stages", ()), report.get("baseline", {}).get("runs", ())
    delivered = (report.get("delivered") or {}).get("models", ())
    members = [row for one in report.get("members", ()) for row in one["members"]]
    parts = (stages, baselines, delivered, members)
    return KnownStages(*({row["name"]: row["key"] for row in rows} for rows in parts))


def stage_key(store: Store, name: str, argument: str) -> str | None:
    """The key of `mine/full`, the stage full of run mine. None where the store has no run of that name.

    Raises InputError where the run has no such stage, DamagedFile.
    """
    run, slash, stage = name.rpartition("/")
    if not slash:
        run, stage = name, ""
    first = run.split("/")[0]
    if first not in store.run_names() or (run != first and run not in store.earlier_runs(first)):
        return None
    report = store.read_run(run, REPORT_FILE)
    known = known_stages(report or {}).all
    if stage in known:
        return known[stage]
    found = f"no stage {stage!r} in run {run!r}" if stage else f"found run {run!r}, not one of its stages"
    expected = ", ".join(f"{run}/{one}" for one in known) or "a run that has stages"
    raise InputError(visible(f"{found}; expected one of {expected}"), key=argument)


def key_that_begins(store: Store, beginning: str, argument: str) -> str:
    """The one key of a stage in the store that begins like this. Raises InputError where there is none, or several."""
    keys = [key for key in store.stage_keys() if key.startswith(beginning)]
    if len(keys) == 1:
        return keys[0]
    found = f"{len(keys)} stage keys begin with {beginning!r}" if keys else f"no stage key begins with {beginning!r}"
    raise InputError(f"{found}; expected just one, or a folder", key=argument, file=store.folder.uri)
