"""What the pictures of a sweep show: every stage once, every trial on every axis, the front of two objectives."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystage.sweeps.reports.layout import coordinate_axes, coordinate_lines, front, stage_tree
from raystage.sweeps.reports.summary import short_names
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweep_results import finished, swept
from sweeps import make_sweep

GRID = """
stages[0].until.tokens: {grid: [400, 800]}
stages[1].grow.operator: {grid: [stack, interleave]}
stages[2].training.optimizer.lr: {grid: [1e-3, 2e-3]}
"""
CONDITIONAL = """
stages[1]: {grid: [present, absent]}
stages[1].until.tokens: {grid: [400, 40K]}
"""
LOSSES = (2.0, 1.7, 1.9, 1.6, 2.1, 1.5, 1.8, 2.2)


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """Eight trials; the second half's first stage goes on from the first half's."""
    return plan_sweep(make_sweep(tmp_path, GRID))


def by_label(report: dict, column: int) -> dict:
    return {node.label: node for node in stage_tree(report) if node.column == column}


def test_every_stage_stands_once_with_all_trials_that_went_through_it(plan: SweepPlan) -> None:
    nodes = {node.key: node for node in stage_tree(swept(plan, finished(plan, *LOSSES)))}
    assert nodes.keys() == plan.tree.nodes.keys()
    for key, node in nodes.items():
        assert node.trials == plan.tree.nodes[key].trials
        assert node.parent == plan.tree.nodes[key].stage.parent_key
        assert node.prefix == plan.tree.nodes[key].prefix_key
        assert node.is_shared is (len(node.trials) > 1)
    assert {node.ends[0]: node.loss for node in nodes.values() if node.ends} == dict(enumerate(LOSSES))


def test_a_stage_says_what_sets_it_apart_and_nothing_that_was_said_before(plan: SweepPlan) -> None:
    report = swept(plan, finished(plan, *LOSSES))
    assert set(by_label(report, 0)) == {"tokens=400", "tokens=800"}
    assert set(by_label(report, 1)) == {"operator=stack", "operator=interleave"}
    assert set(by_label(report, 2)) == {"lr=0.001", "lr=0.002"}


def test_no_two_stages_of_a_column_share_a_row_and_longer_ones_stand_below(plan: SweepPlan) -> None:
    report = swept(plan, finished(plan, *LOSSES))
    nodes = stage_tree(report)
    assert len({(node.column, node.row) for node in nodes}) == len(nodes)
    assert sorted(node.row for node in nodes if node.ends) == list(range(8))
    first = by_label(report, 0)
    assert first["tokens=800"].prefix == first["tokens=400"].key
    assert first["tokens=800"].row > first["tokens=400"].row


def test_of_many_trials_the_best_are_shown(plan: SweepPlan) -> None:
    nodes = stage_tree(swept(plan, finished(plan, *LOSSES)), most=3)
    assert {number for node in nodes for number in node.trials} == {5, 3, 1}


def test_a_trial_stands_on_every_axis_where_its_value_does(plan: SweepPlan) -> None:
    report = swept(plan, finished(plan, *LOSSES))
    axes = coordinate_axes(report)
    assert [axis.title for axis in axes] == [
        "stages[0].until.tokens", "stages[1].grow.operator", "stages[2].training.optimizer.lr",
        "held-out loss (lower is better)",
    ]  # fmt: skip
    assert axes[0].ticks == ((0.0, "400"), (1.0, "800"))
    lines = coordinate_lines(report, axes)
    assert [line.number for line in lines][-2:] == [3, 5]  # the best over the others
    assert lines[-1].places == (1.0, axes[1].places[5], 1.0, 0.0)
    assert lines[0].places[-1] == 1.0
    assert [line.fifth for line in lines] == [5, 4, 4, 3, 2, 2, 1, 1]


def test_a_value_that_a_trial_has_not_stands_at_the_end_of_its_axis(tmp_path: Path) -> None:
    plan = plan_sweep(make_sweep(tmp_path, CONDITIONAL))
    tokens = coordinate_axes(swept(plan, finished(plan, 1.0, 2.0, 3.0)))[1]
    assert [word for _, word in tokens.ticks] == ["400", "40K", "not set"]  # by size: 40K is a number
    assert [place for place, _ in tokens.ticks] == [0.0, pytest.approx(0.84), 1.0]


def test_a_path_with_one_value_has_no_axis(tmp_path: Path) -> None:
    plan = plan_sweep(make_sweep(tmp_path, "stages[0].until.tokens: {grid: [400]}"))
    report = swept(plan, finished(plan, 1.0))
    assert coordinate_axes(report) == []
    assert coordinate_lines(report, []) == []


def test_the_front_is_of_the_trials_that_none_beats(tmp_path: Path) -> None:
    objectives = [{"metric": "eval_loss"}, {"metric": "compute_saved"}]
    plan = plan_sweep(make_sweep(tmp_path, GRID, objective=objectives))
    saved = [0.0, 0.1, 0.3, 0.1, 0.4, 0.05, None, 0.0]
    found = front(swept(plan, finished(plan, *LOSSES, compute_saved=saved)))
    assert found.line == [(1.5, 0.05), (1.6, 0.1), (1.9, 0.3), (2.1, 0.4)]
    assert len(found.points) == 7  # one was not measured
    assert (found.x_title, found.y_title) == ("held-out loss (lower is better)", "compute saved (higher is better)")


def test_one_objective_has_no_front(plan: SweepPlan) -> None:
    assert front(swept(plan, finished(plan, *LOSSES))) is None


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    paths = ["stages[0].until.tokens", "stages[1].until.tokens", "stages[1].grow.operator", "training.optimizer.lr"]
    assert list(short_names(paths).values()) == [
        "stages[0].until.tokens", "stages[1].until.tokens", "operator", "lr",
    ]  # fmt: skip
