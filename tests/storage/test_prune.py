"""What `raystage store prune` would remove, decided from listings alone."""

from __future__ import annotations

import pytest

from raystage.storage.prune import Listing, StoredCheckpoint, StoredRun, StoredStage, removals

NOW, HOUR = 1e6, 3600.0
LONG_AGO = NOW - 10 * HOUR
LAST, OLDER, HALF = (
    StoredCheckpoint("400-a", 40, True),
    StoredCheckpoint("200-a", 20, True),
    StoredCheckpoint("300-b", 3, False),
)


def finished(key: str, parent: str | None = None, *more: StoredCheckpoint, **changes: object) -> StoredStage:
    facts = {"needed": (LAST.name,), "changed_at": LONG_AGO, "finished": True, "parent_key": parent}
    return StoredStage(key, (LAST, *more), 100, **{**facts, **changes})


def unfinished(key: str, changed_at: float = LONG_AGO) -> StoredStage:
    return StoredStage(key, (OLDER, HALF), 23, changed_at)


def run(*keys: str) -> StoredRun:
    return StoredRun("mine", "FINISHED", frozenset(keys))


# Stages, runs, and what goes: stages by their key, checkpoints by "key/name".
CASES = {
    "an empty store": ([], [], []),
    "all is needed": ([finished("a"), finished("b", "a")], [run("a", "b")], []),
    "no run at all": ([finished("a"), finished("b", "a")], [], ["b", "a"]),
    "the lineage of what a run needs": (
        [finished("a"), finished("b", "a"), finished("c", "b"), finished("x", "a")], [run("c")], ["x"]),
    "a stage that was never begun": ([finished("a")], [run("a", "not there")], []),
    "a lineage that is not all there": ([finished("b", "gone")], [run("b")], []),
    "older and half-written checkpoints": (
        [finished("a", None, OLDER, HALF)], [run("a")], ["a/200-a", "a/300-b"]),
    "the best one that a record names": (
        [finished("a", None, OLDER, needed=(LAST.name, OLDER.name))], [run("a")], []),
    "an unfinished stage that a run can go on with": ([unfinished("a")], [run("a")], []),
    "an unfinished stage of no run": ([unfinished("a")], [], ["a"]),
    "one that may be training": ([unfinished("a", NOW - HOUR + 1)], [run("a")], []),
    "one that stopped just long enough ago": ([unfinished("a", NOW - HOUR)], [], ["a"]),
    "one of no run that may be training came from anywhere": (
        [finished("a", None, HALF), unfinished("b", NOW)], [], ["a/300-b"]),
    "one of a run that may be training came from its plan": (
        [finished("a"), finished("x"), unfinished("b", NOW)], [run("a", "b")], ["x"]),
    "a changed clock": ([unfinished("a", NOW + HOUR)], [], []),
    "a damaged record": ([finished("a", problem="damaged", finished=False), finished("b")], [], []),
}  # fmt: skip


@pytest.mark.parametrize(("stages", "runs", "expected"), CASES.values(), ids=CASES)
def test_what_goes(stages: list[StoredStage], runs: list[StoredRun], expected: list[str]) -> None:
    found = removals(Listing(tuple(stages), tuple(runs)), NOW, HOUR)
    assert [f"{one.key}/{one.checkpoint}" if one.checkpoint else one.key for one in found] == expected


def test_each_removal_says_why_and_how_many_bytes() -> None:
    found = removals(Listing((finished("a", None, OLDER, HALF), finished("b")), (run("a"),)), NOW, HOUR)
    assert [(one.key, one.bytes, one.reason) for one in found] == [
        ("a", 20, "older than the stage's last"),
        ("a", 3, "half written"),
        ("b", 100, "no run refers to it, and nothing that is kept grew from it"),
    ]
