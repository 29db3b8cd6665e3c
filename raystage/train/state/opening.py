"""Opens checkpoints on all workers: the first one looks them up and reads the manifest, the others get it from there.

With a thousand workers a store would otherwise have a thousand requests for each question.
"""

from __future__ import annotations

from raystage.files.filesystem import Folder
from raystage.storage.checkpoint import Checkpoint, manifest_bytes, manifest_from
from raystage.storage.store import Store
from raystage.train.collectives import from_first


def finished_checkpoint(store: Store, key: str) -> Folder:
    """The final checkpoint of a finished stage. Collective. Raises CheckpointError on all workers."""
    return from_first(lambda: store.finished_checkpoint(key))


def opened_by_all(folder: Folder) -> Checkpoint:
    """The checkpoint in `folder`, open for reading. Collective. Raises CheckpointError on all workers."""

    def look() -> bytes:
        file = manifest_bytes(folder)
        Checkpoint(folder).close()  # are all shards there?
        return file

    return Checkpoint(folder.unmapped, manifest_from(from_first(look), folder))
