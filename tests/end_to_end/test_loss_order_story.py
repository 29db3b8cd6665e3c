"""A run that sorts its text by the loss under its first stage, as a user has it: killed, continued, and read again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from conftest import Raystage, write_tiny

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(1800)]

SORTED = ("--set", "stages[1].data={curriculum: {by: {loss: small}, over: 0.5}}")
QUIETLY = ("--json", "--wandb", "disabled")


def losses_kept(store: Path, key: str) -> dict[str, tuple[bytes, int]]:
    """By name the files of losses beside a stage, and when they were written."""
    files = (store / "stages" / key / "scores").rglob("*.losses")
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_documents_are_scored_once_and_read_on_after_a_stop(raystage: Raystage) -> None:
    schedule, store = write_tiny(raystage.folder), raystage.folder / ".raystage"
    assert raystage.stop_at("full] step", signal.SIGKILL, "run", schedule, *SORTED, *QUIETLY) == -signal.SIGKILL
    small, full = raystage.report("tiny")["stages"]
    assert small["state"] == "FINISHED"
    assert full["state"] != "FINISHED"
    kept = losses_kept(store, small["key"])
    assert len(kept) > 4
    raystage("run", schedule, *SORTED, *QUIETLY)
    small, full = raystage.report("tiny")["stages"]
    assert "scoring" not in small
    assert full["scoring"]["model"] == "small"
    assert full["scoring"]["flops"] < full["flops"]
    planned = raystage("plan", schedule, *SORTED, "--json").stdout
    assert f'"flops": {full["flops"]}' in planned  # exactly, for each byte is a token
    other = ("--set", "stages[1].data={curriculum: {by: {loss: small}, from: hard, over: 0.5}}", "--name", "other")
    raystage("run", schedule, *other, *QUIETLY)
    hard = raystage.report("other")["stages"][1]
    assert hard["scoring"]["tokens"] == full["scoring"]["tokens"]
    assert hard["eval_loss"] != full["eval_loss"]
    assert losses_kept(store, small["key"]) == kept  # nothing was scored a second time
    raystage("store", "verify")
