"""Damaged, truncated and foreign files of a checkpoint: an error that names the file, never a wrong number."""

from __future__ import annotations

import json
import math
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystage.errors import CheckpointError
from raystage.files.filesystem import open_folder
from raystage.storage.checkpoint import MANIFEST, Checkpoint, sealed
from raystage.storage.integrity import examine
from small_checkpoints import flat_cuts, make_values, parameter_cuts, write

CUTS = flat_cuts(3)
FIRST, SECOND = "shard-00000-of-00003.safetensors", "shard-00001-of-00003.safetensors"


def read_all(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    opened = Checkpoint(open_folder(folder))
    try:
        return {place: opened.read(*place, 0, values.size) for place, values in make_values().items()}
    finally:
        opened.close()


def assert_refused(folder: Path, file: str) -> None:
    """Reading says which file, and so does examining all of the checkpoint."""
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(folder))}/{re.escape(file)}: "):
        read_all(folder)
    assert file in {damage.file for damage in examine(open_folder(folder)).damages}


def flip(path: Path, position: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_whole_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(open_folder(tmp_path), CUTS)
    found = read_all(tmp_path)
    for place, values in make_values().items():
        np.testing.assert_array_equal(found[place], values)
    assert examine(open_folder(tmp_path)).damages == ()


def test_a_flipped_bit_in_any_fragment_is_noticed(tmp_path: Path) -> None:
    """The first and the last byte of every fragment of every shard."""
    write(open_folder(tmp_path), CUTS)
    opened = Checkpoint(open_folder(tmp_path))
    for number, shard in enumerate(opened.manifest.shards):
        for fragment in opened.fragments(number):
            for position in (fragment.offset, fragment.offset + fragment.num_bytes - 1):
                flip(tmp_path / shard.file, position, 6)
                with pytest.raises(CheckpointError, match=f"{shard.file}: damaged; {fragment.state} of"):
                    read_all(tmp_path)
                found = examine(open_folder(tmp_path)).damages
                assert [(one.file, one.parameter, one.state) for one in found] == [
                    (shard.file, fragment.parameter, fragment.state)
                ]
                flip(tmp_path / shard.file, position, 6)
    read_all(tmp_path)


def test_a_flipped_bit_anywhere_in_a_header_is_noticed_where_all_is_examined(tmp_path: Path) -> None:
    """Reading does not need it: where everything lies follows from the manifest."""
    manifest = write(open_folder(tmp_path), CUTS)
    for position in range(manifest.shards[1].header_bytes):
        flip(tmp_path / SECOND, position, position % 8)
        (found,) = examine(open_folder(tmp_path)).damages
        assert (found.file, found.problem) == (SECOND, "its header is not what was written")
        flip(tmp_path / SECOND, position, position % 8)
    assert examine(open_folder(tmp_path)).damages == ()


def test_a_flipped_bit_anywhere_in_an_index_is_noticed(tmp_path: Path) -> None:
    """Once, with the name of the shard, and not as damage of what it is the checksum of."""
    shards = write(open_folder(tmp_path), CUTS).shards
    size = shards[1].size_bytes
    for position in range(size - shards.index_bytes(1), size):
        flip(tmp_path / SECOND, position, position % 8)
        with pytest.raises(CheckpointError, match=f"{SECOND}: damaged; its index, the checksums at its end,"):
            read_all(tmp_path)
        (found,) = examine(open_folder(tmp_path)).damages
        assert (found.file, found.problem[:9]) == (SECOND, "its index")
        flip(tmp_path / SECOND, position, position % 8)
    read_all(tmp_path)


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    write(open_folder(tmp_path), [[("scale", 0, 1)], []])
    for position in range((tmp_path / MANIFEST).stat().st_size):
        flip(tmp_path / MANIFEST, position, position % 8)
        with pytest.raises(CheckpointError, match=rf"/{MANIFEST}: "):
            Checkpoint(open_folder(tmp_path))
        flip(tmp_path / MANIFEST, position, position % 8)
    Checkpoint(open_folder(tmp_path)).close()


def cut(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes() + bytes(4))


def remove(folder: Path) -> None:
    (folder / SECOND).unlink()


def zeros_behind(folder: Path) -> None:
    """What a file system leaves of a file that was not brought to the disk."""
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def of_another_checkpoint(folder: Path) -> None:
    """Of the same model, worker and size: its header is the same, its numbers are not."""
    write(open_folder(folder.parent / "other"), CUTS, seed=1)
    (folder.parent / "other" / SECOND).replace(folder / SECOND)


def of_another_layout(folder: Path) -> None:
    write(open_folder(folder.parent / "other"), parameter_cuts(3))
    (folder.parent / "other" / SECOND).replace(folder / SECOND)


@pytest.mark.parametrize("harm", [cut, lengthen, remove, zeros_behind, of_another_checkpoint, of_another_layout])
def test_a_shard_that_is_not_what_was_written_is_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write(open_folder(tmp_path / "checkpoint"), CUTS)
    harm(tmp_path / "checkpoint")
    assert_refused(tmp_path / "checkpoint", SECOND)


def test_two_shards_that_changed_places_are_named(tmp_path: Path) -> None:
    """Of equal size: four workers' shards of one parameter each would be."""
    cuts = [[("embed.weight", 22 * rank, 22 * (rank + 1))] for rank in range(4)]
    shards = write(open_folder(tmp_path), cuts).shards
    one, two = (tmp_path / shards[number].file for number in (1, 2))
    assert shards[1].size_bytes == shards[2].size_bytes
    one.replace(tmp_path / "aside")
    two.replace(one)
    (tmp_path / "aside").replace(two)
    with pytest.raises(CheckpointError, match=shards[1].file):
        read_all(tmp_path)
    assert {damage.file for damage in examine(open_folder(tmp_path)).damages} == {shards[1].file, shards[2].file}


# Where in the manifest, what stands there instead, what the error says. None takes the key away.
EDITS: dict[str, tuple[tuple, Any, str]] = {
    "shards are text": (("shards",), "all", "shards: found 'all'; expected a list"),
    "a shard is a number": (("shards", 0), 1, r"shards\[0\]: found 1; expected a mapping"),
    "no shards": (("shards",), None, "the key 'shards' is missing"),
    "no parameters": (("parameters",), None, "the key 'parameters' is missing"),
    "no layout": (("layout",), None, "the key 'layout' is missing"),
    "no runs": (("layout", 0, "runs"), None, "the key 'runs' is missing"),
    "an unknown key": (("shards", 0, "colour"), "red", "colour"),
    "a run is text": (("layout", 0, "runs", 0), "all", "expected start, stop, length and shard"),
    "start is NaN": (("layout", 0, "runs", 0, 0), math.nan, "expected start, stop, length and shard"),
    "start is a fraction": (("layout", 0, "runs", 0, 0), 0.5, "expected start, stop, length and shard"),
    "start is true": (("layout", 0, "runs", 0, 0), True, "expected start, stop, length and shard"),
    "negative start": (("layout", 0, "runs", 0, 0), -1, "expected start, stop, length and shard"),
    "stop before start": (("layout", 0, "runs", 0, 1), 0, "expected a stretch within"),
    "stop behind the end": (("layout", 0, "runs", 0, 1), 10**9, "expected a stretch within"),
    "length is 0": (("layout", 0, "runs", 0, 2), 0, "expected a stretch within"),
    "more shards than there are": (("layout", 0, "runs", 0, 2), 1, "found .*; expected a shard below 3"),
    "a shard that is not there": (("layout", 0, "runs", 0, 3), 9, "found .*; expected a shard below 3"),
    "overlapping": (("layout", 2, "runs", 0, 1), 100, "for no two shards hold one element"),
    "fewer elements than the shard has": (("layout", 2, "runs", 1, 1), 100, "bytes; expected"),
    "fragment_numel is 0": (("fragment_numel",), 0, "fragment_numel: found 0"),
    "other fragments": (("fragment_numel",), 1, "bytes; expected"),
    "header beyond the file": (("shards", 0, "header_bytes"), 10**9, "header_bytes: found 1000000000"),
    "another header": (("shards", 0, "header_bytes"), 8, "bytes; expected"),
    "no index checksum": (("shards", 0, "index_checksum"), "", "index_checksum: found ''"),
    "a state twice": (("layout", 0, "states"), ["fp32", "fp32"], "states: found 'fp32'"),
    "checksum is a number": (("shards", 0, "index_checksum"), 7, "expected 32 hex digits"),
    "checksum of another length": (("shards", 0, "checksum"), "xxh3_128:0", "expected xxh3_128:"),
    "size is NaN": (("shards", 0, "size_bytes"), math.nan, "size_bytes: found nan"),
    "negative size": (("shards", 0, "size_bytes"), -1, "size_bytes: found -1"),
    "a file twice": (("shards", 1, "file"), FIRST, "file: found 'shard-00000"),
    "a file elsewhere": (("shards", 0, "file"), "../../secret.safetensors", "file: found '../../secret"),
    "file is null": (("shards", 0, "file"), [], "file: found"),
    "unknown parameter": (("layout", 0, "parameter"), "x", "parameter: found 'x'"),
    "empty state": (("layout", 0, "states", 0), "", "states: found ''"),
    "shape is a number": (("parameters", 0, "shape"), 88, "shape: found 88; expected a list"),
    "negative shape": (("parameters", 0, "shape"), [-11, -8], "expected counts"),
    "another shape": (("parameters", 0, "shape"), [2, 2], "expected a stretch within"),
    "a parameter twice": (("parameters", 1, "name"), "embed.weight", "expected a new name"),
    "another type": (("parameters", 0, "dtype"), "bfloat16", "dtype: found 'bfloat16'; expected float32"),
    "step is text": (("parameters", 0, "step"), "3", "step: found '3'"),
    "negative step": (("step",), -3, "step: found -3"),
    "tokens are NaN": (("tokens",), math.nan, "tokens: found nan"),
    "progress is a list": (("progress",), [], "progress: found"),
    "grown from text": (("grown_from",), "x", "grown_from: found 'x'"),
    "model is null": (("model",), [], "model: found"),
    "a fraction of a layer": (("model", "num_layers"), 1.5, "model.num_layers: found 1.5"),
    "eps is NaN": (("model", "norm_eps"), math.nan, "model.norm_eps: found nan"),
    "no family": (("model", "family"), None, "family"),
}  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), EDITS.values(), ids=EDITS)
def test_a_manifest_that_no_worker_wrote_is_refused(tmp_path: Path, place: tuple, value: Any, message: str) -> None:
    """With a checksum that fits, as an edit by hand may have, so that it is the content that is judged."""
    write(open_folder(tmp_path), CUTS)
    content = json.loads((tmp_path / MANIFEST).read_text())
    del content["checksum"]
    *way, key = place
    inner = content
    for step in way:
        inner = inner[step]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    (tmp_path / MANIFEST).write_bytes(sealed(json.dumps(content).encode()))
    with pytest.raises(
        CheckpointError, match=r"(/manifest\.json|/shard-0000\d-of-00003\.safetensors): damaged.*" + f"({message})"
    ):
        read_all(tmp_path)


