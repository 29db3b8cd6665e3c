"""What `raystage submit` sends, before there is a cluster."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from raystage.cli.jobs.sending import Request, pack, read, ship
from raystage.cli.main import main
from raystage.errors import ClusterLost, InputError
from raystage.jobs import client

SCHEDULE = """
name: mine
data: {source: text, path: ../text}
model: {hidden_size: 32, num_heads: 4, context_length: 32}
training: {workers: 1, global_batch_tokens: 64}
stages: [{name: one, model: {num_layers: 1}, until: {steps: 1}}]
"""
REQUEST = Request(
    schedule=Path("schedules/mine.yaml"), overrides=(), store="/mnt/store", name=None, address=None,
    wandb_mode=None, patience=None,
    working_dir=None, runtime_env=None, install=False, named=(), no_env=False, python="python", follow=False,
    detach=False,
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "schedules/mine.yaml": SCHEDULE,
        "text/a.txt": "a text",
        "text/.gitignore": "*",  # texts are often kept out of Git, and are sent all the same
        "notes.md": "",
        ".venv/bin/python": "",
        ".raystage/stages/x": "",
        "wandb/run": "",
        "cache/x": "",
        ".gitignore": "cache\n",
    }
    for name, content in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def packed(request: Request, own: dict, folder: Path) -> tuple[set[str], str, str]:
    package, place, file = pack(request, read(request), own, folder)
    return {name for name in ZipFile(package).namelist() if not name.endswith("/")}, place, file


def test_what_the_schedule_names_is_sent_and_nothing_else(project: Path, tmp_path: Path) -> None:
    names, place, file = packed(REQUEST, {}, tmp_path)
    assert names == {"files/schedules/mine.yaml", "files/text/a.txt", "files/text/.gitignore"}
    assert (place, file) == ("files/schedules", "mine.yaml")


def test_a_whole_folder_is_sent_without_what_never_goes(project: Path, tmp_path: Path) -> None:
    (project / "text/.gitignore").unlink()
    names, place, file = packed(replace(REQUEST, working_dir=Path()), {}, tmp_path)
    assert names == {"schedules/mine.yaml", "text/a.txt", "notes.md", ".gitignore"}
    assert (place, file) == (".", "schedules/mine.yaml")


def test_a_folder_must_have_the_schedule_in_it(project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--working-dir: found text, which does not have"):
        packed(replace(REQUEST, working_dir=Path("text")), {}, tmp_path)
    with pytest.raises(InputError, match="--working-dir: found no folder nowhere"):
        packed(replace(REQUEST, working_dir=Path("nowhere")), {}, tmp_path)
    with pytest.raises(InputError, match="--working-dir: found working_dir in the runtime environment, too"):
        packed(replace(REQUEST, working_dir=Path()), {"working_dir": "."}, tmp_path)


class Jobs:
    """A cluster that takes variables, and fails afterwards in one way. parcels: what lies there."""

    def __init__(self, failure: BaseException) -> None:
        self.parcels: dict[str, dict] = {}
        self.address, self._failure = "http://cluster:8265", failure

    def send(self, parcel: str, variables: dict) -> None:
        self.parcels[parcel] = variables

    def withdraw(self, parcel: str) -> None:
        del self.parcels[parcel]

    def ids(self) -> set[str]:
        if isinstance(self._failure, ClusterLost):
            raise self._failure
        return set()

    def submit(self, *arguments: object) -> None:
        assert self.parcels
        raise self._failure


@pytest.mark.parametrize("failure", [ClusterLost("gone"), InputError("refused"), KeyboardInterrupt()], ids=repr)
def test_no_variable_stays_on_a_cluster_that_gets_no_job(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    jobs = Jobs(failure)
    with pytest.raises(type(failure)):
        ship(jobs, REQUEST, read(REQUEST), tmp_path, lambda line: None)
    assert jobs.parcels == {}


def test_variables_are_sent_after_everything_that_may_be_refused_here(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (own := tmp_path / "env.yaml").write_text("pip: [einops]")
    jobs = Jobs(AssertionError("it was submitted"))
    with pytest.raises(InputError, match="--install: found pip in the runtime environment, too"):
        ship(jobs, replace(REQUEST, install=True, runtime_env=own), read(REQUEST), tmp_path, lambda line: None)
    assert jobs.parcels == {}


def test_what_cannot_be_sent_is_named(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(project / "text/pipe")
    with pytest.raises(InputError, match=r"text/pipe: cannot be sent with the job \(.*named pipe"):
        packed(REQUEST, {}, tmp_path)
    (project / "text/pipe").unlink()
    monkeypatch.setattr(client, "MOST_BYTES", 1)
    (project / "text/large.txt").write_text("x" * client.MOST_UNZIPPED)
    with pytest.raises(InputError, match="found more than 20 B to send; a job may have 1 B, zipped"):
        packed(REQUEST, {}, tmp_path / "not-copied")
    assert not (tmp_path / "not-copied").exists()


def test_too_much_is_refused_before_it_is_sent(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"found \d+ B to send, zipped; a job may have 100 B, zipped; put large"):
        packed(REQUEST, {}, tmp_path)


def test_the_command_to_submit_again_is_one_that_the_command_line_takes() -> None:
    asked = replace(
        REQUEST, overrides=("stages[0].until.steps=3",), name="other", wandb_mode="online", named=("MY_KEY",),
        working_dir=Path("my folder"), install=True, patience="2h", store="s3://b/p?region=x&scheme=http",
    )  # fmt: skip
    program, name, *arguments = shlex.split(asked.command("http://head:8265"))
    parsed = main.commands[name].make_context(name, arguments).params
    assert program == "raystage"
    assert parsed.pop("address") == "http://head:8265"
    assert parsed.pop("as_json") is False
    assert parsed == {key: value for key, value in vars(asked).items() if key != "address"}
