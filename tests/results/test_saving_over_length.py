"""The figures of benchmarks/saving_over_length: the picture and the tables are made of what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmark_files import module_of
from raystage.files.typed_json import to_json
from raystage.results.seeds import interval

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks/saving_over_length/figure.py"


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    return module_of(FILE)


def test_the_picture_is_that_of_the_kept_figures(figure: ModuleType) -> None:
    """`python benchmarks/saving_over_length/figure.py` makes it again."""
    assert figure.PICTURE.read_text(encoding="utf-8") == figure.picture(figure.read(figure.KEPT).points)


def test_the_table_is_that_of_the_kept_figures(figure: ModuleType) -> None:
    points, readme = figure.read(figure.KEPT).points, (FILE.parent / "README.md").read_text(encoding="utf-8")
    assert figure.table(points) in readme
    assert figure.comparisons(points) in readme


def test_an_interval_is_that_of_its_seeds(figure: ModuleType) -> None:
    kept = figure.read(figure.KEPT)
    assert to_json(kept) == json.loads(figure.KEPT.read_text())
    for point in kept.points:
        assert to_json(point.compute_saved) == pytest.approx(to_json(interval(point.by_seed)))


def test_the_budgets_around_the_loss_decide_whether_a_rate_is_at_the_edge(figure: ModuleType) -> None:
    tried = [{"lr": rate} for rate in (1.0, 2.0, 4.0)]
    best = [(1, 3.0, 4.0), (2, 2.5, 2.0), (4, 2.0, 2.0), (8, 1.5, 1.0)]
    budgets = [figure.Budget(tokens, loss, {"lr": rate}) for tokens, loss, rate in best]
    found = {loss: figure.is_at_edge(budgets, loss, tried) for loss in (3.5, 2.7, 2.2, 2.0, 1.7, 1.2)}
    assert found == {3.5: True, 2.7: True, 2.2: False, 2.0: False, 1.7: True, 1.2: True}
