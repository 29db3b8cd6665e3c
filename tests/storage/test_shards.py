"""What a manifest says of shards: in few bytes, whatever the layout; and what shards of the version before said."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from raystage.errors import CheckpointError
from raystage.files.filesystem import open_folder
from raystage.storage.checkpoint import MANIFEST, Checkpoint
from raystage.storage.integrity import examine
from raystage.storage.shards.contents import Shard, Span
from raystage.storage.shards.placed import PlacedShards, Run
from raystage.storage.shards.telling import equal_cut, packed_steps, placed_as_told, told, unpacked_steps
from raystage.storage.shards.writing import WrittenShard, placed
from small_checkpoints import SHAPES, STATES, flat_cuts, make_values, parameter_cuts

EARLIER = Path(__file__).parents[1] / "golden/checkpoint-version-1"
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}


def spans_of(cuts: list[tuple[str, int, int]], states: tuple[str, ...] = STATES) -> tuple[Span, ...]:
    return tuple(sorted((name, state, start, stop) for name, start, stop in cuts for state in states if start < stop))


def written(cuts: list[list[tuple[str, int, int]]]) -> list[WrittenShard]:
    return [WrittenShard(Shard(f"{rank}.safetensors", 0, ""), spans_of(own)) for rank, own in enumerate(cuts)]


def shared(spans: list[tuple[Span, ...]]) -> list[WrittenShard]:
    return [WrittenShard(Shard(f"{rank}.safetensors", 0, ""), own) for rank, own in enumerate(spans)]


def only_some(world: int) -> list[WrittenShard]:
    """One state of the matrices, as Muon has, and a buffer that the first worker alone writes."""
    found = []
    for rank, own in enumerate(parameter_cuts(world)):
        matrices = spans_of([one for one in own if one[0] != "scale"], ("exp_avg", "fp32"))
        found.append(tuple(sorted((*matrices, *([("scale", "fp32", 0, 1)] if rank == 0 else [])))))
    return shared(found)


def last_empty(world: int) -> list[WrittenShard]:
    """As ZeRO 3 cuts, but for a parameter that the second worker has whole."""
    found = []
    for rank, own in enumerate(parameter_cuts(world)):
        kept = [one for one in own if one[0] != "embed.weight"]
        found.append(spans_of([*kept, *([("embed.weight", 0, SIZES["embed.weight"])] if rank == 1 else [])]))
    return shared(found)


CUTS = {
    "one worker": written(flat_cuts(1)),
    "ZeRO 1 on 3": written(flat_cuts(3)),
    "ZeRO 1 on 40, some with nothing": written(flat_cuts(40)),
    "ZeRO 3 on 2": written(parameter_cuts(2)),
    "ZeRO 3 on 40": written(parameter_cuts(40)),
    "not all states": only_some(3),
    "one whole, others cut": last_empty(3),
}


@pytest.mark.parametrize("shards", CUTS.values(), ids=CUTS)
def test_what_workers_tell_is_what_they_hold(shards: list[WrittenShard]) -> None:
    world = len(shards)
    all_told = [told(one, SIZES, rank, world) for rank, one in enumerate(shards)]
    found = placed_as_told(all_told, SIZES)
    assert found == placed(shards)
    held = [
        sorted(
            (one.parameter, state, *run.within(rank))
            for one in found.held
            for state in one.states
            for run in one.runs
            if run.shard <= rank < run.shard + run.count
        )
        for rank in range(world)
    ]
    assert held == [list(one.spans) for one in shards]


def test_what_a_manifest_says_does_not_grow_with_the_workers() -> None:
    """Under ZeRO 3 each parameter is one run; under ZeRO 1 a cut between two workers is a run more."""
    few, many = (placed(written(parameter_cuts(world))) for world in (2, 64))
    assert [len(one.runs) for one in many.held] == [len(one.runs) for one in few.held] == [1, 1, 1, 1]
    flat = placed(written(flat_cuts(64)))
    assert max(len(one.runs) for one in flat.held) <= 3
    all_told = [told(one, SIZES, rank, 64) for rank, one in enumerate(written(parameter_cuts(64)))]
    assert all(one.others == () for one in all_told)


def test_runs_say_which_shards_hold_a_slice() -> None:
    run = Run(start=10, stop=45, length=10, shard=3)
    assert run.count == 4
    assert [run.within(number) for number in range(3, 7)] == [(10, 20), (20, 30), (30, 40), (40, 45)]
    assert list(run.shards_of(19, 31)) == [3, 4, 5]
    assert list(run.shards_of(40, 45)) == [6]


def test_equal_cuts_are_what_is_left_for_the_last() -> None:
    assert [equal_cut(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [equal_cut(2, rank, 4) for rank in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]


def test_steps_come_back_from_all_that_know_some() -> None:
    first, second = {"embed.weight": 7, "scale": 3}, {"layers.0.up.weight": 7, "layers.0.norm.weight": 0}
    packed = [packed_steps(first, SIZES), packed_steps(second, SIZES)]
    assert len(packed[0]) == 2
    assert unpacked_steps(packed, SIZES) == first | second


def test_where_fragments_lie_follows_from_the_spans() -> None:
    """Two spans in a shard, of 7 and 3 elements in fragments of 4: at the bytes of their order."""
    shard = Shard("one", 0, "", header_bytes=100)
    layout = placed([WrittenShard(shard, (("a", "fp32", 2, 9), ("b", "fp32", 0, 3)))])
    shards = PlacedShards(layout.files, layout.held, fragment_numel=4)
    index = b"".join(bytes([number]) * 16 for number in range(3))
    found = [(one.parameter, one.start, one.stop, one.offset) for one in shards.fragments(0, lambda _: index)]
    assert found == [("a", 2, 6, 100), ("a", 6, 9, 116), ("b", 0, 3, 128)]
    ((number, one),) = shards.overlapping("a", "fp32", 7, 8, lambda _: index)
    assert (number, one.start, one.stop, one.checksum) == (0, 6, 9, "01" * 16)
    assert (shards.sized(0), shards.index_bytes(0)) == (100 + 4 * 10 + 16 * 3, 16 * 3)


# --- version 1 ----------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def test_a_checkpoint_of_version_1_is_read(earlier: Path) -> None:
    opened = Checkpoint(open_folder(earlier))
    assert (opened.states, opened.steps["scale"]) == (("fp32", "exp_avg", "exp_avg_sq"), 3)
    for (name, state), values in make_values().items():
        np.testing.assert_array_equal(opened.read(name, state, 0, values.size), values)
        np.testing.assert_array_equal(
            opened.read(name, state, values.size // 2, values.size), values[values.size // 2 :]
        )
    opened.close()
    assert examine(open_folder(earlier)).damages == ()


def test_damage_of_version_1_is_named(earlier: Path) -> None:
    shard = earlier / "shard-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    opened = Checkpoint(open_folder(earlier))
    last = opened.fragments(1)[-1]
    with pytest.raises(CheckpointError, match=f"{shard.name}: damaged; .* does not match its checksum"):
        opened.read(last.parameter, last.state, last.start, last.stop)
    assert {one.file for one in examine(open_folder(earlier)).damages} == {shard.name}


def test_a_manifest_of_version_1_that_no_worker_wrote_is_refused(earlier: Path) -> None:
    written = json.loads((earlier / MANIFEST).read_text())
    del written["checksum"]
    written["shards"][0]["fragments"][1]["offset"] = 8
    (earlier / MANIFEST).write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match=r"fragments\[1\]\.offset: found 8"):
        Checkpoint(open_folder(earlier))
