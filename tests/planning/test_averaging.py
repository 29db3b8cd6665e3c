"""Which checkpoints an average has and what they count, what does not fit, and what it does to keys and baselines."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from factories import make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.averaging import Averaging, weights_of
from raystage.plans.keys import key_at, trunk_key
from raystage.plans.learning_rate import FORM_OF, FORMS
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.plans.steps import StepSchedule, StepSegment
from raystage.reports.advice import warnings
from raystage.storage.jobs import continues

CONSTANT = {"lr_schedule": {"kind": "constant"}}


def plan_of(folder: Path, average: dict | None, tokens: int = 1200, **changes: object) -> Plan:
    """A stage of steps of 100 tokens at a constant rate, with an average or without."""
    stage = {"name": "whole", "model": {"num_layers": 2}, "until": {"tokens": tokens},
             **({"average": average} if average else {})}  # fmt: skip
    return make_plan(make_schedule(folder, **{"stages": [stage], "training": CONSTANT, "baseline": None, **changes}))


def stage_of(folder: Path, average: dict | None, tokens: int = 1200) -> StagePlan:
    return plan_of(folder, average, tokens).staged.stages[0]


# --- which checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "every", "steps", "ends"),
    [
        (3, 200, 10, (6, 8, 10)),
        (3, 200, 11, (8, 10, 11)),  # the end counts, where it is no multiple
        (4, 250, 12, (5, 8, 10, 12)),  # the first step that reaches 500, 750, 1,000 and the end
        (2, 100, 12, (11, 12)),
        (3, 200, 2, (2,)),
        (3, 200, 1, (1,)),
    ],
)
def test_which_steps_have_a_checkpoint(last: int, every: int, steps: int, ends: tuple) -> None:
    averaging, schedule = Averaging(last, every), StepSchedule((StepSegment(0, 0, 100, 10),))
    assert averaging.ends(steps, schedule) == ends
    saved = [step for step in range(1, steps + 1) if averaging.saves_after(step, schedule)]
    assert set(ends[:-1]) <= set(saved)


def test_a_longer_stage_needs_no_checkpoint_that_a_shorter_one_does_not_keep() -> None:
    averaging, schedule = Averaging(4, 300), StepSchedule((StepSegment(0, 0, 100, 10),))
    for shorter in range(12, 40):
        kept = averaging.ends(shorter, schedule)
        for longer in range(shorter + 1, 60):
            assert {end for end in averaging.ends(longer, schedule) if end < shorter} <= set(kept)


# --- what they count --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("positions", [(1, 2), (10, 20, 30, 40), (600, 800, 900), tuple(range(0, 640, 10))])
def test_the_updates_between_checkpoints_count_as_under_the_decay(positions: tuple[int, ...], shape: str) -> None:
    """Against the decay of the rate itself, averaged over each stretch in fine steps (2507.17634)."""
    weights = weights_of(positions, shape)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) > 0
    first, length = positions[0], positions[-1] - positions[0]
    for number in range(1, len(positions)):
        start, end = ((positions[place] - first) / length for place in (number - 1, number))
        points = start + (end - start) * (np.arange(20_000) + 0.5) / 20_000
        kept = 1 - np.mean([FORMS[FORM_OF[shape]](point) for point in points])
        assert sum(weights[number:]) == pytest.approx(kept, abs=1e-6)


def test_under_sgd_the_average_is_where_a_decayed_rate_leads_if_the_gradient_is_constant() -> None:
    """With a constant gradient of 1 and a rate of 1 a run is at -t; under a linear decay over the last n it ends half
    of them further."""
    positions = (60, 70, 80, 90, 100)
    average = sum(w * -p for w, p in zip(weights_of(positions, "linear"), positions, strict=True))
    assert average == pytest.approx(-(60 + 40 / 2))


def test_without_a_shape_all_count_the_same() -> None:
    assert weights_of((1, 2, 4), None) == (1 / 3,) * 3
    assert sum(map(Fraction, weights_of(range(4), None))) == 1


# --- the plan ---------------------------------------------------------------------------------


def test_an_average_changes_the_key_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    asked = [None, {"every": 200}, {"every": 300}, {"every": 200, "last": 3}, {"every": 200, "weights": "wsm"}]
    asked += [{"every": 200, "weights": "wsm", "decay_shape": "cosine"}]
    stages = [stage_of(tmp_path, average) for average in asked]
    assert len({stage.key for stage in stages}) == len({trunk_key(stage) for stage in stages}) == len(asked)
    assert stage_of(tmp_path, {"every": 200, "last": 4, "weights": "uniform"}).key == stages[1].key
    assert plan_json(plan_of(tmp_path, asked[-1]))["stages"][0]["average"] == {
        "last": 4, "every": 200, "decay_shape": "cosine",
    }  # fmt: skip
    assert "average" not in plan_json(plan_of(tmp_path, None))["stages"][0]


def test_a_longer_stage_continues_a_shorter_one_with_the_same_average(tmp_path: Path) -> None:
    average = {"every": 200, "last": 3}
    shorter, longer = (stage_of(tmp_path, average, tokens) for tokens in (800, 1200))
    assert key_at(longer, shorter.steps) == shorter.key
    assert key_at(longer, shorter.steps) != stage_of(tmp_path, None, 800).key


def test_the_stage_after_an_average_is_entered_from_the_store(tmp_path: Path) -> None:
    """The workers' weights are not those that the stage delivers, where the average is worse."""
    stages = [
        {"name": "first", "model": {"num_layers": 2}, "until": {"tokens": 800}, "average": {"every": 200}},
        {"name": "second", "model": {"num_layers": 2}, "until": {"tokens": 800}},
    ]
    first, second = make_plan(make_schedule(tmp_path, stages=stages, baseline=None)).staged.stages
    assert second.averaging is None
    assert not continues(first, second)


