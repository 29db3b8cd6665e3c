"""Options that all commands share."""

from __future__ import annotations

import pytest

from raystage.cli.options import cluster_address, wandb_mode_for
from raystage.errors import InputError


@pytest.mark.parametrize(
    ("given", "environment", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_MODE": ""}, "offline"),
        (None, {"WANDB_DISABLED": "true"}, "disabled"),
        (None, {"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ("offline", {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "offline"),
        ("online", {"WANDB_MODE": "sometimes"}, "online"),
    ],
)
def test_wandbs_own_variables_hold_unless_the_option_is_given(
    given: str | None, environment: dict[str, str], mode: str
) -> None:
    assert wandb_mode_for(given, environment) == mode


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(InputError, match="WANDB_MODE: found 'sometimes'; expected offline, online, disabled"):
        wandb_mode_for(None, {"WANDB_MODE": "sometimes"})


def test_local_is_a_cluster_of_the_runs_own_also_where_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(None) == "10.0.0.1:6379"
    assert cluster_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster_address(None) is None
