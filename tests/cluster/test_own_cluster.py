"""What a cluster of the run's own is started with, before anything is started; and what others have left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raystage.cluster import own, train_notes
from raystage.cluster.joined import joined
from raystage.cluster.own import LONGEST_FOLDER_BYTES, ray_folder
from raystage.cluster.shutdown import signals_blocked
from raystage.cluster.train_notes import OLD_SECONDS, new_notes, remove_abandoned_notes
from raystage.errors import InputError, RaystageError
from raystage.files.filesystem import open_folder
from raystage.storage.processes import this_process

IGNORES = "import signal, sys; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= {signal.SIGTERM, signal.SIGHUP})"


def test_what_is_started_unheard_does_not_hear_sigterm_and_this_process_does() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with signals_blocked():
        said = subprocess.run([sys.executable, "-c", IGNORES], capture_output=True, text=True).stdout
    assert said == "True\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_folder_with_too_long_a_name_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's sockets would have names of more than 107 bytes there."""
    long = tmp_path / ("d" * 60)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(own, "_system_folder", lambda: str(long))
    folder = ray_folder()
    assert len(os.fsencode(folder)) <= LONGEST_FOLDER_BYTES
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(long.iterdir()) == []


def test_a_folder_of_somebody_else_or_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").touch()
    assert not own._is_private(tmp_path / "link")
    assert not own._is_private(tmp_path / "file")
    assert not own._is_private(Path("/proc/raystage"))
    assert own._is_private(tmp_path / "there")
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o700


def test_where_no_folder_will_do_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_is_private", lambda folder: False)
    with pytest.raises(RaystageError, match=r"no folder for the sockets of a Ray cluster.*RAY_TMPDIR"):
        ray_folder()


def test_auto_is_no_cluster_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match="found auto, but no cluster was started on this machine by `ray start`"):
        joined("auto").__enter__()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:9")
    with pytest.raises(InputError, match=r"no Ray cluster answers at .127\.0\.0\.1:9."):
        joined("auto").__enter__()


def test_the_notes_of_drivers_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_folder(tmp_path)
    alive = new_notes(str(tmp_path), "a11e" * 16)
    elsewhere = replace(this_process(), machine="another")
    dead = replace(this_process(), started=this_process().started - 100)
    for key, owner in (("e15e", elsewhere), ("dead", dead)):
        monkeypatch.setattr(train_notes, "this_process", lambda owner=owner: owner)
        new_notes(str(tmp_path), key * 16)
    for key, age in (("01d", 2 * OLD_SECONDS), ("0e", 0.0)):  # of a version that did not say whose they are
        old_folder(tmp_path / "ray" / f"{key}-01234567", age)
    (tmp_path / "ray/Thumbs.db").touch()
    remove_abandoned_notes(store)
    left = {path.name.split("-")[0] for path in (tmp_path / "ray").iterdir()}
    assert left == {"a11ea11ea11e", "e15ee15ee15e", "0e", "Thumbs.db"}
    alive.delete()


def old_folder(folder: Path, age: float = 2 * OLD_SECONDS) -> Path:
    folder.mkdir(parents=True)
    (folder / "snapshot.json").touch()
    os.utime(folder / "snapshot.json", times=(time.time() - age,) * 2)
    return folder


def test_a_folder_called_ray_that_is_no_store_s_keeps_what_it_has(tmp_path: Path) -> None:
    """Such as Ray's sources, where the store is the working directory."""
    sources = old_folder(tmp_path / "ray/python")
    elsewhere = old_folder(tmp_path / "elsewhere/0123456789ab-01234567")
    (tmp_path / "ray/ba9876543210-01234567").symlink_to(elsewhere)
    remove_abandoned_notes(open_folder(tmp_path))
    assert (sources / "snapshot.json").exists()
    assert (elsewhere / "snapshot.json").exists()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/ray").symlink_to(tmp_path / "elsewhere")
    remove_abandoned_notes(open_folder(tmp_path / "store"))
    assert (elsewhere / "snapshot.json").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"pid": 1, "host": "", "machine": "", "started": 1' + b"0" * 400
                                     + b"}", b" " * 100_000])  # fmt: skip
def test_notes_of_a_broken_owner_stay(tmp_path: Path, content: bytes) -> None:
    notes = tmp_path / "ray/0123456789ab-01234567"
    notes.mkdir(parents=True)
    (notes / "driver.json").write_bytes(content)
    remove_abandoned_notes(open_folder(tmp_path))
    assert notes.exists()
