"""Maintenance of a store: list what is in it, verify it, and remove what nothing needs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raystage.errors import CheckpointError, DamagedFile, InputError, RaystageError
from raystage.files.file_facts import remembered
from raystage.files.filesystem import StoredFile
from raystage.files.sealed_json import LARGEST_BYTES
from raystage.results.record import StageRecord
from raystage.storage import checkpoint
from raystage.storage.integrity import Damage, examine
from raystage.storage.naming import stage_key
from raystage.storage.prune import Listing, Removal, StoredCheckpoint, StoredRun, StoredStage
from raystage.storage.store import CHECKPOINTS, RECORD, RUNS, STAGES, TRUNKS, Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE

# The files that name the stages of a run: its plan with its state, and its report.
_RUN_FILES = (RUN_FILE, REPORT_FILE)
_STAGE_KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Verified:
    """A checkpoint of which every byte was read."""

    key: str
    name: str | None
    checkpoint: str
    bytes: int
    damages: tuple[Damage, ...]


def survey(store: Store, may_remember: bool = False) -> Listing:
    """All stages and runs. Damaged ones are listed with what is wrong with them.

    may_remember: whether a record that is as it was, by its size and time, need not be read again on this machine.
    """
    by_stage: dict[str, list[StoredFile]] = {}
    for file in (store.folder / STAGES).files():
        key, slash, path = file.path.partition("/")
        if slash:  # a file beside the folders of stages was not written by raystage
            by_stage.setdefault(key, []).append(StoredFile(path, file.bytes, file.changed_at))
    return Listing(
        stages=tuple(_remembered(store, by_stage) if may_remember else _afresh(store, by_stage)),
        runs=tuple(_run(store, name) for name in store.run_names()),
    )


def _afresh(store: Store, by_stage: Mapping[str, list[StoredFile]]) -> Iterator[StoredStage]:
    return (_stage(store, key, files) for key, files in sorted(by_stage.items()))


def _remembered(store: Store, by_stage: Mapping[str, list[StoredFile]]) -> Iterator[StoredStage]:
    """The same, with what this machine keeps of records. Those that cannot be read are read again each time."""
    records = {key: file for key, files in sorted(by_stage.items()) for file in files if file.path == RECORD}
    stamps = {key: _stamp(file) for key, file in records.items()}
    known = dict(remembered(("records", store.folder.uri), stamps, lambda key: _read(store, key), lambda _: False))
    for key, files in sorted(by_stage.items()):
        facts = known.get(key, {})
        yield _stored(key, files, facts) if facts is not None else _stage(store, key, files)


def _stamp(file: StoredFile) -> tuple[int, ...]:
    changed_ns = int(file.changed_at * 1e9)
    return changed_ns, changed_ns, file.bytes


def _read(store: Store, key: str) -> dict[str, Any] | None:
    """The facts of a record; None where it cannot be read."""
    try:
        return _facts(store.record(key))
    except RaystageError:
        return None


def checked(store: Store, listing: Listing) -> Listing:
    """The same with what is wrong with the checkpoints that records name, by their manifests and the sizes of their
    shards."""
    stages = (replace(stage, lost=_loss(store, stage)) if stage.finished else stage for stage in listing.stages)
    return replace(listing, stages=tuple(stages))


def links(store: Store) -> list[str]:
    """The symbolic links within the store's own structure; the folder of the store may be one."""
    runs = store.folder / RUNS
    own = [runs / name for name in runs.names()]
    places = [runs, *own, *(one / file for one in own for file in _RUN_FILES)]
    found = [link for place in places if (link := place.first_link(store.folder))]
    return sorted({*found, *(store.folder / STAGES).links(), *(store.folder / TRUNKS).links()})


def finished_among(store: Store, keys: Collection[str]) -> set[str]:
    """Those of the stages that are finished in the store. Only stages that were ever begun are looked up."""
    return {key for key in set(store.stage_keys()).intersection(keys) if store.readable_record(key) is not None}


def chosen(store: Store, listing: Listing, beginnings: Sequence[str]) -> tuple[StoredStage, ...]:
    """The stages whose keys begin like this, or that have these names (mine/full); all where nothing is given.

    Raises InputError where there is none.
    """
    beginnings = [stage_key(store, one, "KEY") or one for one in beginnings]
    for beginning in beginnings:
        if not any(stage.key.startswith(beginning) for stage in listing.stages):
            raise InputError(f"no stage key begins with {beginning!r}; expected one that `store list` shows", key="KEY")
    return tuple(stage for stage in listing.stages if not beginnings or stage.key.startswith(tuple(beginnings)))


