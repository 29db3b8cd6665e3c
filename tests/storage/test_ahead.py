"""Shards of an object store, read ahead: the same bits in fewer requests, and little held."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, OpenFile, open_folder
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.ahead import GAP_BYTES, HELD_BYTES, REQUEST_BYTES, Ahead, FileRange
from raystage.storage.shards.contents import Span
from s3_server import S3Server
from small_checkpoints import SHAPES, STATES, flat_cuts, make_values, parameter_cuts, write

MIB = 2**20


@pytest.fixture
def folder(s3: S3Server) -> Folder:
    return open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))


def slices_of(workers: int, rank: int) -> list[Span]:
    """What a worker reads whose layout is that of ZeRO 1, in the order of its partitions."""
    return [(name, state, start, stop) for name, start, stop in flat_cuts(workers)[rank] for state in STATES]


# --- against a server ---------------------------------------------------------------------------


def test_a_worker_in_another_layout_reads_each_shard_once(folder: Folder, s3: S3Server) -> None:
    write(folder, parameter_cuts(3))
    values, needed = make_values(), slices_of(2, 1)
    with s3.faults.injected(fault=None):
        opened = Checkpoint(folder)
        found = {}
        for one in opened.in_reading_order(needed, lambda one: [one]):
            found[one] = opened.read(*one)
        opened.close()
        gets = s3.faults.requests.count("GET")
    assert set(found) == set(needed)
    for name, state, start, stop in needed:
        np.testing.assert_array_equal(found[name, state, start, stop], values[name, state][start:stop])
    # The list of files, the manifest; and of each shard its index and one read.
    assert gets == 2 + 2 * 3


def test_a_long_slice_needs_no_preparing(folder: Folder, s3: S3Server) -> None:
    """Its fragments follow each other: a parameter of one state is one request."""
    write(folder, [[("embed.weight", 0, 88)], [(name, 0, int(np.prod(SHAPES[name]))) for name in list(SHAPES)[1:]]])
    opened = Checkpoint(folder)
    opened.read("embed.weight", "fp32", 0, 1)  # the index is read, and the file is open
    with s3.faults.injected(fault=None):
        np.testing.assert_array_equal(
            opened.read("embed.weight", "exp_avg", 0, 88), make_values()["embed.weight", "exp_avg"]
        )
        assert s3.faults.requests_in(folder.path) == ["GET"]
    opened.close()


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_flipped_byte_is_found_in_whichever_request_it_comes(folder: Folder, is_prepared: bool) -> None:
    manifest = write(folder, parameter_cuts(2))
    name, first = manifest.shards[1].file, manifest.shards[1].header_bytes
    whole = folder.read(name)
    last = manifest.shards.sized(1) - manifest.shards.index_bytes(1)
    for position in random.Random(0).sample(range(first, last), 12):
        folder.write_whole(name, whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError, match=r"shard-00001-of-00002\.safetensors.*: damaged; .* its checksum"):
            read_all(folder, is_prepared)


def read_all(folder: Folder, is_prepared: bool) -> None:
    opened, needed = Checkpoint(folder), [(*name, 0, values.size) for name, values in make_values().items()]
    with contextlib.closing(opened):
        for one in opened.in_reading_order(needed, lambda one: [one]) if is_prepared else needed:
            opened.read(*one)


# --- what is asked for, and what is held --------------------------------------------------------


class Counted(OpenFile):
    """A file whose reads are written down."""

    def __init__(self, place: Folder) -> None:
        super().__init__(place)
        self.reads: list[tuple[int, int]] = []

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self.reads.append((offset, num_bytes))
        return super().read_at(num_bytes, offset)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Counted]:
    (tmp_path / "shard").write_bytes(np.random.default_rng(0).bytes(40 * MIB))
    with Counted(open_folder(tmp_path) / "shard") as opened:
        yield opened


def wanted(*ranges: tuple[int, int]) -> Ahead:
    ahead = Ahead()
    ahead.want(FileRange(0, *one) for one in ranges)
    return ahead


def test_neighbours_come_together_over_a_small_gap_and_no_larger_one(file: Counted) -> None:
    small, large = (100, 200), (200 + GAP_BYTES, 300 + GAP_BYTES)
    beyond = (large[1] + GAP_BYTES + 1, large[1] + GAP_BYTES + 5)
    ahead = wanted(beyond, large, small)
    for start, stop in (small, large, beyond):
        assert ahead.view(0, file, stop - start, start) == OpenFile.read_at(file, stop - start, start)
    assert file.reads == [(100, large[1] - 100), (beyond[0], 4)]


def test_requests_and_what_is_held_have_bounds(file: Counted) -> None:
    fragments = [(at, at + MIB) for at in range(0, 40 * MIB, MIB)]
    ahead = wanted(*fragments)
    for start, stop in fragments:
        assert ahead.view(0, file, stop - start, start) == OpenFile.read_at(file, stop - start, start)
        assert sum(len(block) for block in ahead._blocks.values()) <= HELD_BYTES
    assert file.reads == [(at, REQUEST_BYTES) for at in range(0, 40 * MIB, REQUEST_BYTES)]
    ahead.want(())
    assert not ahead._blocks


def test_in_any_order_the_bytes_are_the_same(file: Counted) -> None:
    fragments = [(at, at + MIB // 2) for at in range(0, 39 * MIB, 3 * MIB // 4)]
    ahead = wanted(*fragments)
    generator = random.Random(1)
    for _ in range(200):
        start, stop = generator.choice(fragments)
        low = generator.randrange(start, stop)
        high = generator.randrange(low, min(stop + MIB, 40 * MIB)) + 1  # also what nobody has asked for before
        assert ahead.view(0, file, high - low, low) == OpenFile.read_at(file, high - low, low)


def test_where_the_file_ends_there_is_less(file: Counted) -> None:
    ahead = wanted((39 * MIB, 41 * MIB))
    assert len(ahead.view(0, file, 2 * MIB, 39 * MIB)) == MIB
