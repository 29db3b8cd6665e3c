"""What a command says and does differently in a Ray job."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from raystage.cli.jobs.inside import continuing, how_to_sync, wandb_place
from raystage.files.filesystem import Folder, open_folder

IN_JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
REMOTE = Folder(
    fs.SubTreeFileSystem("/", fs.LocalFileSystem()), "bucket/runs/mine", "s3", "region=eu-west-1&scheme=http"
)


@pytest.mark.parametrize(
    ("environment", "arguments", "command"),
    [
        ({}, ["/usr/bin/raystage", "run", "mine.yaml"], "raystage run mine.yaml --set a=1"),
        (IN_JOB, ["jobs/run.py", "my file.yaml"], "ray job submit -- python jobs/run.py 'my file.yaml'"),
        (IN_JOB, ["/usr/bin/raystage", "run", "mine.yaml"], "ray job submit -- raystage run mine.yaml"),
        ({**IN_JOB, "RAYSTAGE_SUBMISSION": "raystage submit mine.yaml"}, ["driver.py"], "raystage submit mine.yaml"),
    ],
)
def test_what_continues_a_job_is_its_submission(environment: dict, arguments: list[str], command: str) -> None:
    assert continuing("raystage run mine.yaml --set a=1", arguments, environment) == command


def test_what_wandb_writes_in_a_job_gets_into_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = open_folder(tmp_path)
    assert wandb_place(local) == (None, None)
    monkeypatch.setenv(*next(iter(IN_JOB.items())))
    assert wandb_place(local) == (str(tmp_path), None)
    assert wandb_place(REMOTE) == (None, REMOTE / "wandb")


def test_the_way_to_sync_it_can_be_pasted(tmp_path: Path) -> None:
    assert how_to_sync(open_folder("/mnt/my store")) == "W&B: wandb sync '/mnt/my store/wandb'/offline-run-*"
    said = how_to_sync(REMOTE)
    assert said.startswith("W&B: s3://bucket/runs/mine/wandb?region=eu-west-1&scheme=http; to upload it, copy it")
