"""Where finished stages live under their keys, and what each run left for its reports.

stages/<key>/record.json              written last: the stage is finished
stages/<key>/certificate.json         what the growth it began with did, for people
stages/<key>/checkpoints/<tokens>-<attempt>/
trunks/<trunk key>/<steps>-<key>      stages that differ in nothing but where they end, a note for each
runs/<name>/                          plan, report, figures of a run
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raystage import checkpoint
from raystage.errors import CheckpointError, RaystageError
from raystage.record import Evaluation, StageRecord
from raystage.retention import best, retained
from raystage.storage import Folder

RECORD = "record.json"
CHECKPOINTS = "checkpoints"
CERTIFICATE = "certificate.json"


class Store:
    """Stages and runs in a folder on any file system."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    # --- stages -------------------------------------------------------------------------------

    def stage_folder(self, key: str) -> Folder:
        return self.folder / "stages" / key

    def stage_keys(self) -> list[str]:
        """The keys of all stages that were begun, finished or not."""
        return (self.folder / "stages").names()

    def record(self, key: str) -> StageRecord | None:
        """The record of a finished stage, or None. Raises RaystageError where it is damaged."""
        folder = self.stage_folder(key)
        try:
            content = folder.read(RECORD)
        except FileNotFoundError:
            return None
        try:
            return StageRecord.from_json(json.loads(content))
        except (ValueError, TypeError, KeyError) as error:
            raise RaystageError(
                f"{folder.uri}/{RECORD}: damaged ({error}); remove it to train the stage again"
            ) from None

    def commit_record(self, record: StageRecord, trunk: str | None = None) -> None:
        """From here on the stage is finished; checkpoints that it does not name, whole or half written, go.

        trunk: its trunk key, under which longer stages look for it.
        """
        folder = self.stage_folder(record.key)
        if record.growth:
            folder.write_whole(CERTIFICATE, _json({"stage": record.name, "key": record.key, **asdict(record.growth)}))
        folder.write_whole(RECORD, _json(record.to_json()))
        kept = {place.rsplit("/", 1)[-1] for place in (record.checkpoint, *record.best_checkpoints)}
        for name in (folder / "checkpoints").names():
            if name not in kept:
                drop_checkpoint(folder / "checkpoints" / name)
        if trunk is not None:
            self.note_trunk(trunk, record.steps, record.key)

    def note_trunk(self, trunk: str, steps: int, key: str) -> None:
        """Let longer versions of a stage find it: once it is finished, and while it is trained."""
        (self.folder / "trunks" / trunk).write_whole(f"{steps:012}-{key}", b"")

    def trunk(self, trunk: str) -> list[tuple[int, str]]:
        """Steps and key of the stages under a trunk key, the longest first. Some are trained now, some may be gone."""
        # A file that begins with a dot is on its way to its place.
        names = [name for name in (self.folder / "trunks" / trunk).names() if name[0] != "."]
        return [(int(steps), key) for steps, _, key in (name.partition("-") for name in reversed(names))]

    def checkpoint_folder(self, key: str, tokens: int, attempt: str) -> Folder:
        return self.stage_folder(key) / "checkpoints" / f"{tokens:015}-{attempt}"

    def finished_checkpoint(self, key: str) -> Folder:
        """The checkpoint that a finished stage ended with. Raises CheckpointError where there is none."""
        record = self.record(key)
        if record is None:
            raise CheckpointError(f"{self.stage_folder(key).uri}: no {RECORD}; the stage is not finished")
        return self.stage_folder(key) / record.checkpoint

    def latest_checkpoint(self, key: str) -> Folder | None:
        """The furthest whole checkpoint within an unfinished stage."""
        for folder in self._whole_checkpoints(key):
            try:
                checkpoint.Checkpoint(folder).close()
            except CheckpointError:
                continue
            return folder
        return None

    def drop_older_checkpoints(
        self, key: str, keep: int, keep_best: int = 0, evaluations: Sequence[Evaluation] = ()
    ) -> None:
        """Remove all but the `keep` furthest and the `keep_best` best whole checkpoints of an unfinished stage."""
        whole = self._whole_checkpoints(key)
        kept = retained([folder.name for folder in whole], keep, keep_best, evaluations)
        for folder in whole:
            if folder.name not in kept:
                drop_checkpoint(folder)

    def best_checkpoints(self, key: str, count: int, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
        """The whole checkpoints of lowest loss, the best first, as a record names them."""
        names = [folder.name for folder in self._whole_checkpoints(key)] if count else []
        return tuple(f"checkpoints/{name}" for name in best(names, count, evaluations))

    def _whole_checkpoints(self, key: str) -> list[Folder]:
        folders = self.stage_folder(key) / "checkpoints"
        found = [folders / name for name in reversed(folders.names())]
        return [folder for folder in found if checkpoint.exists(folder)]

    # --- runs ---------------------------------------------------------------------------------

    def run_folder(self, name: str) -> Folder:
        return self.folder / "runs" / name

    def run_names(self) -> list[str]:
        return (self.folder / "runs").names()

    def write_run(self, name: str, file: str, content: dict[str, Any]) -> None:
        self.run_folder(name).write_whole(file, _json(content))

    def read_run(self, name: str, file: str) -> dict[str, Any] | None:
        """A JSON file of a run, or None where there is none."""
        try:
            return json.loads(self.run_folder(name).read(file))
        except FileNotFoundError:
            return None


def drop_checkpoint(folder: Folder) -> None:
    """Remove a checkpoint, its manifest first: what an interrupted removal leaves behind is none."""
    folder.delete_file(checkpoint.MANIFEST)
    folder.delete()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
