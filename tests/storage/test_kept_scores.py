"""The losses of documents in a store: found again bit for bit, and scored again where a file is damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from raystage.files.filesystem import open_folder
from raystage.storage.scores import KeptScores, ScoredPart
from raystage.storage.store import Store

LOSSES = np.array([2.5, 0.1 + 0.2, 1e-9])


@pytest.fixture
def kept(tmp_path: Path) -> KeptScores:
    return KeptScores(Store(open_folder(str(tmp_path))), "f" * 64, "0123456789abcdef", [3, 1])


def file_of(kept: KeptScores, number: int = 0) -> Path:
    return Path(kept.folder.path) / f"{number:05}-of-00002.losses"


def test_losses_are_found_again_bit_for_bit(kept: KeptScores) -> None:
    assert kept.missing() == [0, 1]
    kept.write(0, ScoredPart(LOSSES, 1.5))
    assert kept.missing() == [1]
    assert kept.read(0).seconds == 1.5
    assert kept.read(0).losses.tobytes() == LOSSES.tobytes()
    assert [file.name for file in file_of(kept).parent.iterdir()] == ["00000-of-00002.losses"]


def test_what_was_kept_first_stays(kept: KeptScores) -> None:
    """So that no worker reads other losses than the one that has read them before."""
    kept.write(0, ScoredPart(LOSSES, 1.5))
    kept.write(0, ScoredPart(LOSSES + 1, 1.5))
    assert kept.read(0).losses.tolist() == LOSSES.tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:],
        lambda content: content.replace(b"1.5", b"2.5"),
        lambda content: content.partition(b"\n")[0],
        lambda content: b"{}\n" + content.partition(b"\n")[2],
        lambda content: b"[1]\n",
        lambda content: b"",
        lambda content: b"\xff" * 40,
    ],
)
def test_a_damaged_file_counts_as_missing_and_is_replaced(
    kept: KeptScores, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write(0, ScoredPart(LOSSES, 1.5))
    file = file_of(kept)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert kept.missing() == [0, 1]
    assert f"{file}: " in caplog.text
    assert "scored again" in caplog.text
    kept.write(0, ScoredPart(LOSSES, 1.5))
    assert kept.read(0).losses.tolist() == LOSSES.tolist()


def test_a_file_of_other_documents_is_not_used(kept: KeptScores) -> None:
    kept.write(1, ScoredPart(LOSSES, 1.5))
    assert kept.read(1) is None


def test_what_is_no_number_is_not_used(kept: KeptScores) -> None:
    """A whole file with a right checksum, that raystage would not write."""
    kept.write(0, ScoredPart(np.array([1.0, np.nan, 2.0]), 1.5))
    assert kept.read(0) is None
