"""Maintenance of a store: verify what is in it, and remove what nothing needs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from raystage.errors import CheckpointError, InputError, RaystageError
from raystage.files.filesystem import StoredFile
from raystage.storage import checkpoint
from raystage.storage.integrity import Damage, examine
from raystage.storage.naming import stage_key
from raystage.storage.prune import Listing, Removal, StoredRun, StoredStage
from raystage.storage.store import CHECKPOINTS, RECORD, RUNS, STAGES, TRUNKS, Store
from raystage.storage.survey import RUN_FILES, is_finished, of_each, run_of, stage_of

# How often all runs are looked through while stages are removed: one may begin to refer to a stage.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Verified:
    """A checkpoint of which every byte was read."""

    key: str
    name: str | None
    checkpoint: str
    bytes: int
    damages: tuple[Damage, ...]


def checked(store: Store, listing: Listing) -> Listing:
    """The same with what is wrong with the checkpoints that records name, by their manifests and the sizes of their
    shards."""
    losses = of_each(store, lambda stage: _loss(store, stage) if stage.finished else None, listing.stages)
    pairs = zip(listing.stages, losses, strict=True)
    return replace(listing, stages=tuple(replace(stage, lost=loss) if loss else stage for stage, loss in pairs))


def links(store: Store) -> list[str]:
    """The symbolic links within the store's own structure; the folder of the store may be one."""
    runs = store.folder / RUNS
    own = [runs / name for name in runs.names()]
    places = [runs, *own, *(one / file for one in own for file in RUN_FILES)]
    found = [link for place in places if (link := place.first_link(store.folder))]
    return sorted({*found, *(store.folder / STAGES).links(), *(store.folder / TRUNKS).links()})


def finished_among(store: Store, keys: Collection[str]) -> set[str]:
    """Those of the stages that are finished in the store. Only stages that were ever begun are looked up."""
    begun = sorted(set(store.stage_keys()).intersection(keys))
    found = of_each(store, lambda key: is_finished(store, key), begun)
    return {key for key, finished in zip(begun, found, strict=True) if finished}


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
    stages, removed, runs = {stage.key: stage for stage in listing.stages}, set(), _RunWatch(store, listing)
    for removal in removals:
        is_known = removal.key in removed
        if not is_known and (runs.has_new(removal.key) or not _is_unchanged(store, stages[removal.key])):
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


class _RunWatch:
    """Which runs have begun to refer to stages since they were listed. All are looked through once in LOOK_SECONDS;
    those whose files have changed are read again."""

    def __init__(self, store: Store, listing: Listing) -> None:
        self._store, self._listed = store, {run.name: run for run in listing.runs}
        self._files: dict[str, list[StoredFile]] = {}
        self._keys: dict[str, frozenset[str]] = {}  # of the runs that are new or other than listed
        self._looked_at = -LOOK_SECONDS

    def has_new(self, key: str) -> bool:
        """Whether a run refers to a stage that is not as it was listed."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
        return any(key in keys for keys in self._keys.values())

    def _look(self) -> None:
        found: dict[str, list[StoredFile]] = {name: [] for name in self._store.run_names()}
        for file in (self._store.folder / RUNS).files():
            name, _, path = file.path.partition("/")
            if name in found and path.rsplit("/", 1)[-1] in RUN_FILES:
                found[name].append(file)
        changed = [name for name, files in found.items() if self._files.get(name) != files]
        for run in of_each(self._store, lambda name: run_of(self._store, name), changed):
            self._note(run)
        self._files, self._looked_at = found, time.monotonic()

    def _note(self, run: StoredRun) -> None:
        if self._listed.get(run.name) == run:
            self._keys.pop(run.name, None)
        else:
            self._keys[run.name] = run.stage_keys


def _is_unchanged(store: Store, stage: StoredStage) -> bool:
    """Whether a stage is as it was listed."""
    if store.stage_folder(stage.key).first_link(store.folder):
        return False
    files = store.stage_folder(stage.key).files()
    return bool(files) and replace(stage_of(store, stage.key, files), lost=stage.lost) == stage


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
