"""Which variables of the environment go with a job."""

from __future__ import annotations

import pytest

from raystage.errors import InputError
from raystage.jobs.variables import sent_variables, shown_secrets

KEYS = {"WANDB_API_KEY": "w", "HF_TOKEN": "h", "AWS_SECRET_ACCESS_KEY": "a", "AWS_PROFILE": "mine", "HOME": "/home/me"}


@pytest.mark.parametrize(
    ("uris", "mode", "sent"),
    [
        (["/mnt/store"], "offline", {"HF_TOKEN"}),
        (["/mnt/store"], "online", {"HF_TOKEN", "WANDB_API_KEY"}),
        (["/mnt/store", "s3://bucket/text"], "disabled", {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}),
    ],
)
def test_a_job_gets_the_keys_that_it_uses(uris: list[str], mode: str, sent: set[str]) -> None:
    assert sent_variables(KEYS, [], uris, mode).keys() == sent


def test_what_is_named_goes_too() -> None:
    assert sent_variables({"MY_KEY": "1", **KEYS}, ["MY_KEY"], [], "disabled") == {"HF_TOKEN": "h", "MY_KEY": "1"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("MISSING", "--env: found MISSING, which is not set here; expected a variable that is"),
        ("TOKEN=abc", "--env: found a value for TOKEN; expected the name alone, and the value in the environment"),
    ],
)
def test_what_is_named_must_be_set_and_its_value_is_not_repeated(named: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        sent_variables({}, [named], [], "offline")
    assert str(refused.value) == message


def test_secrets_of_a_runtime_environment_are_noticed() -> None:
    assert shown_secrets({"WANDB_API_KEY": "1", "NCCL_DEBUG": "INFO", "HF_TOKEN": "2"}) == ["WANDB_API_KEY", "HF_TOKEN"]
