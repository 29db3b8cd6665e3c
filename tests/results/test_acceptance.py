"""The limits of a schedule's `grow.require`, and a run whose growth is outside of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_growth, make_records, make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule, parse
from raystage.config.stage import Require
from raystage.errors import GrowthRejected, InputError, StageFailed
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.results.acceptance import check_growth, unmet
from raystage.runs.driver import Driver
from raystage.storage.store import Store


def with_limits(folder: Path, **require: float) -> Schedule:
    """2 layers, then 4 by `stack`, of which `require` is asked."""
    text = folder / "text"  # apart from what else is written: a changed text changes every key
    text.mkdir(exist_ok=True)
    return make_schedule(
        text,
        stages=[
            {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
            {
                "name": "full",
                "model": {"num_layers": 4},
                "until": {"tokens": 1200},
                "grow": {"operator": "stack", "require": require},
            },
        ],
    )


@pytest.mark.parametrize(
    ("limit", "kept", "not_kept"),
    [
        ("loss_increase_below", 0.51, 0.5),
        ("max_logit_difference_below", 3.1, 3.0),
        ("gradient_error_below", 1e-3, 1e-5),
    ],
)
def test_each_limit_is_compared_with_its_figure(tmp_path: Path, limit: str, kept: float, not_kept: float) -> None:
    growth = make_growth(make_plan(make_schedule(tmp_path)).staged.stages[1], 2.0, 2.5)
    certificate = replace(growth.certificate, gradient_error=1e-4)
    assert unmet(Require(**{limit: kept}), certificate) == []
    (found,) = unmet(Require(**{limit: not_kept}), certificate)
    assert found.startswith(f"{limit}: expected less than {not_kept:g}, found ")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_is_within_no_limit(tmp_path: Path, loss: float) -> None:
    growth = make_growth(make_plan(make_schedule(tmp_path)).staged.stages[1], 2.0, loss)
    assert len(unmet(Require(loss_increase_below=100), growth.certificate)) == 1


def test_what_was_not_measured_is_within_no_limit(tmp_path: Path) -> None:
    growth = make_growth(make_plan(make_schedule(tmp_path)).staged.stages[1], 2.0, 2.0)
    (found,) = unmet(Require(gradient_error_below=1), growth.certificate)
    assert "found none (the operator predicts no gradient exactly)" in found


@pytest.mark.parametrize("limit", ["loss_increase_below", "max_logit_difference_below"])
def test_with_another_head_no_difference_can_be_small_enough(tmp_path: Path, limit: str) -> None:
    growth = make_growth(make_plan(make_schedule(tmp_path)).staged.stages[1], 2.0, 2.0)
    exchanged = replace(growth.certificate, eval_loss_after=None, max_logit_difference=None)
    (found,) = unmet(Require(**{limit: 9}), exchanged)
    assert found.startswith(f"{limit}: expected less than 9, found none (the model got another head")


def test_other_positions_are_what_to_try_less_of(tmp_path: Path) -> None:
    """No operator makes up for them."""
    stages = [
        {"name": "a", "until": {"tokens": 800}},
        {"name": "b", "until": {"tokens": 800}, "model": {"rope_theta": "1M"},
         "grow": {"operator": "identity", "require": {"loss_increase_below": 0.05}}},
    ]  # fmt: skip
    stage = make_plan(make_schedule(tmp_path, model={"num_layers": 2}, stages=stages)).staged.stages[1]
    with pytest.raises(GrowthRejected, match=r"Try a smaller change of model\.rope_theta, or relax grow\.require"):
        check_growth(stage, make_growth(stage, 2.0, 2.5))


def test_the_message_says_where_what_and_what_to_try(tmp_path: Path) -> None:
    stage = make_plan(with_limits(tmp_path, loss_increase_below=0.05, max_logit_difference_below=9)).staged.stages[1]
    with pytest.raises(GrowthRejected) as caught:
        check_growth(stage, make_growth(stage, 2.0, 2.5))
    assert str(caught.value) == (
        "stage full: growing by stack is outside of grow.require: loss_increase_below: expected less than 0.05, found "
        "0.5. "
        "The stage before it is kept. Try an operator that is exact (identity for depth, duplicate or zero_pad for "
        "width), or relax grow.require"
    )
    assert isinstance(caught.value, StageFailed)
    assert caught.value.exit_status == 1


def test_a_limit_changes_no_key_and_is_in_the_plan(tmp_path: Path) -> None:
    plain, strict = (make_plan(with_limits(tmp_path, **require)) for require in ({}, {"loss_increase_below": 0.05}))
    assert [stage.key for stage in plain.staged.stages] == [stage.key for stage in strict.staged.stages]
    assert plan_json(strict)["stages"][1]["growth"] == {
        "operator": "stack",
        "optimizer_state": "grow",
        "require": {"loss_increase_below": 0.05},
    }
    assert "require" not in plan_json(plain)["stages"][1]["growth"]


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ({"loss_increase": 0.05}, "stages[1].grow.require.loss_increase: unknown key; did you mean"),
        ({"loss_increase_below": 0}, "found 0; expected more than 0"),
        ({"loss_increase_below": "little"}, "stages[1].grow.require.loss_increase_below: found 'little'"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(tmp_path: Path, require: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        with_limits(tmp_path, **require)
    assert message in str(caught.value)


def finished(plan: Plan, folder: Path) -> Store:
    """A store in which every stage of the plan is finished; growing had raised the loss by 0.5."""
    store = Store(open_folder(folder))
    for record in make_records(plan, 2.2, (2.6, 2.4, 2.1)).values():
        store.commit_record(record)
    return store


def test_a_reused_stage_is_held_to_what_is_asked_now(tmp_path: Path) -> None:
    schedule = with_limits(tmp_path, loss_increase_below=0.05)
    plan = make_plan(schedule)
    store = finished(plan, tmp_path / "store")
    driver = Driver(plan, schedule, store, [])
    with pytest.raises(GrowthRejected, match=r"stage full: growing by stack is outside of grow\.require"):
        driver.run()
    small, full = plan.staged.stages
    report = store.read_run(plan.name, "report.json")
    assert (report["state"], driver.states[small.key], driver.states[full.key]) == ("ERRORED", "REUSED", "ERRORED")
    assert store.record(full.key) is not None  # nothing in the store is touched

    kept = with_limits(tmp_path, loss_increase_below=0.6)
    assert Driver(make_plan(kept), kept, store, []).run().state == "FINISHED"


def test_the_certificate_lies_beside_the_record(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path))
    store = finished(plan, tmp_path / "store")
    small, full = plan.staged.stages
    content = json.loads(store.stage_folder(full.key).read("certificate.json"))
    assert (content["stage"], content["operator"], content["certificate"]["twin_distance"]) == ("full", "stack", 0.02)
    assert store.stage_folder(small.key).size_of("certificate.json") is None


def test_a_schedule_without_limits_asks_for_nothing(tmp_path: Path) -> None:
    content = make_schedule(tmp_path).model_dump(mode="json", exclude_none=True)
    assert parse(content).stages[1].grow.require == Require()
    assert (
        unmet(Require(), make_growth(make_plan(make_schedule(tmp_path)).staged.stages[1], 2.0, 9.0).certificate) == []
    )
