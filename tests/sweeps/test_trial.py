"""One trial of a sweep, as far as it needs no cluster: the part of it that LAG looks at first."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import make_record
from raystage.plans.plan import Plan
from raystage.sweeps.tree import Chain, build
from raystage.sweeps.trial import FINISHED_STAGE, ToTune, cut_after_growth
from raystage.sweeps.trials import Planner
from sweeps import make_sweep


@pytest.fixture
def whole(tmp_path: Path) -> Plan:
    """800, 400 and 400 tokens, grown twice, in steps of 100 tokens."""
    return Planner(make_sweep(tmp_path)).trial(3, {}).plan


@pytest.mark.parametrize(("tokens", "steps"), [(100, 1), (101, 2), (300, 3)])
def test_a_part_ends_after_the_first_growth_in_whole_steps(whole: Plan, tokens: int, steps: int) -> None:
    part = cut_after_growth(whole, tokens)
    assert part.name == whole.name
    assert [stage.name for stage in part.staged.stages] == ["small", "middle"]
    assert part.staged.stages[0] == whole.staged.stages[0]
    assert (part.staged.stages[1].steps, part.staged.duration) == (steps, 800 + 100 * steps)
    assert part.baselines == ()


def test_the_whole_goes_on_from_its_part(whole: Plan) -> None:
    part, longer = cut_after_growth(whole, 200).staged.stages, whole.staged.stages
    tree = build([Chain(part, ((), ())), Chain(longer, ((), (), ()))])
    assert tree.nodes[longer[1].key].prefix_key == part[1].key
    assert tree.flops_shared == whole.staged.flops


def test_a_part_that_reaches_the_stages_end_is_the_stage(whole: Plan) -> None:
    part = cut_after_growth(whole, 10_000).staged.stages
    assert [stage.key for stage in part] == [stage.key for stage in whole.staged.stages[:2]]


def test_tune_hears_of_evaluations_once_and_of_every_stage_that_is_finished(
    whole: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr("raystage.sweeps.trial.tune.report", reports.append)
    callback, run = ToTune(["compute_saved"]), whole.staged
    record = make_record(run.stages[0], 1.5)
    for _ in range(2):  # workers that were started again tell of the same points
        callback.evaluated(run, run.stages[0], record.evaluations[-1])
    callback.stage_finished(run, run.stages[0], record, reused=False)
    assert [(one["eval_loss"], one.get(FINISHED_STAGE)) for one in reports] == [(1.5, None), (1.5, record.key)]
    assert all(math.isnan(one["compute_saved"]) for one in reports)  # not known before the end
    callback.stage_finished(replace(run, name="scratch"), run.stages[0], record, reused=False)
    assert len(reports) == 2  # what baselines finish nobody waits for


def test_tune_hears_of_a_stage_that_counts_from_0_again(whole: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that changes from tokens to samples: positions become smaller, FLOPs do not."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr("raystage.sweeps.trial.tune.report", reports.append)
    callback, run = ToTune([]), whole.staged
    first, second = run.stages[:2]
    before, after = (make_record(stage, 1.5).evaluations[-1] for stage in (first, second))
    callback.evaluated(run, first, before)
    callback.evaluated(run, second, replace(after, position=1))
    assert [one["flops"] for one in reports] == [before.flops, after.flops]
