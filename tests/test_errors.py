"""Errors travel: from workers to the driver, through Ray, which copies them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from raystage.errors import CheckpointError, InputError, RaystageError


@pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copied", "sent"])
@pytest.mark.parametrize(
    "error",
    [
        InputError("found 0; expected more", key="training.workers", file="a.yaml"),
        InputError("no such file", file="b.yaml"),
        CheckpointError("shard-00000: cut short"),
    ],
    ids=str,
)
def test_an_error_says_the_same_wherever_it_comes_out(error: RaystageError, way: Callable) -> None:
    found = way(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.exit_status == error.exit_status
