"""Attempts at one stage that come to its end at the same moment, each a process of its own, for tests."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.synchronize import Barrier

from raystage.files.filesystem import Folder, open_folder
from raystage.results.record import StageRecord
from raystage.storage import checkpoint
from raystage.storage.store import Store
from small_checkpoints import flat_cuts, write

SPAWN = multiprocessing.get_context("spawn")
TOKENS = 400


def finish_together(store: str, records: list[StageRecord], together: Barrier, number: int) -> None:
    """In every round save the last checkpoint, let older ones go and commit the record, all at the same time."""
    opened, attempt = Store(open_folder(store)), f"attempt{number}"
    for record in records:
        folder = opened.checkpoint_folder(record.key, TOKENS, attempt)
        write(opened.checkpoint_folder(record.key, 200, attempt), flat_cuts(1), tokens=200)
        write(folder, flat_cuts(2), tokens=TOKENS)
        together.wait(60)
        opened.drop_older_checkpoints(record.key, 1, last=folder.name)
        together.wait(60)
        opened.commit_record(replace(record, checkpoint=f"checkpoints/{folder.name}", seconds=1.0 + number))
    together.wait(60)


def run_together(store: Store, records: list[StageRecord], parties: int) -> None:
    """Raises AssertionError where one of the processes fails."""
    together = SPAWN.Barrier(parties)
    processes = [
        SPAWN.Process(target=finish_together, args=(store.folder.uri, records, together, number))
        for number in range(parties)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * parties


def whole(folder: Folder) -> bool:
    """Whether a checkpoint opens and every fragment of it matches its checksum."""
    opened = checkpoint.Checkpoint(folder)
    for number in range(len(opened.manifest.shards)):
        for one in opened.fragments(number):
            opened.read(one.parameter, one.state, one.start, one.stop)
    opened.close()
    return True
