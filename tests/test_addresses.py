"""Passwords and keys in addresses: refused, and not repeated, wherever an address may stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import started_models
from raystage.cli.main import main
from raystage.config import yaml_file
from raystage.errors import LONGEST_MESSAGE, RaystageError, StorageError
from raystage.safe_text import secret_in, without_secrets
from raystage.units import shown

GOOD = """
name: tiny
data: {source: text, path: FOLDER, validation_fraction: 0.5}
model: {hidden_size: 16, num_heads: 4, context_length: 8}
training: {global_batch_tokens: 64}
stages: [{name: small, model: {num_layers: 2}, until: {tokens: 640}}]
"""
SECRET = "s3cr3t"
SECRET_ADDRESSES = [
    f"s3://b/x?secret_key={SECRET}",
    f"s3://b/x?region=eu-west-1&session_token={SECRET}",
    f"s3://b/x?endpoint_override=user:{SECRET}@host",
    f"s3://b/x?endpoint_override=http%3A%2F%2Fuser%3A{SECRET}%40host",
    f"s3://AKIA:{SECRET}@b/x",
    f"s3://AKIA:{SECRET}/{SECRET}@b/x",  # keys have slashes in them
    f"s3://AKIA:12/{SECRET}@b/x",
    f"s3://AKIA%3A{SECRET}@b/x",
    f"S3://{SECRET}@b/x",
    f"gs://user:{SECRET}@b/x",
    f"gs://user:p?{SECRET}@b/x",
    f"gs://b/x?access_token={SECRET}",
    f"abfs://container@account/x?account_key={SECRET}",
    f"abfss://account:{SECRET}@fs.dfs.core.windows.net/x",
    f"hdfs://user:{SECRET}@host:9000/x",
    f"https://{SECRET}@huggingface.co/x",
    f"ray://user:{SECRET}@host:10001",
    f"user:{SECRET}@host:6379",
]
OPEN_ADDRESSES = [
    "s3://b/x?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http",
    "s3://b/step:1@2",
    "gs://anonymous@b/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "hdfs://user@host:9000/x@y",
    "http://[::1]:80/x",
    "/home/me/a@b",
    "10.0.0.1:6379",
    "auto",
    "org/model",
]
URIS = [one for one in SECRET_ADDRESSES if "://" in one]


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_a_secret_is_found_and_never_shown(address: str) -> None:
    assert secret_in(address)
    assert SECRET not in secret_in(address)
    for said in (without_secrets(f"cannot open '{address}' (no host in {address})"), shown(address)):
        assert SECRET not in said
    assert SECRET not in str(StorageError(f"{address}: no answer"))


@pytest.mark.parametrize("address", OPEN_ADDRESSES)
def test_what_is_no_secret_is_shown_as_it_is(address: str) -> None:
    assert secret_in(address) is None
    assert without_secrets(f"{address}: no answer") == f"{address}: no answer"


def test_what_ends_the_clause_is_not_of_an_address() -> None:
    said = without_secrets(f"in s3://b/x?secret_key={SECRET}; expected elsewhere, not in s3://b/x?region=y, z")
    assert said == "in s3://b/x?secret_key=***; expected elsewhere, not in s3://b/x?region=y, z"


def test_settings_with_a_secret_are_said_without_it() -> None:
    said = without_secrets(f"--set a.api_key={SECRET} tokens=5 grow_tokens=7 password={SECRET} tokenizer=x")
    assert said == "--set a.api_key=*** tokens=5 grow_tokens=7 password=*** tokenizer=x"


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    file = tmp_path / "schedule.yaml"
    file.write_text(GOOD.replace("FOLDER", str(tmp_path)))
    return file


def refused(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert SECRET not in done.output
    assert done.output.startswith("raystage: ")
    assert done.output.count("\n") == 1
    return done.output


# By command the place where a URI stands, and its name in the message. MODEL is a folder that can be grown.
COMMANDS = {
    ("report", "tiny", "--store", "URI"): "store", ("store", "list", "--store", "URI"): "store",
    ("status", "--store", "URI"): "store", ("export", "--store=.", "URI", "out"): "CHECKPOINT",
    ("grow", "--set=num_layers=4", "--explain", "URI"): "SOURCE",
    ("grow", "--set=num_layers=4", "MODEL", "URI"): "TARGET",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started_models.make(tmp_path_factory.mktemp("model"), "llama")


@pytest.mark.parametrize("address", URIS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_opens_or_repeats_a_uri_with_a_secret(command: tuple[str, ...], address: str, model: Path) -> None:
    said = refused(*({"URI": address, "MODEL": model}.get(one, one) for one in command))
    assert said.startswith(f"raystage: {COMMANDS[command]}: found {secret_in(address)} in the URI ")


@pytest.mark.parametrize("address", URIS)
@pytest.mark.parametrize("key", ["data.path", "data.tokenizer", "init.from", "stages[0].data.path", "name"])
def test_a_schedule_holds_no_secret(schedule: Path, key: str, address: str) -> None:
    problem = f"{key}: found {secret_in(address)}; expected none"
    assert f"--set {problem}" in refused("plan", schedule, "--set", f'{key}="{address}"')
    content = yaml.safe_load(schedule.read_text())
    *sections, name = yaml_file.parse_path(key)
    section = content
    for one in sections:
        section = section[one] if isinstance(one, int) else section.setdefault(one, {})
    section[name] = address
    schedule.write_text(yaml.safe_dump(content))
    assert problem in refused("plan", schedule)


@pytest.mark.parametrize("text", ["a", "a-", "a:", "s3:", "-"])
def test_a_long_text_of_a_foreign_file_takes_no_longer_than_it_is_long(text: str) -> None:
    """Where the time grew with the square of the length, this would take an hour."""
    long = text * 200_000 + "=1 x@y:/z"
    assert without_secrets(long).startswith(text)
    assert len(str(RaystageError(long))) == LONGEST_MESSAGE


def test_a_password_behind_a_long_name_is_hidden() -> None:
    assert "hunter2" not in without_secrets(f"{'x' * 1000}:hunter2@host")


def test_keys_in_options_are_refused(schedule: Path) -> None:
    option = f"training.evaluate.metrics=[{{function: a:b, options: {{api_key: {SECRET}}}}}]"
    assert "found a value for api_key; expected none" in refused("plan", schedule, "--set", option)


@pytest.mark.parametrize("address", [one for one in SECRET_ADDRESSES if one.startswith(("ray", "user"))])
def test_a_cluster_is_named_without_a_secret(
    schedule: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a\n" * 99)
    (tmp_path / "b.txt").write_text("b\n" * 99)
    store = tmp_path / "store"
    assert "--address: found a password" in refused("run", schedule, "--store", store, "--address", address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert "RAY_ADDRESS: found a password" in refused("run", schedule, "--store", store)
    assert not store.exists()
