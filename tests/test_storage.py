"""Folders on any file system: here the local one and pyarrow's in-memory stand-in for an object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from raystage.errors import InputError
from raystage.storage import Folder, open_folder


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return open_folder(tmp_path / "store")
    return Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "store")


def test_what_is_written_is_read_back(folder: Folder) -> None:
    (folder / "a").make() if folder.is_local else folder.system.create_dir("store/a")
    (folder / "a").write_whole("one.json", b"1")
    (folder / "a").write_whole("one.json", b"22")
    assert (folder / "a").read("one.json") == b"22"
    assert (folder / "a").names() == ["one.json"]
    assert (folder / "a").size_of("one.json") == 2
    assert folder.names() == ["a"]


def test_what_is_not_there_is_none_or_nothing(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.size_of("one.json") is None
    with pytest.raises(FileNotFoundError):
        folder.read("one.json")
    folder.delete()


def test_ranges_are_read_without_the_rest(folder: Folder) -> None:
    folder.system.create_dir(folder.path)
    with folder.open_writer("numbers") as file:
        file.write(b"0123456789")
    with folder.open_reader("numbers") as file:
        assert bytes(file.read_at(3, 4)) == b"456"


def test_delete_takes_the_whole_folder(folder: Folder) -> None:
    folder.system.create_dir((folder / "a").path)
    (folder / "a").write_whole("one", b"1")
    folder.delete()
    assert folder.names() == []


def test_a_path_becomes_absolute_and_a_wrong_uri_is_an_input_error(tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder(".raystage").path == str(tmp_path / ".raystage")
    assert open_folder("file://" + str(tmp_path)).path == str(tmp_path)
    with pytest.raises(InputError, match="store: 'nowhere://x' cannot be opened"):
        open_folder("nowhere://x")
