"""`lr_schedule: {from: current}`: a stage whose rate begins where the plan has that of the stage before."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_schedule
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.keys import key_at, placed
from raystage.plans.learning_rate import rate_at
from raystage.plans.plan import Plan
from raystage.plans.rates import rates_of
from raystage.plans.stage import StagePlan

LR = 2e-3
FALLS = {"from": "current", "kind": "linear"}


def plan_of(folder: Path, run: dict, *own: dict | None, until: dict | None = None, **more: object) -> Plan:
    """A stage of 800 tokens (`until`: with another end), then one of 800 for each `lr_schedule` in `own`."""
    stages = [{"name": "stage-0", "until": {"tokens": 800, **(until or {})}}]
    for number, rate in enumerate(own, 1):
        training = {} if rate is None else {"training": {"lr_schedule": rate}}
        stages.append({"name": f"stage-{number}", "until": {"tokens": 800}, **training})
    training = {"lr_schedule": run, "evaluate": {"every": 200}}
    return make_plan(make_schedule(folder, model={"num_layers": 2}, training=training, stages=stages, **more))


def stages_of(*arguments: object, **options: object) -> tuple[StagePlan, ...]:
    return plan_of(*arguments, **options).staged.stages


@pytest.mark.parametrize(
    ("run", "own", "starts"),
    [
        ({"kind": "constant"}, [FALLS], [LR]),
        ({"kind": "cosine", "warmup": 0}, [FALLS], [LR / 2]),  # half of the run is done
        ({"kind": "linear", "warmup": 0}, [None, FALLS], [LR * 2 / 3, LR / 3]),
        ({"kind": "constant"}, [{**FALLS, "min_lr_ratio": 0.5}, FALLS], [LR, LR / 2]),  # after a rate of its own
        ({"kind": "wsd", "warmup": 0, "decay": 0.5}, [None, {"from": "current", "kind": "constant"}], [LR, LR * 2 / 3]),
    ],
)
def test_it_begins_where_the_rate_is(tmp_path: Path, run: dict, own: list, starts: list[float]) -> None:
    stages = stages_of(tmp_path, run, *own)
    for before, stage, start in zip(stages, stages[1:], starts, strict=False):
        assert rates_of(stage)[0] == pytest.approx(start)
        assert rate_at(before.rate, before.end) == pytest.approx(start)


def test_its_lowest_rate_is_a_share_of_its_first_one(tmp_path: Path) -> None:
    run = {"kind": "cosine", "warmup": 0}
    for kind in ("linear", "cosine", "1-sqrt", "wsd"):
        stage = stages_of(tmp_path, run, {"from": "current", "kind": kind, "min_lr_ratio": 0.2})[1]
        assert rates_of(stage) == pytest.approx((LR / 2, LR / 2, LR / 10))
    points = [{"at": 0.5, "ratio": 0.5}, {"at": 1, "ratio": 0.1}]
    stage = stages_of(tmp_path, run, {"from": "current", "kind": "piecewise", "points": points})[1]
    assert [rate_at(stage.rate, 800 + tokens) for tokens in (0, 400, 800)] == pytest.approx([LR / 2, LR / 4, LR / 20])


def test_the_warm_up_of_the_file_is_not_its_own(tmp_path: Path) -> None:
    stage = stages_of(tmp_path, {"kind": "constant", "warmup": 200}, FALLS)[1]
    assert [(piece.start, piece.end) for piece in stage.rate] == [(800, 1600)]


def test_the_planned_rate_stays_where_the_stage_before_ends_early(tmp_path: Path) -> None:
    """The key does not depend on where it ended, so the rate must not either."""
    until = {"eval_loss": 2.0}
    for run in ({"kind": "wsd", "warmup": 0}, {"kind": "cosine", "warmup": 0}):
        stage = stages_of(tmp_path, run, FALLS, until=until)[1]
        early = placed(stage, 300, 3, 12345)
        assert early.key == stage.key
        assert [rate_at(early.rate, 300 + at) for at in (0, 400, 800)] == [
            rate_at(stage.rate, 800 + at) for at in (0, 400, 800)
        ]


def test_equal_rates_have_equal_keys_however_they_are_written(tmp_path: Path) -> None:
    run = {"kind": "constant", "warmup": 0}
    current, written, lower = (
        stages_of(tmp_path, run, rate)[1].key
        for rate in (FALLS, {"kind": "linear", "warmup": 0}, {**FALLS, "min_lr_ratio": 0.1})
    )
    assert current == written != lower


def test_a_longer_stage_shares_its_constant_part(tmp_path: Path) -> None:
    """A wsd from the current rate; a linear one depends on its length from the first token."""
    shares = {}
    for kind in ("wsd", "linear"):
        own = {"from": "current", "kind": kind, "decay": 200}
        plans = []
        for tokens in (800, 1600):
            stages = [
                {"name": "first", "until": {"tokens": 800}},
                {"name": "second", "until": {"tokens": tokens}, "training": {"lr_schedule": own}},
            ]
            training = {"lr_schedule": {"kind": "constant"}, "evaluate": {"tokens": 100}}
            made = make_schedule(tmp_path, model={"num_layers": 2}, training=training, stages=stages, baseline=None)
            plans.append(make_plan(made).staged.stages[1])
        shares[kind] = [key_at(plans[0], steps) == key_at(plans[1], steps) for steps in (1, 6, 7, 8)]
    assert shares == {"wsd": [True, True, False, False], "linear": [False] * 4}


@pytest.mark.parametrize("run", [{}, {"kind": "wsd", "warmup": 100, "decay": 0.2}, {"kind": "cosine", "warmup": 100}])
def test_the_baseline_has_the_rate_of_the_run(tmp_path: Path, run: dict) -> None:
    """Which the stage only continues, also where the file leaves it at its default."""
    plan = plan_of(tmp_path, run, FALLS)
    for baseline in plan.baselines:
        rate = baseline.stages[-1].rate
        assert baseline.stages[-1].training.lr_schedule.start is None
        assert (max(piece.end_lr for piece in rate), rate_at(rate, baseline.duration)) == (LR, 0.0)
        assert rate_at(rate, 50) == (LR / 2 if run else LR)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training": {"lr_schedule": FALLS}},
         "training.lr_schedule.from: found current in the rate of a whole run; expected it in the lr_schedule of a"),
        ({"stages": [{"name": "a", "until": {"tokens": 800}, "training": {"lr_schedule": FALLS}}]},
         "stages[0].training.lr_schedule.from: found current in the first stage, before which there is no rate"),
        ({"own": {"lr_schedule": {**FALLS, "warmup": 100}}},
         "stages[1].training.lr_schedule.warmup: found beside from: current, where the rate begins as high as it is"),
        ({"own": {"lr_schedule": FALLS, "optimizer": {"lr": 1e-4}}},
         "stages[1].training.optimizer.lr: found 0.0001 beside lr_schedule.from: current"),
        ({"own": {"lr_schedule": {"from": "peak"}}},
         "stages[1].training.lr_schedule.from: found 'peak'; expected 'current'"),
        ({"baseline": {"budgets": [1000], "training": {"lr_schedule": FALLS}}},
         "baseline.training.lr_schedule.from: found current in the rate of a whole run"),
        ({"fallen": True}, "stages[2].training.lr_schedule.from: found current, but the rate is 0 where stage b ends"),
    ],
)  # fmt: skip
def test_where_there_is_no_current_rate_it_is_refused(tmp_path: Path, changes: dict, problem: str) -> None:
    stages = [{"name": "a", "until": {"tokens": 800}}]
    own = changes.pop("own", None)
    if own:
        stages.append({"name": "b", "until": {"tokens": 800}, "training": own})
    if changes.pop("fallen", False):
        falls = {"training": {"lr_schedule": FALLS}, "until": {"tokens": 800}}
        stages += [{"name": "b", **falls}, {"name": "c", **falls}]
    with pytest.raises(InputError) as caught:
        make_plan(make_schedule(tmp_path, **{"model": {"num_layers": 2}, "stages": stages, **changes}))
    assert str(caught.value).startswith(problem)


def test_a_stage_that_may_end_early_needs_a_rate_whose_positions_can_move(tmp_path: Path) -> None:
    points = [{"at": 0.8, "ratio": 1}, {"at": 1, "ratio": 0}]
    with pytest.raises(InputError, match=r"stages\[0\].until: found under a rate over the whole run that depends on"):
        plan_of(tmp_path, {"kind": "piecewise", "points": points}, None, until={"eval_loss": 2.0})
    own = {"kind": "piecewise", "points": points}
    assert stages_of(tmp_path, {"kind": "cosine"}, own, until={"eval_loss": 2.0})[1].own_rate
