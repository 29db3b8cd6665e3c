"""Which path of a space mattered."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from raystage.importance import importance

OPERATORS, SEEDS = ("stack", "interleave", "identity"), (0, 1, 2)


def rows(metric: str = "eval_loss", sign: int = 1) -> list[dict[str, Any]]:
    """Trials whose figure the operator decides, and the seed hardly at all."""
    return [
        {
            "config": {"operator": operator, "seed": seed, "always": [1, 2]},
            "objectives": {metric: sign * (OPERATORS.index(operator) + 0.01 * seed)},
        }
        for operator, seed in product(OPERATORS, SEEDS)
    ]


@pytest.mark.parametrize(("metric", "sign"), [("eval_loss", 1), ("compute_saved", -1)])
def test_what_decides_comes_first_and_all_shares_make_one(metric: str, sign: int) -> None:
    found = importance(rows(metric, sign), metric)
    assert list(found) == ["operator", "seed"]
    assert found["operator"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_it_is_the_same_every_time() -> None:
    assert importance(rows(), "eval_loss") == importance(rows(), "eval_loss")


def test_lists_are_values_like_others() -> None:
    listed = [{**row, "config": {"layers": [OPERATORS.index(row["config"]["operator"])]}} for row in rows()]
    assert importance(listed, "eval_loss") == {"layers": 1.0}


def test_paths_that_some_trials_have_no_value_for_are_left_out() -> None:
    some = rows()
    del some[0]["config"]["seed"]
    assert list(importance(some, "eval_loss")) == ["operator"]


def test_of_few_trials_or_of_one_value_nothing_is_said() -> None:
    assert importance(rows()[:3], "eval_loss") == {}
    assert importance([{**row, "config": {"operator": "stack"}} for row in rows()], "eval_loss") == {}
    assert importance([{**row, "objectives": {}} for row in rows()], "eval_loss") == {}
    assert importance([], "eval_loss") == {}