def test_two_fragments_of_the_same_elements_are_refused(tmp_path: Path) -> None:
    """Where each shard by itself is in order."""
    write(open_folder(tmp_path), [[("scale", 0, 1)], [("scale", 0, 1)]])
    with pytest.raises(CheckpointError, match="expected 1 or more, for no two shards hold one element"):
        Checkpoint(open_folder(tmp_path))


def enlarge(folder: Path, numel: int, fragment_numel: int) -> None:
    """A checkpoint whose only shard holds so many zeros, and says so. The file is sparse; the largest ones no
    file system has."""
    write(open_folder(folder), [[("embed.weight", 0, 88)]])
    content = json.loads((folder / MANIFEST).read_text())
    del content["checksum"]
    (shard,) = content["shards"]
    size = shard["size_bytes"] = shard["header_bytes"] + 4 * numel + 16 * -(-numel // fragment_numel)
    content["fragment_numel"] = fragment_numel
    content["layout"] = [{"parameter": "embed.weight", "states": ["fp32"], "runs": [[0, numel, numel, 0]]}]
    next(one for one in content["parameters"] if one["name"] == "embed.weight")["shape"] = [numel]
    (folder / MANIFEST).write_bytes(sealed(json.dumps(content).encode()))
    if size < 2**40:
        os.truncate(folder / shard["file"], size)


def test_an_index_of_a_billion_fragments_is_not_read(tmp_path: Path) -> None:
    enlarge(tmp_path, 10**9, 1)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"damaged; an index of 16000000000 bytes; expected at most \d+$"):
            Checkpoint(open_folder(tmp_path)).read("embed.weight", "fp32", 0, 10)
        (found,) = examine(open_folder(tmp_path)).damages
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert found.problem.startswith("an index of 16000000000 bytes")


def test_more_elements_than_can_be_added_up_are_refused(tmp_path: Path) -> None:
    """In 64 bits the sum of their bytes could be anything."""
    enlarge(tmp_path, 2**57, 2**57)
    with pytest.raises(
        CheckpointError, match=r"manifest\.json: damaged \(layout: found \d+; expected fewer than \d+ elem"
    ):
        Checkpoint(open_folder(tmp_path))


def test_absurdly_nested_json_is_damaged_too(tmp_path: Path) -> None:
    write(open_folder(tmp_path), CUTS)
    (tmp_path / MANIFEST).write_bytes(b"[" * 200_000)
    assert_refused(tmp_path, MANIFEST)


def test_a_manifest_without_a_checksum_is_read(tmp_path: Path) -> None:
    """As other tools may write it."""
    write(open_folder(tmp_path), CUTS)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
    np.testing.assert_array_equal(read_all(tmp_path)["scale", "fp32"], make_values()["scale", "fp32"])