def verify(store: Store, stages: Iterable[StoredStage]) -> Iterator[Verified]:
    """Read and verify every checkpoint of the stages that has a manifest or that a record names, one by one."""
    for stage in stages:
        if stage.problem:
            yield Verified(stage.key, stage.name, "", 0, (Damage(RECORD, stage.problem),))
        whole = [one.name for one in stage.checkpoints if one.whole]
        for name in sorted({*whole, *stage.needed}):
            found = examine(store.stage_folder(stage.key) / CHECKPOINTS / name)
            yield Verified(stage.key, stage.name, name, found.bytes_read, found.damages)


def remove(store: Store, listing: Listing, removals: Iterable[Removal]) -> Iterator[Removal]:
    """Carry out what was decided on `listing`, one by one; yields what was removed.

    Each stage is checked once more before: one that has changed since, because a run continues with it, stays. Wherever
    this is interrupted, no record names a checkpoint that is gone.
    """
    stages, removed = {stage.key: stage for stage in listing.stages}, set()
    for removal in removals:
        if removal.key not in removed and not _is_unchanged(store, stages[removal.key], listing):
            continue
        removed.add(removal.key)
        folder = store.stage_folder(removal.key)
        if removal.checkpoint is not None:
            store.drop(folder / CHECKPOINTS / removal.checkpoint)
        else:
            folder.delete_file(RECORD)
            for name in (folder / CHECKPOINTS).folder_names():
                store.drop(folder / CHECKPOINTS / name)
            folder.delete()
        yield removal


def _is_unchanged(store: Store, stage: StoredStage, listing: Listing) -> bool:
    """Whether a stage is as it was listed, and no run has begun to refer to it."""
    if store.stage_folder(stage.key).first_link(store.folder):
        return False
    files = store.stage_folder(stage.key).files()
    if not files or replace(_stage(store, stage.key, files), lost=stage.lost) != stage:
        return False
    known = {run.name: run for run in listing.runs}
    return all(
        known.get(name) == found or stage.key not in found.stage_keys
        for name in store.run_names()
        if (found := _run(store, name))
    )


def _loss(store: Store, stage: StoredStage) -> str | None:
    for name in stage.needed:
        folder = store.stage_folder(stage.key) / CHECKPOINTS / name
        try:
            checkpoint.Checkpoint(folder).close()
        except (CheckpointError, OSError) as error:
            return f"{error}; the record of the stage names it"
        except RaystageError as error:
            return str(error)
    return None


def _stage(store: Store, key: str, files: Sequence[StoredFile]) -> StoredStage:
    try:
        return _stored(key, files, _facts(store.record(key)))
    except RaystageError as error:
        return _stored(key, files, {"problem": str(error)})


def _stored(key: str, files: Sequence[StoredFile], facts: Mapping[str, Any]) -> StoredStage:
    """facts: of `_facts`, as they are or as they were written as JSON."""
    size, changed_at = sum(file.bytes for file in files), max(file.changed_at for file in files)
    needed = tuple(facts.get("needed", ()))
    return StoredStage(key, tuple(_checkpoints(files)), size, changed_at, **{**facts, "needed": needed})


def _facts(record: StageRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    return {
        "finished": True,
        "parent_key": record.parent_key,
        "needed": tuple(place.rsplit("/", 1)[-1] for place in record.needed_checkpoints),
        "name": record.name,
        "duration": record.duration,
        "unit": record.unit,
        "eval_loss": record.eval_loss,
    }


def _checkpoints(files: Iterable[StoredFile]) -> Iterator[StoredCheckpoint]:
    found: dict[str, list[StoredFile]] = {}
    for file in files:
        if file.path.startswith(f"{CHECKPOINTS}/") and file.path.count("/") > 1:
            found.setdefault(file.path.split("/")[1], []).append(file)
    for name, own in sorted(found.items()):
        whole = any(file.path == f"{CHECKPOINTS}/{name}/{checkpoint.MANIFEST}" for file in own)
        yield StoredCheckpoint(name, sum(file.bytes for file in own), whole)


def _run(store: Store, name: str) -> StoredRun:
    """A run with everything in its files that looks like a stage's key.

    That is: the stages of its plan and its report, the stage that its schedule starts from, and the stages in reports
    of earlier schedules of its name. A damaged file is searched too, since it may have named more.
    """
    keys: set[str] = set()
    state = problem = None
    for place in (name, *store.earlier_runs(name)):
        for file in _RUN_FILES:
            try:
                content = store.read_run(place, file)
                if content is not None:
                    keys.update(_STAGE_KEY.findall(json.dumps(content)))
                    state = state or (content.get("state") if place == name else None)
            except DamagedFile as error:
                problem = problem or str(error)
                with contextlib.suppress(ValueError):  # a file that is too large to read is damaged, and known to be
                    text = store.run_folder(place).read(file, LARGEST_BYTES).decode(errors="replace")
                    keys.update(_STAGE_KEY.findall(text))
            except RaystageError as error:
                problem = problem or str(error)
    return StoredRun(name, "damaged" if problem else state, frozenset(keys), problem)
