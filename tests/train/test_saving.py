"""Partitions written to a shard and read back: in fragments of a bounded length, with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raystage.files.filesystem import open_folder
from raystage.growth.apply import Grown
from raystage.growth.rules import growth_map
from raystage.models.shape import ModelShape
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry, commit
from raystage.storage.shards.writing import FRAGMENT_NUMEL, placed
from raystage.train.entry import fill_partitions
from raystage.train.partitions import Partition
from raystage.train.state.shards import fragments_of, write_fragments

SHAPE = ModelShape("llama", 1, 8, 2, 2, 4, 16, FRAGMENT_NUMEL // 8 + 3, 10)
NAME = "model.embed_tokens.weight"


@pytest.mark.parametrize("is_direct", [True, False], ids=["straight to its place", "in pieces"])
def test_a_partition_longer_than_a_fragment_comes_back_bit_for_bit(tmp_path: Path, is_direct: bool) -> None:
    numel = SHAPE.vocab_size * SHAPE.hidden_size
    whole = torch.randn(numel)
    part = Partition(NAME, 0, numel, {"fp32": whole}, (0, numel), whole)
    folder = open_folder(tmp_path)
    shard = write_fragments(
        fragments_of([part, replace(part, saves=(5, 5))]), folder, "shard-00000-of-00001.safetensors"
    )
    entry = ParameterEntry(NAME, (SHAPE.vocab_size, SHAPE.hidden_size), "float32", 0)
    commit(folder, Manifest(SHAPE, (entry,), placed([shard]), "", 0, 0, {}, {}, {}, {}))
    opened = Checkpoint(folder)
    lengths = [(one.start, one.stop) for one in opened.fragments(0)]
    assert lengths == [(0, FRAGMENT_NUMEL), (FRAGMENT_NUMEL, numel)]
    found = torch.zeros(numel - 7)
    slices = Partition(NAME, 7, numel, {"fp32": found}, (0, numel - 7), found)
    grown = Grown(growth_map(SHAPE, SHAPE, "identity", "grow"), opened.read, 0)
    fill_partitions([slices], grown, opened if is_direct else None)
    opened.close()
    assert torch.equal(found, whole[7:])
