"""The store: finished stages under their keys, and the files of each run.

    stages/<key>/record.json              written last: the stage is finished
    stages/<key>/certificate.json         what its growth did, for people
    stages/<key>/checkpoints/<position>-<attempt>/
    stages/<key>/scores/<text>/           the losses of documents that a later stage sorts by its model
    trunks/<trunk key>/<steps>-<key>      stages that differ only in their length and rate, a note for each
    runs/<name>/                          plan, report, figures of a run
    runs/<name>/earlier/<number>/         the same of another schedule that had the name before

Leases keep two attempts from training one stage. Where leases fail, the record in place still names a complete
checkpoint. An attempt removes its own checkpoints only after it has read the record of another attempt and seen that
its checkpoint is complete. It removes checkpoints of others only where they lie before its own end. So nothing is lost
where a stage ends at a count. A stage that ends by the clock may end at two places: there the attempt that is further
may remove what the other one is about to name, and the stage is trained again from what is left. On local files a hard
link lets only one attempt write the record. pyarrow has no such operation for object stores: there the last record
stays.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from raystage.errors import CheckpointError, DamagedFile, RaystageError, StorageError
from raystage.files.filesystem import Folder
from raystage.files.sealed_json import LARGEST_BYTES, unsealed, written
from raystage.results.record import Evaluation, StageRecord
from raystage.results.report import RunReport
from raystage.storage import checkpoint
from raystage.storage.stored_files import REPORT_FILE, check_file, record_from, report_from

Content = TypeVar("Content")

STAGES, RUNS, TRUNKS = "stages", "runs", "trunks"
EARLIER = "earlier"
RECORD = "record.json"
CHECKPOINTS = "checkpoints"
CERTIFICATE = "certificate.json"

_CHECKPOINT_NAME = re.compile(r"\d{1,40}-.+")
_TRUNK_NOTE = re.compile(r"(\d{1,40})-(.+)")

_logger = logging.getLogger(__name__)


class Store:
    """Stages and runs in a folder on any file system."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    # --- stages -------------------------------------------------------------------------------

    def stage_folder(self, key: str) -> Folder:
        return self.folder / STAGES / key

    def stage_keys(self) -> list[str]:
        """The keys of all stages that were begun, finished or not."""
        return (self.folder / STAGES).folder_names()

    def record(self, key: str) -> StageRecord | None:
        """The record of a finished stage, or None. Raises DamagedFile where it is damaged, StorageError."""
        folder = self.stage_folder(key)
        try:
            return record_from(unsealed(folder.read(RECORD, LARGEST_BYTES)), key)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFile(
                f"{(folder / RECORD).uri}: damaged ({_reason(error)}); remove it to train the stage again"
            ) from None

    def readable_record(self, key: str) -> StageRecord | None:
        """The same for a stage that would be useful but is not needed: an unreadable record counts as none."""
        try:
            return self.record(key)
        except RaystageError as error:
            _logger.warning("passed over: %s", error)
            return None

    def commit_record(self, record: StageRecord, trunk: str | None = None) -> StageRecord:
        """Write the record: from here on the stage is finished. Returns the record that is in place.

        Where another attempt was faster, its record stays if the checkpoint that it names is complete, and the
        checkpoints of this attempt are removed. Otherwise the checkpoints are removed that this record does not need.
        No error after the record is written undoes it. trunk: the trunk key under which longer stages look for this
        one.
        """
        folder = self.stage_folder(record.key)
        if record.growth:
            with _best_effort(f"{(folder / CERTIFICATE).uri}"):
                content = {"stage": record.name, "key": record.key, **asdict(record.growth)}
                folder.write_whole(CERTIFICATE, written(content))
        stands = self._write_record(folder, record)
        with _best_effort(f"{(folder / CHECKPOINTS).uri}"):
            self._drop_superseded(folder, record, stands)
        if trunk is not None:
            self.note_trunk(trunk, stands.steps, stands.key)
        return stands

    def _write_record(self, folder: Folder, record: StageRecord) -> StageRecord:
        content = written(record.to_json())
        if folder.write_new(RECORD, content):
            return record
        standing = self.readable_record(record.key)
        if standing is not None and _is_whole(folder / standing.checkpoint):
            return standing
        folder.write_whole(RECORD, content)  # a record whose checkpoint is gone counts as none
        return record

    def _drop_superseded(self, folder: Folder, own: StageRecord, stands: StageRecord) -> None:
        """Remove the checkpoints that the record in place does not name: the attempt's own, and earlier ones on the way
        there.

        Checkpoints that another attempt wrote at or beyond the end of this one may be named by a record, so they stay.
        """
        kept = {_name(place) for place in stands.needed_checkpoints}
        last = _name(own.last_checkpoint)
        for name in _checkpoint_names(folder):
            is_own = attempt_of(name) == attempt_of(last)
            is_before = stands is own and position_of(name) < position_of(last)
            if name not in kept and (is_own or is_before):
                self.drop(folder / CHECKPOINTS / name)
        if stands is not own and own.checkpoint != own.last_checkpoint and _name(own.checkpoint) not in kept:
            self.drop(folder / own.checkpoint)

    def note_trunk(self, trunk: str, steps: int, key: str) -> None:
        """Make a stage visible to longer versions of it: when it is finished, and while it is trained."""
        folder = self.folder / TRUNKS / trunk
        with _best_effort(folder.uri):
            folder.write_whole(f"{steps:012}-{key}", b"")

    def trunk(self, trunk: str) -> list[tuple[int, str]]:
        """Steps and keys of the stages under a trunk key, the longest first. Some may be in training, some may
        be gone."""
        notes = map(_TRUNK_NOTE.fullmatch, (self.folder / TRUNKS / trunk).file_names())
        return sorted(((int(note[1]), note[2]) for note in notes if note), reverse=True)

    def checkpoint_folder(self, key: str, position: int, attempt: str) -> Folder:
        return self.stage_folder(key) / CHECKPOINTS / f"{position:015}-{attempt}"

    def delivered_folder(self, key: str, kind: str, attempt: str) -> Folder:
        """Where an attempt writes what it makes of a stage's checkpoints: "average" or "merged". No training continues
        from there."""
        return self.stage_folder(key) / CHECKPOINTS / f"{kind}-{attempt}"

    def checkpoint_at(self, key: str, position: int) -> Folder | None:
        """A complete checkpoint within a stage, finished or not, at a position of the run."""
        found = (one for one in self._whole_checkpoints(key) if position_of(one.name) == position)
        return next(filter(_is_whole, found), None)

    def finished_checkpoint(self, key: str) -> Folder:
        """The final checkpoint of a finished stage. Raises CheckpointError where there is none."""
        record = self.record(key)
        if record is None:
            raise CheckpointError(f"{self.stage_folder(key).uri}: no {RECORD}; the stage is not finished")
        folder = self.stage_folder(key) / record.checkpoint
        if not checkpoint.exists(folder):
            named = f"but {(self.stage_folder(key) / RECORD).uri} names it; remove that to train the stage again"
            raise CheckpointError(f"{folder.uri}: no {checkpoint.MANIFEST}, {named}")
        return folder

    def latest_checkpoint(self, key: str, attempt: str | None = None) -> Folder | None:
        """The furthest complete checkpoint within an unfinished stage; of equally far ones that of the attempt."""
        return next(self.checkpoints(key, attempt), None)

    def checkpoints(self, key: str, attempt: str | None = None) -> Iterator[Folder]:
        """All of them, in this order."""
        found = self._whole_checkpoints(key)
        found.sort(key=lambda folder: (position_of(folder.name), attempt_of(folder.name) == attempt), reverse=True)
        return filter(_is_whole, found)

    def drop_older_checkpoints(
        self, key: str, keep: int, keep_best: int = 0, evaluations: Sequence[Evaluation] = (), last: str | None = None,
        positions: Collection[int] = (),
    ) -> None:  # fmt: skip
        """Remove all but the `keep` furthest and the `keep_best` best complete checkpoints of an unfinished stage, and
        those at some positions of the run.

        last: the name of the checkpoint that was just written. It stays, and so do those of other attempts there or
        beyond, which may be about to finish.
        """
        whole = {folder.name: folder for folder in self._whole_checkpoints(key)}
        own = attempt_of(last) if last else None
        others = {
            name for name in whole if last and attempt_of(name) != own and position_of(name) >= position_of(last)
        }  # fmt: skip
        kept = retained(list(whole.keys() - others), keep, keep_best, evaluations)
        kept |= {name for name in whole if position_of(name) in positions}
        for name, folder in whole.items():
            if name not in kept | others:
                self.drop(folder)

    def drop(self, folder: Folder) -> None:
        """Remove a checkpoint, its manifest first, so that an interrupted removal leaves no checkpoint.

        Nothing is removed behind a symbolic link, which may lead out of the store.
        """
        if link := folder.first_link(self.folder):
            _logger.warning("%s: is a symbolic link; old checkpoints behind it are not removed", link)
            return
        folder.delete_file(checkpoint.MANIFEST)
        folder.delete()

    def best_checkpoints(self, key: str, count: int, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
        """The complete checkpoints with the lowest loss, the best first, as a record names them."""
        names = [folder.name for folder in self._whole_checkpoints(key)] if count else []
        return tuple(f"{CHECKPOINTS}/{name}" for name in best(names, count, evaluations))

    def _whole_checkpoints(self, key: str) -> list[Folder]:
        folder = self.stage_folder(key)
        found = [folder / CHECKPOINTS / name for name in reversed(_checkpoint_names(folder))]
        return [one for one in found if checkpoint.exists(one)]

    # --- runs ---------------------------------------------------------------------------------

    def run_folder(self, name: str) -> Folder:
        return self.folder / RUNS / name

    def run_names(self) -> list[str]:
        return (self.folder / RUNS).folder_names()

    def earlier_runs(self, name: str) -> list[str]:
        """The runs of other schedules that had this name before: mine/earlier/1 and so on, the oldest first."""
        names = (self.run_folder(name) / EARLIER).folder_names()
        return [f"{name}/{EARLIER}/{one}" for one in sorted(names, key=lambda one: (len(one), one))]

    def write_run(self, name: str, file: str, content: dict[str, Any]) -> None:
        self.run_folder(name).write_whole(file, written(content))

    def read_run(self, name: str, file: str) -> dict[str, Any] | None:
        """A JSON file of a run, or None where there is none. Raises DamagedFile where it is damaged, StorageError."""
        return read_file(self.run_folder(name), file, file)

    def run_report(self, name: str) -> RunReport | None:
        """The report of a run, or None where there is none. Raises DamagedFile, StorageError."""
        content = self.read_run(name, REPORT_FILE)
        return None if content is None else report_from(content, (self.run_folder(name) / REPORT_FILE).uri)


def read_file(folder: Folder, name: str, kind: str) -> dict[str, Any] | None:
    """A JSON file of a store, checked against the content of its kind; None where there is none.

    Raises DamagedFile, which says what to do about it; StorageError.
    """

    def checked(content: dict[str, Any]) -> dict[str, Any]:
        check_file(kind, content)
        return content

    return read_as(folder, name, checked)


def read_as(folder: Folder, name: str, read: Callable[[dict[str, Any]], Content]) -> Content | None:
    """The same, as the value that `read` makes of the content. read: may raise ValueError."""
    try:
        return read(unsealed(folder.read(name, LARGEST_BYTES)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedFile(f"{(folder / name).uri}: damaged ({error}); remove it, or run again what wrote it") from None


def _checkpoint_names(stage: Folder) -> list[str]:
    """The checkpoints of a stage; other folders there were not written by raystage."""
    return [name for name in (stage / CHECKPOINTS).folder_names() if _CHECKPOINT_NAME.fullmatch(name)]


def _name(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _is_whole(folder: Folder) -> bool:
    try:
        checkpoint.Checkpoint(folder).close()
    except CheckpointError:
        return False
    return True


def _reason(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)


@contextlib.contextmanager
def _best_effort(place: str) -> Iterator[None]:
    """An error within this is logged and ignored: nothing that was asked for depends on it."""
    try:
        yield
    except StorageError as error:
        _logger.warning("%s: left as it is (%s)", place, error)


# --- which checkpoints stay -----------------------------------------------------------------


def retained(names: Sequence[str], keep_last: int, keep_best: int, evaluations: Sequence[Evaluation]) -> set[str]:
    """The names of the complete checkpoints to keep: the last ones and the best ones."""
    return {*sorted(names)[-keep_last:], *best(names, keep_best, evaluations)}


def best(names: Sequence[str], count: int, evaluations: Sequence[Evaluation]) -> list[str]:
    """The `count` checkpoints with the lowest evaluation loss, the lowest first; of equal ones the later.

    The loss of a checkpoint is that of the last evaluation up to it; before the first evaluation it has none.
    """
    losses = {name: loss_at(position_of(name), evaluations) for name in names}
    known = [name for name in sorted(names, reverse=True) if math.isfinite(losses[name])]
    return sorted(known, key=lambda name: losses[name])[:count]


def loss_at(position: int, evaluations: Sequence[Evaluation]) -> float:
    """The loss of the last evaluation up to a position of the run; infinite before the first."""
    so_far = [one for one in evaluations if one.position <= position]
    return max(so_far, key=lambda one: one.position).loss if so_far else math.inf


def position_of(name: str) -> int:
    """The position in the run, in tokens or samples, from a checkpoint's folder name: 000000000400000-1f3a9c22."""
    return int(name.partition("-")[0])


def attempt_of(name: str) -> str:
    """The attempt that wrote a checkpoint, from its folder name: 1f3a9c22."""
    return name.partition("-")[2]
