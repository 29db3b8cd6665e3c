"""What of a store nothing needs any more: decided from a listing of it, done by raystage.storage.maintenance.

Needed are the stages that a run refers to and all they came from. Of a finished stage its record's checkpoints are
needed. What may be training right now is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's folder. whole: it has a manifest."""

    name: str
    bytes: int
    whole: bool


@dataclass(frozen=True)
class StoredStage:
    """A stage's folder. bytes: of all files in it; changed_at: seconds since 1970, of the file changed last.

    The rest is known of finished stages alone. needed: names of the checkpoints that its record names.
    problem: what is wrong with its record, where it is damaged. lost: what is wrong with a checkpoint that its record
    names, where that is not whole.
    """

    key: str
    checkpoints: tuple[StoredCheckpoint, ...]
    bytes: int
    changed_at: float
    finished: bool = False
    parent_key: str | None = None
    needed: tuple[str, ...] = ()
    name: str | None = None
    tokens: int | None = None
    eval_loss: float | None = None
    problem: str | None = None
    lost: str | None = None

    @property
    def state(self) -> str:
        return "damaged" if self.problem or self.lost else "finished" if self.finished else "unfinished"


@dataclass(frozen=True)
class StoredRun:
    """A run, and the keys of all stages that its plan or report names.

    problem: what is wrong with one of its files, where not all that it names may be known.
    """

    name: str
    state: str | None
    stage_keys: frozenset[str]
    problem: str | None = None


@dataclass(frozen=True)
class Listing:
    stages: tuple[StoredStage, ...]
    runs: tuple[StoredRun, ...]

    @property
    def problems(self) -> list[str]:
        """What is wrong with records and runs: then it is not known what needs what."""
        return [one.problem for one in (*self.stages, *self.runs) if one.problem]

    @property
    def losses(self) -> list[str]:
        """What is wrong with checkpoints that records name."""
        return [stage.lost for stage in self.stages if stage.lost]

    def runs_of(self, key: str) -> list[str]:
        return [run.name for run in self.runs if key in run.stage_keys]


@dataclass(frozen=True)
class Removal:
    """A checkpoint to remove, or, where that is None, a whole stage."""

    key: str
    checkpoint: str | None
    bytes: int
    reason: str


def removals(listing: Listing, now: float, older_than: float) -> tuple[Removal, ...]:
    """What to remove, in this order: a stage goes before the one it came from. older_than: in seconds.

    Where an unfinished stage that no run refers to may be training, nobody knows what it came from, and no whole
    stage goes. Nor does one where a record or a run is damaged. Of a stage that has lost a checkpoint which its record
    names nothing goes, and nothing that it came from: what is left is all there is to make it anew from.
    """
    stages = {stage.key: stage for stage in listing.stages}
    running = {stage.key for stage in listing.stages if not stage.finished and now - stage.changed_at < older_than}
    referred = {key for run in listing.runs for key in run.stage_keys}
    lost = {stage.key for stage in listing.stages if stage.lost}
    needed = with_ancestors(referred | lost, stages)
    is_lineage_known = running <= referred and not listing.problems
    found: list[Removal] = []
    for stage in sorted(listing.stages, key=lambda stage: -_depth(stage, stages)):
        if stage.key in running or stage.problem or stage.lost:
            continue
        if stage.key not in needed and is_lineage_known:
            found.append(
                Removal(stage.key, None, stage.bytes, "no run refers to it, and nothing that is kept grew from it")
            )
        elif stage.finished:
            found += _superseded(stage)
    return tuple(found)


def with_ancestors(keys: Iterable[str], stages: Mapping[str, StoredStage]) -> set[str]:
    """The keys, and those of all stages that they came from."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            if key in stages and stages[key].parent_key:
                waiting.append(stages[key].parent_key)
    return found


def _superseded(stage: StoredStage) -> list[Removal]:
    """Of a finished stage what its record does not name."""
    return [
        Removal(stage.key, one.name, one.bytes, "older than the stage's last" if one.whole else "half written")
        for one in stage.checkpoints
        if one.name not in stage.needed
    ]


def _depth(stage: StoredStage, stages: Mapping[str, StoredStage]) -> int:
    return len(with_ancestors([stage.key], stages))
