"""Keeps the run that had a name before another schedule took the name, in `runs/<name>/earlier/<number>/`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from raystage.errors import InputError, RaystageError
from raystage.runs.status import process_of, read_status, silence
from raystage.storage.store import EARLIER, Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE, STATUS_FILE, SWEEP_FILE, TRIAL_FILE

# These stay where they are.
_LEFT = (EARLIER, "wandb")


def make_way(store: Store, name: str, keys: Sequence[str]) -> str | None:
    """Move aside what a run of another schedule has left under `name`. Returns what was done, in words; None if there
    was nothing to do.

    keys: of all stages of the schedule as it is written. If they are those of the run, it is continued.
    Raises InputError if the name is that of a sweep or a trial, or if another driver runs under it.
    """
    _refuse_sweeps(store, name)
    try:
        before = store.read_run(name, RUN_FILE)
        if before is None and store.run_folder(name).size_of(REPORT_FILE) is None:
            return None
        if before is not None and stage_keys(before) == list(keys):
            return None
        was = f"another schedule ({before['state']})" if before else "a run of which there is no run.json"
    except RaystageError as error:
        was = f"a run that cannot be read ({error})"
    _refuse_running(store, name)
    number = _next_number(store.earlier_runs(name))
    _set_aside(store, name, f"{name}/{EARLIER}/{number}")
    return (
        f"the name {name!r} belonged to {was}; its report is kept: raystage report {name}/{EARLIER}/{number} "
        f"(--name gives this run a name of its own)"
    )


def _next_number(places: Sequence[str]) -> int:
    """One more than the highest: some of those before may have been removed."""
    names = (place.rpartition("/")[2] for place in places)
    return 1 + max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)


def stage_keys(run: Mapping[str, Any]) -> list[str]:
    """The keys of all stages of the schedule as it was written. run: of run.json; older versions noted only the stages
    that ran."""
    return run.get("written_keys") or [stage["key"] for stage in run.get("stages", ())]


def _refuse_sweeps(store: Store, name: str) -> None:
    for file, what in ((SWEEP_FILE, "a sweep"), (TRIAL_FILE, "a trial of a sweep")):
        if store.run_folder(name).size_of(file) is not None:
            problem = f"found {name!r}, which is {what} in {store.folder.uri}; expected a name of its own (--name)"
            raise InputError(problem, key="name")


def _refuse_running(store: Store, name: str) -> None:
    status = read_status(store.run_folder(name))
    process = process_of(status)
    if status.get("state") != "RUNNING" or process is None:
        return
    if silence(process, status["updated_at"], time.time()) is None:
        problem = f"found {name!r}, under which {process} trains another schedule; expected another name (--name)"
        raise InputError(problem, key="name")


def _set_aside(store: Store, name: str, place: str) -> None:
    """Copy all files before the first one is deleted. What is behind a symbolic link does not belong to the run."""
    folder, target = store.run_folder(name), store.run_folder(place)
    if link := target.first_link(store.folder):
        problem = f"found {link}, a symbolic link, behind which raystage moves nothing; expected another name (--name)"
        raise InputError(problem, key="name")
    files = [file.path for file in folder.files(follow_links=False) if file.path.split("/")[0] not in _LEFT]
    for path in files:
        parent, _, file = f"/{path}".rpartition("/")
        (target / parent.lstrip("/") if parent else target).write_whole(file, folder.read(path))
    for path in sorted(files, key=lambda path: path != STATUS_FILE):
        folder.delete_file(path)
