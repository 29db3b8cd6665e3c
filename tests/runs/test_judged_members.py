"""Gates of a stage with several members: every member has to pass them. Carried out on finished stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_growth, make_record, make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import GrowthRejected, StageRejected
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan, replanned
from raystage.plans.gates import answer
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.runs.driver import Driver
from raystage.runs.events import RunCallback
from raystage.storage.store import Store

LR = "training.optimizer.lr"
GROW = {"operator": "stack", "require": {"loss_increase_below": 0.1}}


def schedule_of(folder: Path, **several: object) -> Schedule:
    """small, then several members with 4 layers, then a student of all of them."""
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "several", "until": {"tokens": 400}, "grow": {"operator": "stack"}, "ensemble": {"members": 3},
         **several},
        {"name": "student", "until": {"tokens": 400}, "objective": {"name": "distillation", "teacher": "several"}},
    ]  # fmt: skip
    text = folder / "text"
    text.mkdir(exist_ok=True)
    training = {"lr_schedule": {"kind": "constant"}}
    return make_schedule(text, stages=stages, model={"num_layers": 4}, training=training, baseline={"budgets": [1000]})


class Rejections(RunCallback):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: object) -> None:
        self.told.append((run.name, stage.name))


class Finished:
    """A store in which a plan is finished, with a loss of 1.9 and no harm done by any growth."""

    def __init__(self, folder: Path, written: Schedule) -> None:
        self.written, self.plan = written, make_plan(written)
        self.store, self.heard = Store(open_folder(folder / "store")), Rejections()

    def after_retry(self) -> Plan:
        rejection = answer(self.written, 1, "key", ("why",), ())
        return replanned(self.written, self.plan, (rejection,))

    def commit(self, plan: Plan, **changes: dict) -> dict[str, str]:
        """By name the keys of the stages. changes: of records, by the names of stages."""
        for stage in plan.stages_by_key().values():
            growth = make_growth(stage, 2.0, 2.0) if stage.growth and stage.growth.operator == "stack" else None
            changed = {"growth": growth, **changes.get(stage.name.replace("-", "_"), {})}
            self.store.commit_record(make_record(stage, **{"eval_loss": 1.9, **changed}))
        return {stage.name: stage.key for stage in plan.stages_by_key().values()}

    def driver(self) -> Driver:
        return Driver(self.plan, self.written, self.store, [self.heard], draws=False)


def test_a_member_that_is_not_accepted_has_all_of_them_trained_again(tmp_path: Path) -> None:
    gate = {"accept": {"eval_loss_below": 2}, "on_reject": {"retry": {"set": {LR: "*0.5"}}}}
    found = Finished(tmp_path, schedule_of(tmp_path, **gate))
    before = found.commit(found.plan, several_member_3={"eval_loss": 2.2})
    after = found.commit(found.after_retry())
    report = found.driver().run()
    names = ["several", "several-member-2", "several-member-3"]
    assert not {before[name] for name in names} & {after[name] for name in names}
    assert found.heard.told == [("several-member-3", "several-member-3")]
    (attempt,) = report.attempts
    assert (attempt.stage, attempt.key, attempt.action) == ("several", before["several-member-3"], "retry")
    assert [row.key for row in report.stages] == [after[name] for name in ("small", "several", "student")]
    assert [row.key for row in report.members[0].members] == [after[name] for name in names]
    assert {row.key for row in report.given_up} == {before[name] for name in names}
    of_one = {stage.name: stage.flops for stage in found.after_retry().stages_by_key().values()}
    claimed = sum(of_one[name] for name in ("small", "student")) + 6 * of_one["several"]
    assert report.savings.flops_staged == report.ledger.flops_claimed == claimed


def test_a_growth_of_a_member_that_does_harm_is_answered_as_that_of_its_stage(tmp_path: Path) -> None:
    found = Finished(
        tmp_path, schedule_of(tmp_path, grow=GROW, on_reject={"retry": {"set": {"grow.operator": "identity"}}})
    )
    members = found.plan.ensembles[0].members
    before = found.commit(found.plan, several_member_2={"growth": make_growth(members[1], 2.0, 2.5)})
    found.commit(found.after_retry())
    report = found.driver().run()
    assert found.heard.told == [("several-member-2", "several-member-2")]
    assert report.attempts[0].key == before["several-member-2"]
    assert report.state == "FINISHED"


def test_where_nothing_is_left_to_try_the_run_ends_with_the_member_s_name(tmp_path: Path) -> None:
    found = Finished(tmp_path, schedule_of(tmp_path, accept={"eval_loss_below": 2}))
    found.commit(found.plan, several_member_2={"eval_loss": 2.2})
    driver = found.driver()
    with pytest.raises(StageRejected, match=r"^stage several-member-2: not accepted: eval_loss_below: expected less"):
        driver.run()
    assert driver.states[found.plan.ensembles[0].members[1].key] == "ERRORED"


def test_a_run_that_no_gate_answers_for_ends_with_the_error_itself(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    written = make_schedule(text, seeds=2)
    found = Finished(tmp_path, written)
    stage = found.plan.further_seeds[0].staged.stages[1]
    with pytest.raises(GrowthRejected, match=r"^it does harm$"):
        found.driver()._reject(stage, ("it does harm",), GrowthRejected("it does harm"))
