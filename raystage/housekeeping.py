"""A store looked through: what lies in it, whether it is whole, and the removal of what nothing needs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raystage import checkpoint
from raystage.errors import InputError, RaystageError
from raystage.integrity import Damage, examine
from raystage.prune import Listing, Removal, StoredCheckpoint, StoredRun, StoredStage
from raystage.record import StageRecord
from raystage.storage import StoredFile
from raystage.store import CHECKPOINTS, RECORD, Store, drop_checkpoint

# What names the stages of a run: its plan and how far it is, and its report.
_RUN_FILES = ("run.json", "report.json")
_STAGE_KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Verified:
    """A checkpoint of which every byte was read."""

    key: str
    name: str | None
    checkpoint: str
    bytes: int
    damages: tuple[Damage, ...]


def survey(store: Store) -> Listing:
    """All stages and runs. Raises RaystageError where a run's file is damaged: what it needs is then not known."""
    by_stage: dict[str, list[StoredFile]] = {}
    for file in (store.folder / "stages").files():
        key, _, path = file.path.partition("/")
        by_stage.setdefault(key, []).append(StoredFile(path, file.bytes, file.changed_at))
    return Listing(
        stages=tuple(_stage(store, key, files) for key, files in sorted(by_stage.items())),
        runs=tuple(_run(store, name) for name in store.run_names()),
    )


def finished_among(store: Store, keys: Collection[str]) -> set[str]:
    """Those of the stages that are finished in the store; only what was ever begun is looked at."""
    return {key for key in set(store.stage_keys()).intersection(keys) if store.record(key) is not None}


def chosen(listing: Listing, beginnings: Sequence[str]) -> tuple[StoredStage, ...]:
    """The stages whose keys begin so; all where nothing is given. Raises InputError where there is none."""
    for beginning in beginnings:
        if not any(stage.key.startswith(beginning) for stage in listing.stages):
            raise InputError(f"no stage key begins with {beginning!r}; expected one that `store list` shows", key="KEY")
    return tuple(stage for stage in listing.stages if not beginnings or stage.key.startswith(tuple(beginnings)))


def verify(store: Store, stages: Iterable[StoredStage]) -> Iterator[Verified]:
    """Every checkpoint of the stages that has a manifest, or that a record names, read and checked, one by one."""
    for stage in stages:
        if stage.problem:
            yield Verified(stage.key, stage.name, "", 0, (Damage(RECORD, stage.problem),))
        whole = [one.name for one in stage.checkpoints if one.whole]
        for name in sorted({*whole, *stage.needed}):
            found = examine(store.stage_folder(stage.key) / CHECKPOINTS / name)
            yield Verified(stage.key, stage.name, name, found.bytes_read, found.damages)


def remove(store: Store, removals: Iterable[Removal]) -> Iterator[Removal]:
    """Carry them out, one by one. Wherever that ends, no record names a checkpoint that is gone."""
    for removal in removals:
        folder = store.stage_folder(removal.key)
        if removal.checkpoint is not None:
            drop_checkpoint(folder / CHECKPOINTS / removal.checkpoint)
        else:
            folder.delete_file(RECORD)
            for name in (folder / CHECKPOINTS).names():
                drop_checkpoint(folder / CHECKPOINTS / name)
            folder.delete()
        yield removal


def _stage(store: Store, key: str, files: Sequence[StoredFile]) -> StoredStage:
    size, changed_at = sum(file.bytes for file in files), max(file.changed_at for file in files)
    checkpoints = tuple(_checkpoints(files))
    try:
        record = store.record(key)
    except RaystageError as error:
        return StoredStage(key, checkpoints, size, changed_at, problem=str(error))
    return StoredStage(key, checkpoints, size, changed_at, **_facts(record))


def _facts(record: StageRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    return {
        "finished": True,
        "parent_key": record.parent_key,
        "needed": tuple(place.rsplit("/", 1)[-1] for place in (record.checkpoint, *record.best_checkpoints)),
        "name": record.name,
        "tokens": record.tokens,
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
    """All that looks like a stage's key counts: its plan's and report's stages, and what its schedule begins from."""
    keys: set[str] = set()
    state = None
    for file in _RUN_FILES:
        try:
            content = store.read_run(name, file)
            if content is not None:
                keys.update(_STAGE_KEY.findall(json.dumps(content)))
                state = state or content["state"]
        except (ValueError, TypeError, KeyError) as error:
            place = f"{store.run_folder(name).uri}/{file}"
            raise RaystageError(f"{place}: damaged ({error}); expected a run's JSON. Remove it, or run again") from None
    return StoredRun(name, state, frozenset(keys))
