"""docs/checkpoints.md: its reader rebuilds every parameter without raystage; its tables name every key."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import xxhash

from raystage.files.filesystem import open_folder
from raystage.models.shape import ModelShape
from raystage.results.record import Progress
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.contents import Shard, StoredFragment
from raystage.storage.shards.placed import Held
from small_checkpoints import SHAPES, STATES, flat_cuts, make_values, parameter_cuts, write

PAGE = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
READER = re.search(r"^```python\n(.*?)^```", PAGE, re.M | re.S).group(1)

LAYOUTS = {
    "one worker": flat_cuts(1),
    "ZeRO 1 on 3 workers": flat_cuts(3),
    "more workers than some parameters have elements": parameter_cuts(5),
    "ZeRO 3 on 2 workers": parameter_cuts(2),
}


@pytest.mark.parametrize("cuts", LAYOUTS.values(), ids=LAYOUTS)
def test_the_reader_rebuilds_every_state_of_every_parameter(tmp_path: Path, cuts: list) -> None:
    names: dict = {}
    exec(compile(READER, "docs/checkpoints.md", "exec"), names)
    write(open_folder(tmp_path), cuts)
    opened = Checkpoint(open_folder(tmp_path))
    for name, shape in SHAPES.items():
        for state in STATES:
            found = names["read_weight"](tmp_path, name, state)
            assert (found.shape, found.dtype) == (shape, np.float32)
            np.testing.assert_array_equal(found.ravel(), opened.read(name, state, 0, found.size))
    np.testing.assert_array_equal(names["read_weight"](str(tmp_path), "scale").shape, (1,))
    opened.close()


def test_the_reader_reads_the_version_before() -> None:
    names: dict = {}
    exec(compile(READER, "docs/checkpoints.md", "exec"), names)
    for (name, state), values in make_values().items():
        found = names["read_weight"](Path(__file__).parents[1] / "golden/checkpoint-version-1", name, state)
        np.testing.assert_array_equal(found.ravel(), values)


def test_the_page_says_where_everything_lies(tmp_path: Path) -> None:
    """Without headers: from the manifest alone, as the section on shards has it."""
    write(open_folder(tmp_path), flat_cuts(3))
    manifest, values = json.loads((tmp_path / "manifest.json").read_text()), make_values()
    for number, shard in enumerate(manifest["shards"]):
        content = (tmp_path / shard["file"]).read_bytes()
        spans = sorted(
            (entry["parameter"], state, max(start, at), min(stop, at + length))
            for entry in manifest["layout"]
            for state in entry["states"]
            for start, stop, length, first in entry["runs"]
            for at in [start + (number - first) * length]
            if first <= number and at < stop
        )
        at, checksums = shard["header_bytes"], b""
        for name, state, start, stop in spans:
            data = content[at : at + 4 * (stop - start)]
            np.testing.assert_array_equal(np.frombuffer(data, "<f4"), values[name, state][start:stop])
            at, checksums = at + len(data), checksums + xxhash.xxh3_128_digest(data)
        assert content[at:] == checksums
        assert xxhash.xxh3_128_hexdigest(checksums) == shard["index_checksum"]


def test_the_reader_is_twenty_lines_without_raystage() -> None:
    assert len([line for line in READER.splitlines() if line.strip()]) <= 20
    assert set(re.findall(r"^(?:import|from) (\w+)", READER, re.M)) == {"json", "pathlib", "numpy", "safetensors"}


def test_the_page_names_every_key(tmp_path: Path) -> None:
    for kind in (Manifest, Shard, StoredFragment, Held, ParameterEntry, ModelShape):
        for field in fields(kind):
            assert f"`{field.name}`" in PAGE, f"{kind.__name__}.{field.name}"
    for key in Progress(steps=0, position=0, flops=0).to_json():
        assert f"`{key}`" in PAGE, f"progress.{key}"
    write(open_folder(tmp_path), flat_cuts(1))
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert list(written)[-1] == "checksum"
    for key in written:
        assert f"`{key}`" in PAGE
