"""What W&B writes offline in a job whose store is no folder here gets into the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystage.errors import StorageError
from raystage.files.filesystem import Folder, open_folder
from raystage.runs.wandb_copy import WandbCopy

NEVER = 1e6


@pytest.fixture
def copy(tmp_path: Path) -> WandbCopy:
    return WandbCopy(open_folder(tmp_path / "store/runs/mine/wandb"), NEVER)


def written(copy: WandbCopy, name: str, content: str) -> None:
    path = Path(copy.folder) / "wandb" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_runs_are_copied_and_what_is_only_for_this_machine_is_not(copy: WandbCopy, tmp_path: Path) -> None:
    written(copy, "offline-run-1-abc/run-abc.wandb", "rows")
    written(copy, "offline-run-1-abc/files/media/table/t.json", "{}")
    written(copy, "debug.log", "this machine's")
    copy.end()
    store = tmp_path / "store/runs/mine/wandb"
    found = {str(path.relative_to(store)): path.read_text() for path in store.rglob("*") if path.is_file()}
    assert found == {
        "offline-run-1-abc/run-abc.wandb": "rows",
        "offline-run-1-abc/files/media/table/t.json": "{}",
    }
    assert not Path(copy.folder).exists()


def test_a_file_is_written_again_only_if_it_has_grown(
    copy: WandbCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    write = Folder.write_whole
    monkeypatch.setattr(
        Folder, "write_whole", lambda self, name, content: (names.append(name), write(self, name, content))
    )
    written(copy, "offline-run-1-abc/run-abc.wandb", "rows")
    copy.copy()
    copy.copy()
    written(copy, "offline-run-1-abc/run-abc.wandb", "rows, and more")
    copy.end()
    assert names == ["run-abc.wandb"] * 2
    assert (tmp_path / "store/runs/mine/wandb/offline-run-1-abc/run-abc.wandb").read_text() == "rows, and more"


def test_what_a_store_refuses_stays(
    copy: WandbCopy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("s3://bucket: cannot be written")

    monkeypatch.setattr(Folder, "write_whole", refuse)
    written(copy, "offline-run-1-abc/run-abc.wandb", "rows")
    copy.end()
    assert f"what W&B wrote stays in {copy.folder}/wandb: s3://bucket" in caplog.text
    assert (Path(copy.folder) / "wandb/offline-run-1-abc/run-abc.wandb").read_text() == "rows"
