"""A whole run whose store is an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Raystage
from s3_server import S3Server

pytestmark = pytest.mark.end_to_end
SHORT = ["--set", "stages[0].until.steps=20", "--set", "stages[1].until.steps=20"]


def test_a_run_keeps_all_in_an_object_store_and_a_second_one_reuses_it(
    s3: S3Server, raystage: Raystage, tiny: Path, tmp_path: Path
) -> None:
    store = s3.uri("bucket/tiny")
    raystage("run", tiny, *SHORT, "--store", store)
    first = raystage.report_in(store, "tiny")
    assert [stage["state"] for stage in first["stages"]] == ["FINISHED", "FINISHED"]
    assert not (tmp_path / ".raystage").exists()
    raystage("run", tiny, *SHORT, "--store", store)
    second = raystage.report_in(store, "tiny")
    assert [stage["state"] for stage in second["stages"]] == ["REUSED", "REUSED"]
    assert [stage["eval_loss"] for stage in second["stages"]] == [stage["eval_loss"] for stage in first["stages"]]
