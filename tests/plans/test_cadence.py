"""Evaluation costs at most a tenth of a stage's training unless the schedule asks for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.planning.build import make_plan
from raystage.plans.cadence import FEWEST_LATE_TOKENS, FEWEST_TOKENS, MOST_SHARE, MOST_TOKENS
from raystage.plans.keys import ended_after, key_at, trunk_key
from raystage.plans.stage import StagePlan
from raystage.reports.advice import warnings


def stages_of(tmp_path: Path, *lengths: int, **written: object) -> tuple[StagePlan, ...]:
    """A schedule of 2 and then 4 layers, with a baseline as long, planned: its stages, then the baselines'."""
    plan = make_plan(schedule_of(tmp_path, *lengths, **written))
    return (*plan.staged.stages, *(stage for run in plan.baselines for stage in run.stages))


def schedule_of(tmp_path: Path, *lengths: int, **written: object):
    stages = [{"name": f"s{n}", "model": {"num_layers": 2 * n + 2}, "until": {"tokens": length}}
              for n, length in enumerate(lengths)]  # fmt: skip
    for stage in stages[1:]:
        stage["grow"] = {"operator": "stack"}
    return make_schedule(tmp_path, stages=stages, baseline={"budgets": [sum(lengths)]}, **written)


@pytest.mark.parametrize("length", [30_000, 100_000, 250_000, 500_000, 2_000_000, 50_000_000])
def test_the_default_costs_at_most_a_tenth_of_every_stage(length: int, tmp_path: Path) -> None:
    stages = stages_of(tmp_path, length, 2 * length)
    assert all(stage.evaluation_share <= MOST_SHARE for stage in stages[:2])
    assert all(stage.evaluations >= 2 for stage in stages)
    assert {stage.training.evaluate.tokens for stage in stages[2:]} == {stages[1].training.evaluate.tokens}


def test_evaluations_on_the_way_go_before_the_text_at_the_end_does(tmp_path: Path) -> None:
    short, long = (stages_of(tmp_path, length)[0] for length in (500_000, 50_000_000))
    assert (short.training.evaluate.tokens, short.evaluations) == (MOST_TOKENS, 2)
    assert (long.training.evaluate.tokens, long.evaluations) == (MOST_TOKENS, 21)
    tiny = stages_of(tmp_path, 2_000)[0]
    assert tiny.training.evaluate.tokens == FEWEST_TOKENS


def test_a_short_last_stage_is_evaluated_on_enough_where_its_run_affords_it(tmp_path: Path) -> None:
    """Its loss is what a run is compared by."""
    last = stages_of(tmp_path, 1_000_000, 30_000)[1]
    assert last.training.evaluate.tokens == FEWEST_LATE_TOKENS
    assert last.evaluation_flops <= MOST_SHARE * last.end_flops


def test_what_is_given_is_kept_and_said_where_it_costs_more(tmp_path: Path) -> None:
    given = {"training": {"evaluate": {"every": 10_000, "tokens": 30_000}}}
    stage = stages_of(tmp_path, 100_000, **given)[0]
    assert (stage.evaluate_every, stage.training.evaluate.tokens) == (10_000, 30_000)
    found = [one for one in warnings(make_plan(schedule_of(tmp_path, 100_000, **given))) if "evaluat" in one.key]
    assert "11 evaluations of 30K tokens in stage s0, 110.0 %" in found[0].text
    assert not [one for one in warnings(make_plan(schedule_of(tmp_path, 100_000))) if "evaluat" in one.key]


def test_what_waits_for_evaluations_has_them(tmp_path: Path) -> None:
    written = [{"name": "s", "model": {"num_layers": 2},
                "until": {"plateau": {"min_delta": 0.01, "patience": 3}, "tokens": 100_000}}]  # fmt: skip
    stage = make_plan(make_schedule(tmp_path, stages=written, baseline=None)).staged.stages[0]
    assert stage.evaluations == 21


def test_a_longer_stage_goes_on_from_a_shorter_one_that_is_evaluated_on_less(tmp_path: Path) -> None:
    short, long = (stages_of(tmp_path, length, training={"lr_schedule": {"kind": "constant"}})[0]
                   for length in (100_000, 1_000_000))  # fmt: skip
    assert short.training.evaluate.tokens < long.training.evaluate.tokens
    assert trunk_key(short) == trunk_key(long)
    assert key_at(long, short.steps) == short.key
    cut = ended_after(long, short.steps)
    assert (cut.key, cut.training.evaluate.tokens) == (short.key, short.training.evaluate.tokens)
