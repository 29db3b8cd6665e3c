"""Folders that would fill the memory, never end or lead elsewhere: each is answered by what is wrong with it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import folders
from exports import byte_shape, make_checkpoint
from raystage.cli.main import main
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.storage.checkpoint import MANIFEST, sealed
from started_models import make_schedule

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = "[" * 200_000


def say(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def index(folder: Path, name: object) -> None:
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": name}}))


def linked(folder: Path, target: str) -> None:
    index(folder, "two.safetensors")
    (folder / "two.safetensors").symlink_to(target)


def fifo(folder: Path) -> None:
    index(folder, "two.safetensors")
    os.mkfifo(folder / "two.safetensors")


def header(folder: Path, text: bytes, length: int | None = None) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length or len(text)) + text)


def sparse(folder: Path) -> None:
    """A header of 77 MB, all of it zeros that lie nowhere."""
    header(folder, b"{", 77_000_000)
    os.truncate(folder / WEIGHTS, 80_000_000)


def entry(**changes: object) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}).encode()


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "three million layers": (lambda folder: say(folder, num_hidden_layers=3_000_000), "found 3000000 layers and 21 t"),
    "a number of 4,000 digits": (lambda folder: say(folder, vocab_size=10**4000), "vocab_size: found 1000"),
    "a theta of 4,000 digits": (lambda folder: say(folder, rope_theta=10**4000, vocab_size=32), "found the shape"),
    "a deep config": (lambda folder: (folder / "config.json").write_text(DEEP), "config.json: damaged (it is nested"),
    "a config without end": (lambda folder: relink(folder, "config.json", "/dev/zero"), "config.json in it; expected"),
    "an endless file": (lambda folder: index(folder, "/dev/zero"), "weight_map: found '/dev/zero'; expected names of"),
    "a file outside": (lambda folder: index(folder, "../a.safetensors"), "weight_map: found '../a.safetensors'"),
    "a hidden file": (lambda folder: index(folder, ".safetensors"), "weight_map: found '.safetensors'"),
    "no name": (lambda folder: index(folder, 3), "weight_map: found 3; expected names of"),
    "a link to a device": (lambda folder: linked(folder, "/dev/zero"), "two.safetensors: no such file"),
    "a link to itself": (lambda folder: linked(folder, "two.safetensors"), "two.safetensors: no such file"),
    "a pipe": (fifo, "two.safetensors: no such file"),
    "a header of 77 MB": (sparse, "damaged (found a header of 77000000 bytes"),
    "a deep header": (lambda folder: header(folder, DEEP.encode()), "damaged (it is nested too deeply)"),
    "a shape of many axes": (lambda folder: header(folder, entry(shape=[10**9] * 10**5)), "damaged (x has no shape"),
    "a negative size": (lambda folder: header(folder, entry(shape=[-1, -1])), "damaged (x has no shape"),
    "a place that is no number": (lambda folder: header(folder, entry(data_offsets=[0.0, 4.0])), "damaged (x lies at"),
    "a gap": (lambda folder: header(folder, entry(data_offsets=[4, 8])), "damaged (x begins at 4; expected 0)"),
    "no type": (lambda folder: header(folder, entry(dtype=["F32"])), "damaged ("),
}


def relink(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("case", BOMBS)
def test_a_folder_is_refused_by_what_is_wrong(tmp_path: Path, case: str) -> None:
    spoil, message = BOMBS[case]
    source = folders.make("llama", tmp_path / "source")
    spoil(source)
    done = CliRunner().invoke(main, ["grow", str(source), str(tmp_path / "out"), "--set=num_layers=4"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert message in done.stderr
    assert len(done.stderr) < 600
    assert not (tmp_path / "out").exists()
    if case != "a config without end":
        (tmp_path / "texts").mkdir()
        with pytest.raises(InputError) as caught:
            make_plan(make_schedule(tmp_path / "texts", source))
        assert message in str(caught.value)


RESEALED: dict[str, tuple[dict[str, object], str]] = {
    "layers": ({"num_layers": 10**12}, "model.num_layers: found 1000000000000; expected at most 21, for so many"),
    "experts": ({"num_experts": 10**12}, "model.num_experts: found 1000000000000; expected at most 400000"),
    "a width": ({"hidden_size": 10**4000}, "model.hidden_size: found 1000"),
    "an eps": ({"norm_eps": 10**400}, "model.norm_eps: found 1000"),
}


LONG_NUMBERS = {"a width", "an eps"}  # which commands refuse before they look at the key


@pytest.mark.parametrize("case", RESEALED)
def test_a_resealed_manifest_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = RESEALED[case]
    shown = "found a number of more than 40 digits" if case in LONG_NUMBERS else message
    saved = make_checkpoint(tmp_path / "saved", byte_shape("llama"))
    content = json.loads((saved / MANIFEST).read_text())
    content["model"] |= changes
    content.pop("checksum")
    (saved / MANIFEST).write_bytes(sealed(json.dumps(content).encode()))
    for command in (["export", str(saved), "out"], ["grow", str(saved), "out", "--set=hidden_size=32"]):
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert shown in done.stderr
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError) as caught:
        make_plan(make_schedule(tmp_path / "texts", saved))
    assert message in str(caught.value)
