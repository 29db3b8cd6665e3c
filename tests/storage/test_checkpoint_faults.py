"""Writers killed at every point of writing, and at any moment: what is found afterwards is whole, and none is lost."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import killed_saver
import killed_writer
from killed_writer import KEPT, KEY, NUMEL, PARAMETER, STATES
from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder
from raystage.storage.checkpoint import MANIFEST, Checkpoint
from raystage.storage.store import Store

Ask = Callable[..., dict[str, Any]]
RANDOM_KILLS = 20  # of one writer and of two, in the foreground and in the background: 80 in all
# Where files lie in memory, if there is such a place: a process that dies leaves the same there as on a disk, sooner.
IN_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Writers that wait for every checkpoint, and raystage's own Saver, which goes on meanwhile."""
    programs = {"foreground": killed_writer.__file__, "background": killed_saver.__file__}
    with killed_writer.serving(programs[request.param]) as ask:
        yield ask


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raystage-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


class Writers:
    """Writers on one store, one attempt after the other; `finished` is the last checkpoint they knew to be whole."""

    def __init__(self, ask: Ask, path: Path, writers: int) -> None:
        self._ask, self._path, self._writers = ask, path, writers
        self._attempts = itertools.count()
        self.store, self.finished = killed_writer.open_store(path), 0

    def write(self, checkpoints: int, victim: int = 0, at: int | None = None, after: float | None = None) -> dict:
        answer = self._ask(
            store=str(self._path),
            attempt=f"{next(self._attempts):08}",
            checkpoints=checkpoints,
            writers=self._writers,
            victim=victim,
            kill_at=at,
            kill_after=after,
        )
        self.finished = max(self.finished, answer["finished"])
        return answer

    def check(self) -> Counter[str]:
        """The furthest checkpoint is the last finished one or, if the writer died before it could say so, the next;
        it loads right, and so does every other that opens. Returns how many of each kind lie there."""
        latest = self.store.latest_checkpoint(KEY)
        tokens = loaded(latest) if latest else 0
        assert tokens in (self.finished, self.finished + 1)
        self.finished = tokens
        return Counter(kind_of(folder) for folder in folders(self.store))


def folders(store: Store) -> list[Folder]:
    place = store.stage_folder(KEY) / "checkpoints"
    return [place / name for name in place.names()]


def loaded(folder: Folder) -> int:
    """Load all of a checkpoint and hold it against what was written. Returns its tokens."""
    opened = Checkpoint(folder)
    tokens = opened.manifest.tokens
    assert folder.name.startswith(f"{tokens:015}-")
    for state in STATES:
        np.testing.assert_array_equal(opened.read(PARAMETER, state, 0, NUMEL), killed_writer.values(tokens, state))
    opened.close()
    return tokens


def kind_of(folder: Folder) -> str:
    """Whole, or in which way half."""
    names = folder.names()
    shards = [name for name in names if name.endswith(".safetensors")]
    try:
        loaded(folder)
    except CheckpointError:
        if MANIFEST in names:
            return "manifest without its shards"
        if any(MANIFEST in name for name in names):
            return "manifest not in its place"
        return "all shards" if {f"of-{len(shards):05}"} == {name[12:20] for name in shards} else "not all shards"
    return "whole"


# Who writes, with how many writers, and which of them is killed; a background Saver writes as the foreground does.
POINTS = [
    ("foreground", 1, 0),
    ("foreground", 2, 0),
    ("foreground", 2, 1),
    pytest.param("background", 2, 0, marks=pytest.mark.drill),
    pytest.param("background", 1, 0, marks=pytest.mark.drill),
    pytest.param("background", 2, 1, marks=pytest.mark.drill),
]


@pytest.mark.parametrize(("ask", "writers", "victim"), POINTS, indirect=["ask"])
def test_a_writer_killed_at_any_point_leaves_what_was_finished(
    ask: Ask, place: Path, writers: int, victim: int
) -> None:
    """At every single thing that it does to the file system, writes cut in two, over checkpoint after checkpoint."""
    checkpoints = KEPT + 1  # the last of them drops the first
    unharmed = Writers(ask, place / "unharmed", writers)
    points = unharmed.write(checkpoints, victim)["passed"]
    assert unharmed.check() == {"whole": KEPT}
    found: Counter[str] = Counter()
    for point in range(1, points + 1):
        written = Writers(ask, place / str(point), writers)
        answer = written.write(checkpoints, victim, at=point)
        if not answer["killed"]:  # the other writer was first to make a folder this time, and so had its points
            assert writers > 1
            assert answer["passed"] < point
            continue
        found += written.check()
        assert written.finished < checkpoints or victim == 0  # who hands over no shard, with it no manifest appears
        before = written.finished
        written.write(1)
        assert written.check()["whole"]
        assert written.finished == before + 1
    kinds = {"whole", "not all shards", "all shards"}
    if victim == 0:  # who writes the manifest; what is dropped loses it first
        kinds |= {"manifest not in its place"}
    assert kinds == set(found)


@pytest.mark.parametrize(
    ("ask", "writers"),
    [("foreground", 1), ("foreground", 2), pytest.param("background", 1, marks=pytest.mark.drill), ("background", 2)],
    indirect=["ask"],
)
def test_a_writer_killed_at_any_moment_leaves_what_was_finished(ask: Ask, place: Path, writers: int) -> None:
    """At random moments in one store, each attempt going on where the one before it died; none lives longer than some
    checkpoints take here and now."""
    moments = random.Random(writers)
    unharmed = Writers(ask, place / "unharmed", writers)
    unharmed.write(1)  # the server may have been starting
    began = time.monotonic()
    unharmed.write(KEPT + 1)
    longest_seconds = time.monotonic() - began
    written = Writers(ask, place / "store", writers)
    for _ in range(RANDOM_KILLS):
        victim, seconds = moments.randrange(writers), moments.uniform(0, longest_seconds)
        assert written.write(10**6, victim, after=seconds)["killed"]
        found = written.check()
        assert found["whole"] >= min(KEPT, written.finished)
    assert written.finished > KEPT
    assert found.total() > found["whole"]
