"""What nothing in a store needs any more, decided from a listing. `storage.maintenance` removes it.

Needed are the stages that a run refers to and all their ancestors. Of a finished stage the checkpoints are needed that
its record names. What may be in training now is never removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, unit_key
from raystage.units import TOKENS, Unit


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's folder. whole: whether it has a manifest."""

    name: str
    bytes: int
    whole: bool


@dataclass(frozen=True)
class StoredStage:
    """A stage's folder. bytes: of all its files. changed_at: of the last change, in seconds since 1970.

    The rest is known for finished stages only. needed: names of the checkpoints that its record names. problem: what is
    wrong with a damaged record. lost: what is wrong with a checkpoint that its record names.
    """

    key: str
    checkpoints: tuple[StoredCheckpoint, ...]
    bytes: int
    changed_at: float
    finished: bool = False
    parent_key: str | None = None
    needed: tuple[str, ...] = ()
    name: str | None = None
    duration: int | None = field(default=None, metadata=unit_key())
    eval_loss: float | None = None
    problem: str | None = None
    lost: str | None = None
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)

    @property
    def state(self) -> str:
        return "damaged" if self.problem or self.lost else "finished" if self.finished else "unfinished"


@dataclass(frozen=True)
class StoredRun:
    """A run, and the keys of all stages that its plan or report names.

    problem: what is wrong with one of its files; then more stages may be named there.
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
        """What is wrong with records and runs. Then nobody knows what is needed."""
        return [one.problem for one in (*self.stages, *self.runs) if one.problem]

    @property
    def losses(self) -> list[str]:
        """What is wrong with checkpoints that records name."""
        return [stage.lost for stage in self.stages if stage.lost]

    def runs_of(self, key: str) -> list[str]:
        return self._runs_by_key.get(key, [])

    @cached_property
    def _runs_by_key(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for run in self.runs:
            for key in run.stage_keys:
                found.setdefault(key, []).append(run.name)
        return found


@dataclass(frozen=True)
class Removal:
    """A checkpoint to remove, or, where that is None, a whole stage."""

    key: str
    checkpoint: str | None
    bytes: int
    reason: str


def removals(listing: Listing, now: float, older_than: float) -> tuple[Removal, ...]:
    """What to remove, in this order: a stage before its parent. older_than: in seconds.

    Where an unfinished stage without a run may be in training, its ancestors are not known, and no whole stage is
    removed. Nor is one where a record or a run is damaged. Nothing is removed of a stage that has lost a checkpoint
    named by its record, nor of its ancestors: only what is left can restore it.
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
    """The keys, with those of all ancestors."""
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
    """The checkpoints of a finished stage that its record does not name."""
    return [
        Removal(stage.key, one.name, one.bytes, "older than the stage's last" if one.whole else "half written")
        for one in stage.checkpoints
        if one.name not in stage.needed
    ]


def _depth(stage: StoredStage, stages: Mapping[str, StoredStage]) -> int:
    return len(with_ancestors([stage.key], stages))