def test_an_evaluation_more_is_counted(tmp_path: Path) -> None:
    assert stage_of(tmp_path, {"every": 200}).evaluations == stage_of(tmp_path, None).evaluations + 1


@pytest.mark.parametrize(
    ("average", "said"),
    [
        ({"every": 50}, "stages[0].average.every: found 50 in steps of 100 tokens; expected at least a step between"),
        ({"every": 400}, "stages[0].average.every: found 400 in a stage of 1.2K tokens, which gives 3 of the 4 "
         "checkpoints to average; expected at most 300, or a smaller average.last"),
        ({"every": 300, "last": 1}, "stages[0].average.last: found 1; expected at least 2"),
        ({"last": 3}, "stages[0].average.every: missing; expected for example every: 1M"),
        ({"every": 200, "weights": "mean"}, "stages[0].average.weights: found 'mean'; expected 'uniform' or 'wsm'"),
        ({"every": 200, "decay_shape": "cosine"},
         "stages[0].average: found decay_shape with weights: uniform; expected weights: wsm beside it"),
    ],
)  # fmt: skip
def test_what_does_not_fit(average: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, average)
    assert said in str(refused.value)


# --- baselines --------------------------------------------------------------------------------


def test_every_budget_ends_with_an_average_where_the_last_stage_does(tmp_path: Path) -> None:
    """Under a constant rate the longer budget continues the shorter one while they are trained, checkpoints and all."""
    plan = plan_of(tmp_path, {"every": 200, "last": 3}, baseline={"budgets": [800, 1600]})
    assert [len(run.stages) for run in plan.baselines] == [1, 1]
    shorter, longer = (run.stages[0] for run in plan.baselines)
    assert shorter.averaging == longer.averaging == plan.staged.stages[0].averaging
    assert key_at(longer, shorter.steps) == shorter.key


def test_a_budget_too_small_for_the_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"baseline\.budgets\[0\]: found 300 in a stage of 800 tokens.*larger budget"):
        plan_of(tmp_path, {"every": 300}, baseline={"budgets": [800, 1600]})


def test_an_average_stands_for_a_decay(tmp_path: Path) -> None:
    budgets = {"budgets": [800, 1200, 1600]}
    plain, averaged = (plan_of(tmp_path, average, baseline=budgets) for average in (None, {"every": 200}))
    assert any("never decays" in one.text for one in warnings(plain))
    assert not any("never decays" in one.text for one in warnings(averaged))
