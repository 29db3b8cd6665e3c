"""Sharded checkpoints: written by several workers, read by any slice, never wrong in silence."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, open_folder
from raystage.models.shape import ModelShape
from raystage.storage import checkpoint
from raystage.storage.checkpoint import MANIFEST, Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.writing import placed, shard_name, write_shard

SHAPE = ModelShape("llama", 1, 8, 2, 2, 4, 16, 11, 10)
VALUES = {
    ("weight", "fp32"): np.arange(10, dtype=np.float32),
    ("weight", "exp_avg"): np.linspace(-1, 1, 10, dtype=np.float32),
    ("scalar", "fp32"): np.array([7.0], dtype=np.float32),
}


def write(folder: Folder, cuts: tuple[int, ...] = (0, 4, 10)) -> Manifest:
    """A checkpoint of VALUES with the parameter `weight` cut at `cuts`, one shard for each part."""
    parts = list(itertools.pairwise(cuts))
    shards = []
    for rank, (start, stop) in enumerate(parts):
        pieces = [(name, state, start, VALUES[name, state][start:stop]) for name, state in VALUES if name == "weight"]
        if rank == 0:
            pieces.append(("scalar", "fp32", 0, VALUES["scalar", "fp32"]))
        shards.append(write_shard(folder, shard_name(rank, len(parts)), pieces))
    manifest = Manifest(
        model=SHAPE,
        parameters=(ParameterEntry("weight", (2, 5), "float32", 3), ParameterEntry("scalar", (1,), "float32", 0)),
        shards=placed(shards),
        stage_key="key",
        step=3,
        tokens=300,
        data_cursor={"tokens": 300},
        rng={"seed": 0},
        optimizer={"name": "adamw"},
        progress={"steps": 3},
    )
    checkpoint.commit(folder, manifest)
    return manifest


def read_all(opened: Checkpoint) -> None:
    for name, state in VALUES:
        opened.read(name, state, 0, VALUES[name, state].size)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "checkpoint")


@pytest.mark.parametrize("cuts", [(0, 10), (0, 4, 10), (0, 1, 2, 9, 10)])
def test_any_slice_is_read_from_any_cut(folder: Folder, cuts: tuple[int, ...]) -> None:
    write(folder, cuts)
    opened = Checkpoint(folder)
    for start in range(10):
        for stop in range(start, 11):
            for state in ("fp32", "exp_avg"):
                np.testing.assert_array_equal(
                    opened.read("weight", state, start, stop), VALUES["weight", state][start:stop]
                )
    assert opened.steps == {"weight": 3, "scalar": 0}
    assert opened.states == ("fp32", "exp_avg")
    assert (opened.has(["exp_avg"]), opened.has([]), opened.has(["exp_avg", "exp_avg_sq"])) == (True, True, False)
    opened.close()


def test_the_manifest_comes_back_as_it_was_written(folder: Folder) -> None:
    written = write(folder)
    assert checkpoint.read_manifest(folder) == written


def test_without_its_manifest_a_checkpoint_does_not_exist(folder: Folder) -> None:
    write_shard(folder, shard_name(0, 1), [("weight", "fp32", 0, VALUES["weight", "fp32"])])
    assert not checkpoint.exists(folder)
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        Checkpoint(folder)


def test_shards_are_plain_safetensors(folder: Folder) -> None:
    """Anyone can read them with the safetensors library, and nothing in them is a pickle."""
    write(folder)
    tensors = load_file(f"{folder.path}/shard-00001-of-00002.safetensors")
    np.testing.assert_array_equal(tensors["weight:exp_avg:4-10"], VALUES["weight", "exp_avg"][4:])
    assert sorted(folder.names()) == [
        "manifest.json",
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
    ]


def test_every_flipped_byte_of_a_shard_is_noticed(folder: Folder) -> None:
    manifest = write(folder)
    path = Path(folder.path, manifest.shards[0].file)
    whole = path.read_bytes()
    first = manifest.shards[0].header_bytes
    for position in range(first, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        opened = Checkpoint(folder)
        with pytest.raises(CheckpointError, match=r"shard-00000-of-00002\.safetensors: damaged"):
            read_all(opened)
        opened.close()


@pytest.mark.parametrize("change", ["truncated", "longer", "missing"])
def test_a_shard_of_the_wrong_size_is_refused_on_opening(folder: Folder, change: str) -> None:
    path = Path(folder.path, write(folder).shards[1].file)
    whole = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(whole[:-4] if change == "truncated" else whole + b"\0")
    with pytest.raises(CheckpointError, match=r"shard-00001-of-00002\.safetensors: .*; expected \d+"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "not a raystage checkpoint"),
        (b'{"format": "other"}', "not a raystage checkpoint"),
        (b'{"format": "raystage-checkpoint", "version": 99}', "found format version 99; expected 1 or 2"),
        (b'{"format": "raystage-checkpoint", "version": 1}', "damaged"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_named(folder: Folder, content: bytes, message: str) -> None:
    write(folder)
    Path(folder.path, MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"manifest\.json: {message}"):
        Checkpoint(folder)


def test_a_gap_between_fragments_is_noticed(folder: Folder) -> None:
    manifest = write(folder, (0, 4, 10))
    held = tuple(replace(one, runs=one.runs[:1]) for one in manifest.shards.held)
    first = replace(manifest.shards, files=manifest.shards.files[:1], held=held)
    checkpoint.commit(folder, replace(manifest, shards=first))
    opened = Checkpoint(folder)
    with pytest.raises(CheckpointError, match="not all there"):
        opened.read("weight", "fp32", 0, 10)
    opened.close()


def test_the_manifest_is_readable_json_with_what_the_format_promises(folder: Folder) -> None:
    write(folder)
    content = json.loads(Path(folder.path, MANIFEST).read_text())
    assert (content["format"], content["version"]) == ("raystage-checkpoint", 2)
    assert content["parameters"][0] == {"name": "weight", "shape": [2, 5], "dtype": "float32", "step": 3}
    assert content["layout"] == [
        {"parameter": "scalar", "states": ["fp32"], "runs": [[0, 1, 1, 0]]},
        {"parameter": "weight", "states": ["exp_avg", "fp32"], "runs": [[0, 4, 4, 0], [4, 10, 6, 1]]},
    ]
    for key in ("model", "step", "tokens", "data_cursor", "rng", "optimizer"):
        assert key in content
