"""Folders on any file system: the same on the local one and on an object store; and a disk that is full."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raystage.errors import CheckpointError, InputError, StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.models.shape import ModelShape
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.writing import WrittenShard, placed, shard_name, write_shard


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return open_folder(tmp_path / "store")
    return open_folder(request.getfixturevalue("s3").uri(f"bucket/{uuid.uuid4().hex}"))


def test_what_is_written_is_read_back(folder: Folder) -> None:
    (folder / "a").write_whole("one.json", b"1")
    (folder / "a").write_whole("one.json", b"22")
    assert (folder / "a").read("one.json") == b"22"
    assert (folder / "a").names() == ["one.json"]
    assert (folder / "a").size_of("one.json") == 2
    assert (folder / "a").exists()
    assert (folder / "a" / "one.json").is_file()
    assert folder.names() == ["a"]


def test_what_is_not_there_is_none_or_nothing(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.size_of("one.json") is None
    assert not folder.exists()
    assert not folder.is_file()
    with pytest.raises(FileNotFoundError):
        folder.read("one.json")
    with pytest.raises(FileNotFoundError):
        folder.open_reader("one.json")
    folder.delete()


def test_ranges_are_read_without_the_rest(folder: Folder) -> None:
    def write(file: pa.NativeFile) -> None:
        file.write(b"01234")
        folder.begin_sync("numbers")
        file.write(b"56789")

    folder.write_stream("numbers", write)
    folder.sync("numbers")
    with folder.open_reader("numbers") as file:
        assert file.read_at(3, 4) == b"456"
        assert file.read_at(3, 9) == b"9"
        place = bytearray(b"....")
        assert file.read_into(memoryview(place)[1:], 2) == 3
        assert place == b".234"
        assert file.read_into(memoryview(place), 8) == 2
        assert place == b"8934"


def test_delete_takes_the_whole_folder(folder: Folder) -> None:
    (folder / "a" / "b").write_whole("one", b"1")
    folder.delete()
    assert folder.names() == []
    assert not (folder / "a").exists()


def test_what_a_failed_writer_began_goes(folder: Folder) -> None:
    def write(file: pa.NativeFile) -> None:
        file.write(b"half of it")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        folder.write_stream("shard", write)
    assert folder.names() == []


def test_a_path_becomes_absolute_and_a_wrong_uri_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder(".raystage").path == str(tmp_path / ".raystage")
    assert open_folder("file://" + str(tmp_path)).path == str(tmp_path)
    with pytest.raises(InputError, match="store: 'nowhere://x' cannot be opened"):
        open_folder("nowhere://x")


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=f"^{tmp_path}/taken/one: cannot be written|^{tmp_path}/taken: cannot be"):
        open_folder(tmp_path / "taken").write_whole("one", b"1")


# --- a disk that is full ------------------------------------------------------------------------

# A limit on the size of a file refuses a write in its middle, as a full disk does.
LIMIT_BYTES = 100_000
WRITING = """
import sys
import numpy as np
from raystage.errors import StorageError
from raystage.files.filesystem import open_folder
from raystage.storage.shards.writing import write_shard

folder, what = open_folder(sys.argv[1]), sys.argv[2]
try:
    if what == "shard":
        pieces = [("weight", "fp32", 0, np.zeros(10)), ("other", "fp32", 0, np.zeros(100_000))]
        write_shard(folder, "shard", pieces)
    else:
        folder.write_whole(what, bytes(200_000))
except StorageError as error:
    sys.exit(str(error))
"""


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))


def write_on_a_full_disk(folder: Folder, what: str) -> str:
    """The one error that a process ends with which writes what there is no room for."""
    command = [sys.executable, "-c", WRITING, folder.path, what]
    done = subprocess.run(command, preexec_fn=limit_files, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    return done.stderr.strip()


def test_a_shard_without_room_is_one_error_and_the_checkpoint_before_loads(tmp_path: Path) -> None:
    before, after = open_folder(tmp_path / "before"), open_folder(tmp_path / "after")
    shard = write_shard(before, shard_name(0, 1), [("weight", "fp32", 0, np.arange(10))])
    checkpoint.commit(before, manifest_of(shard))
    error = write_on_a_full_disk(after, "shard")
    assert error.startswith(f"{after.path}/shard: cannot be written (")
    assert "File too large" in error
    assert "\n" not in error
    assert after.names() == []
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        Checkpoint(after)
    np.testing.assert_array_equal(Checkpoint(before).read("weight", "fp32", 0, 10), np.arange(10))


def test_a_record_without_room_leaves_the_one_before(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_whole("record.json", b"old")
    error = write_on_a_full_disk(folder, "record.json")
    assert error.startswith(f"{folder.path}/record.json: cannot be written (")
    assert folder.names() == ["record.json"]
    assert folder.read("record.json") == b"old"


def manifest_of(shard: WrittenShard) -> checkpoint.Manifest:
    shape = ModelShape("llama", 1, 8, 2, 2, 4, 16, 11, 10)
    entries = (checkpoint.ParameterEntry("weight", (10,), "float32", 0),)
    return checkpoint.Manifest(shape, entries, placed([shard]), "key", 0, 0, {}, {}, {}, {})


def test_files_are_listed_with_size_and_time_however_deep(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "some")
    assert folder.files() == []
    (folder / "b/c").write_whole("d", b"1234")
    folder.write_whole("a", b"")
    found = folder.files()
    assert [(file.path, file.bytes) for file in found] == [("a", 0), ("b/c/d", 4)]
    assert found[1].changed_at == (tmp_path / "some/b/c/d").stat().st_mtime


def test_files_below_are_left_out_where_only_the_folder_is_asked_for(folder: Folder) -> None:
    folder.write_whole("one", b"1")
    (folder / "below").write_whole("two", b"22")
    assert [one.path for one in folder.files()] == ["below/two", "one"]
    assert [(one.path, one.bytes) for one in folder.files(deep=False)] == [("one", 1)]


def test_a_file_is_deleted_once_and_a_second_time_nothing_happens(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    folder.write_whole("a", b"1")
    folder.write_whole("b", b"2")
    for _ in range(2):
        folder.delete_file("a")
        assert folder.names() == ["b"]
    (folder / "not there").delete_file("a")
