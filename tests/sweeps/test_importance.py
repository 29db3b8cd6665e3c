"""Which path of a space mattered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from raystage.results.sweep_report import ObjectiveRow, TrialRow
from raystage.sweeps.reports.importance import importance
from raystage.sweeps.space import Dimension
from sweep_results import make_row

LOSS = ObjectiveRow(metric="eval_loss")
OPERATORS, SEEDS = ("stack", "interleave", "identity"), (0, 1, 2)


CHOICES = [Dimension(path, "choice", ()) for path in ("operator", "seed", "always", "layers")]


def rows(metric: str = "eval_loss", sign: int = 1) -> list[TrialRow]:
    """Trials whose figure the operator decides, and the seed hardly at all."""
    return [
        make_row(
            number,
            config={"operator": operator, "seed": seed, "always": [1, 2]},
            objectives={metric: sign * (OPERATORS.index(operator) + 0.01 * seed)},
        )
        for number, (operator, seed) in enumerate(product(OPERATORS, SEEDS))
    ]


@pytest.mark.parametrize(("metric", "sign"), [("eval_loss", 1), ("compute_saved", -1)])
def test_what_decides_comes_first_and_all_shares_make_one(metric: str, sign: int) -> None:
    found = importance(rows(metric, sign), ObjectiveRow(metric=metric), CHOICES)
    assert list(found) == ["operator", "seed"]
    assert found["operator"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_it_is_the_same_every_time() -> None:
    assert importance(rows(), LOSS, CHOICES) == importance(rows(), LOSS, CHOICES)


def test_lists_are_values_like_others() -> None:
    listed = [replace(row, config={"layers": [OPERATORS.index(row.config["operator"])]}) for row in rows()]
    assert importance(listed, LOSS, CHOICES) == {"layers": 1.0}


def test_paths_that_some_trials_have_no_value_for_are_left_out() -> None:
    first, *others = rows()
    without = {path: value for path, value in first.config.items() if path != "seed"}
    assert list(importance([replace(first, config=without), *others], LOSS, CHOICES)) == ["operator"]


def test_of_few_trials_or_of_one_value_nothing_is_said() -> None:
    assert importance(rows()[:3], LOSS, CHOICES) == {}
    assert importance([replace(row, config={"operator": "stack"}) for row in rows()], LOSS, CHOICES) == {}
    assert importance([replace(row, objectives={}) for row in rows()], LOSS, CHOICES) == {}
    assert importance([], LOSS, CHOICES) == {}


RATES = {"loguniform": (1e-4, 1e-2), "uniform": (0.0001, 0.01), "integer": (1, 1000), "log_integer": (1, 1000)}


def drawn(count: int, kind: str, figure: Callable[[str, float], float]) -> list[TrialRow]:
    """Trials at random: an operator, and a rate from a range of that kind. figure: by operator and rate."""
    generator, rate = random.Random(0), Dimension("rate", kind, RATES[kind])
    points = [(generator.choice(OPERATORS), rate.drawn(generator)) for _ in range(count)]
    return [
        make_row(
            number,
            config={"operator": operator, "rate": rate},
            objectives={"eval_loss": float(figure(operator, rate))},
        )
        for number, (operator, rate) in enumerate(points)
    ]


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("count", [24, 200])
def test_what_is_drawn_from_a_range_matters_by_where_it_lies(kind: str, count: int) -> None:
    """Hardly two trials have the same value: as so many choices, the range would seem to decide always."""
    dimensions = [CHOICES[0], Dimension("rate", kind, RATES[kind])]
    middle = sorted(row.config["rate"] for row in drawn(count, kind, lambda *_: 0.0))[count // 2]
    by_operator = importance(drawn(count, kind, lambda operator, _: OPERATORS.index(operator)), LOSS, dimensions)
    by_rate = importance(drawn(count, kind, lambda _, rate: rate > middle), LOSS, dimensions)
    assert by_operator["operator"] > 0.7
    assert by_rate["rate"] > 0.7
