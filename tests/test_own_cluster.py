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

from raystage import own_cluster, train_notes
from raystage.errors import InputError, RaystageError
from raystage.joined_cluster import joined
from raystage.notice import unheard
from raystage.own_cluster import LONGEST_FOLDER_BYTES, ray_folder
from raystage.processes import this_process
from raystage.storage import open_folder
from raystage.train_notes import OLD_SECONDS, new_notes, remove_abandoned_notes

IGNORES = "import signal, sys; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= {signal.SIGTERM, signal.SIGHUP})"


def test_what_is_started_unheard_does_not_hear_sigterm_and_this_process_does() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with unheard():
        said = subprocess.run([sys.executable, "-c", IGNORES], capture_output=True, text=True).stdout
    assert said == "True\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_folder_with_too_long_a_name_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's sockets would have names of more than 107 bytes there."""
    long = tmp_path / ("d" * 60)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(own_cluster, "_system_folder", lambda: str(long))
    folder = ray_folder()
    assert len(os.fsencode(folder)) <= LONGEST_FOLDER_BYTES
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(long.iterdir()) == []


def test_a_folder_of_somebody_else_or_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").touch()
    assert not own_cluster._is_private(tmp_path / "link")
    assert not own_cluster._is_private(tmp_path / "file")
    assert not own_cluster._is_private(Path("/proc/raystage"))
    assert own_cluster._is_private(tmp_path / "there")
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o700


def test_where_no_folder_will_do_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_cluster, "_is_private", lambda folder: False)
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
    alive = new_notes(str(tmp_path), "alive")
    elsewhere = replace(this_process(), machine="another")
    dead = replace(this_process(), started=this_process().started - 100)
    for name, owner in (("elsewhere", elsewhere), ("dead", dead)):
        monkeypatch.setattr(train_notes, "this_process", lambda owner=owner: owner)
        new_notes(str(tmp_path), name)
    for name, age in (("old", 2 * OLD_SECONDS), ("new", 0.0)):  # of a version that did not say whose they are
        (tmp_path / "ray" / name).mkdir()
        (tmp_path / "ray" / name / "snapshot.json").touch()
        os.utime(tmp_path / "ray" / name / "snapshot.json", times=(time.time() - age,) * 2)
    (tmp_path / "ray/Thumbs.db").touch()
    remove_abandoned_notes(store)
    left = {path.name.split("-")[0] for path in (tmp_path / "ray").iterdir()}
    assert left == {"alive", "elsewhere", "new", "Thumbs.db"}
    alive.delete()
