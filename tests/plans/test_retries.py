"""What comes after a stage that is not accepted: worked out by hand, and carried out on finished stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_record, make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import GrowthRejected, StageRejected
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan, replanned
from raystage.plans.gates import Rejection, answer, changed
from raystage.plans.plan import Plan
from raystage.results.record import Prefix, StageRecord
from raystage.runs.driver import Driver
from raystage.storage.store import Store

LR = "training.optimizer.lr"
REASONS = ("eval_loss_below: expected less than 2, found 2.5",)


def schedule(folder: Path, on_reject: object, of_stage: int = 1, **more: object) -> Schedule:
    """small, full, last, 800 + 800 + 400 tokens, of which one is to end below a loss of 2."""
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 800}, "grow": {"operator": "stack"}},
        {"name": "last", "model": {"num_layers": 4}, "until": {"tokens": 400}},
    ]
    stages[of_stage] |= {"accept": {"eval_loss_below": 2}, "on_reject": on_reject, **more}
    text = folder / "text"
    text.mkdir(exist_ok=True)
    return make_schedule(text, stages=stages, training={"lr_schedule": {"kind": "constant", "warmup": 100}})


def rejections(written: Schedule, index: int, times: int) -> tuple[Rejection, ...]:
    tried: tuple[Rejection, ...] = ()
    for _ in range(times):
        tried = (*tried, answer(written, index, "key", REASONS, tried))
    return tried


# --- the answer -----------------------------------------------------------------------------------


def test_a_retry_changes_more_with_every_attempt_and_ends(tmp_path: Path) -> None:
    written = schedule(tmp_path, {"retry": {"times": 2, "set": {LR: "*0.5"}}})
    first, second, third = rejections(written, 1, 3)
    assert [one.action for one in (first, second, third)] == ["retry", "retry", "abort"]
    plan = make_plan(written)
    rates = [changed(written, plan, tried).resolved(1).training.optimizer.lr for tried in ((first,), (first, second))]
    assert rates == [1e-3, 5e-4]
    assert second.sentence() == f"not accepted ({REASONS[0]}): retry 2 of 2 with {LR} *0.5"
    assert third.sentence() == f"not accepted ({REASONS[0]}): the run stops here after 2 further attempts"


def test_a_retry_leaves_what_came_before_and_the_baseline(tmp_path: Path) -> None:
    written = schedule(tmp_path, {"retry": {"set": {LR: 1e-4}}}, of_stage=2)
    plan = make_plan(written)
    again = replanned(written, plan, rejections(written, 2, 1))
    same = [one.key == other.key for one, other in zip(plan.staged.stages, again.staged.stages, strict=True)]
    assert same == [True, True, False]
    assert again.baselines == plan.baselines
    assert again.scratch_flops == plan.scratch_flops


def test_an_extension_is_the_same_stage_with_more_tokens(tmp_path: Path) -> None:
    written = schedule(tmp_path, {"extend": {"tokens": 300, "times": 2}})
    plan = make_plan(written)
    again = replanned(written, plan, rejections(written, 1, 2))
    assert [stage.duration for stage in again.staged.stages] == [800, 1400, 400]
    assert again.staged.stages[2].start == 2200


def test_a_rewind_begins_again_at_the_stage_it_names(tmp_path: Path) -> None:
    written = schedule(tmp_path, {"rewind": {"to": "small", "set": {"seed": "+1"}}})
    plan = make_plan(written)
    again = replanned(written, plan, rejections(written, 1, 1))
    assert [stage.seed for stage in again.staged.stages] == [1, 0, 0]
    assert not {stage.key for stage in again.staged.stages} & {stage.key for stage in plan.staged.stages}


def test_without_an_answer_the_run_stops(tmp_path: Path) -> None:
    (only,) = rejections(schedule(tmp_path, "abort"), 1, 1)
    assert only.action == "abort"
    assert only.sentence() == f"not accepted ({REASONS[0]}): the run stops here"


# --- carried out ----------------------------------------------------------------------------------


class Callback:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        def told(run: object, stage: object = None, *facts: object) -> None:
            self.calls.append(f"{name} {getattr(stage, 'name', '')}".strip())

        return told


class Finished:
    """A store in which everything is finished that a schedule may come to."""

    def __init__(self, folder: Path, written: Schedule) -> None:
        self.written, self.plan = written, make_plan(written)
        self.store, self.callback = Store(open_folder(folder / "store")), Callback()

    def commit(self, plan: Plan, *losses: float, prefixes: dict[int, Prefix] | None = None) -> list[StageRecord]:
        """Records of a plan's staged run, with these losses, and of its baselines."""
        records = [
            make_record(stage, loss, prefix=(prefixes or {}).get(index))
            for index, (stage, loss) in enumerate(zip(plan.staged.stages, losses, strict=False))
        ]
        baselines = {stage.key: make_record(stage, 1.0) for run in plan.baselines for stage in run.stages}
        for record in (*records, *baselines.values()):
            self.store.commit_record(record)
        return records

    def after(self, *times: int) -> Plan:
        """The plan after so many rejections of stage number 1."""
        return replanned(self.written, self.plan, rejections(self.written, 1, *times))

    def driver(self) -> Driver:
        return Driver(self.plan, self.written, self.store, [self.callback])


def test_the_driver_goes_on_with_what_is_accepted_and_counts_what_was_not(tmp_path: Path) -> None:
    """full is rejected, tried again, and passes; its first attempt stays in the report and in the bill."""
    found = Finished(tmp_path, schedule(tmp_path, {"retry": {"set": {LR: "*0.5"}}}))
    small, rejected, _ = found.commit(found.plan, 2.5, 2.2, 1.0)
    _, full, last = found.commit(found.after(1), 2.5, 1.9, 1.8)
    report = found.driver().run()
    assert [row.key for row in report.stages] == [small.key, full.key, last.key]
    assert [row.key for row in report.given_up] == [rejected.key]
    (attempt,) = report.attempts
    assert (attempt.stage, attempt.action, attempt.number) == ("full", "retry", 1)
    assert report.savings.flops_staged == small.flops + full.flops + last.flops + rejected.flops
    assert found.callback.calls.count("rejected full") == 1
    assert found.callback.calls.count("stage_finished full") == 2
    assert found.callback.calls.count("stage_finished small") == 1


def test_after_a_rewind_all_that_it_threw_away_counts(tmp_path: Path) -> None:
    found = Finished(tmp_path, schedule(tmp_path, {"rewind": {"to": "small", "set": {"seed": "+1"}}}))
    before = found.commit(found.plan, 2.5, 2.2)
    after = found.commit(found.after(1), 2.4, 1.9, 1.8)
    report = found.driver().run()
    assert [row.key for row in report.given_up] == [record.key for record in before]
    assert report.savings.flops_staged == sum(record.flops for record in (*before, *after))


def test_what_an_extension_took_over_counts_once(tmp_path: Path) -> None:
    found = Finished(tmp_path, schedule(tmp_path, {"extend": {"tokens": 400}}))
    small, rejected = found.commit(found.plan, 2.5, 2.2)
    prefix = Prefix(rejected.key, rejected.duration, rejected.flops, rejected.seconds)
    _, full, last = found.commit(found.after(1), 2.5, 1.9, 1.8, prefixes={1: prefix})
    report = found.driver().run()
    assert report.savings.flops_staged == small.flops + full.flops + last.flops


def test_when_nothing_is_left_to_try_the_run_ends_and_says_why(tmp_path: Path) -> None:
    found = Finished(tmp_path, schedule(tmp_path, {"retry": {"set": {LR: "*0.5"}}}))
    found.commit(found.plan, 2.5, 2.2)
    found.commit(found.after(1), 2.5, 2.1)
    with pytest.raises(
        StageRejected, match=r"^stage full: not accepted: eval_loss_below: expected less than 2, found 2\.1"
    ):
        found.driver().run()
    kept = found.store.read_run("tiny", "report.json")
    assert kept["state"] == "ERRORED"
    assert [one["action"] for one in kept["attempts"]] == ["retry", "abort"]
    assert [row["state"] for row in kept["stages"]] == ["REUSED", "ERRORED", "SCHEDULING"]


def test_a_rejected_growth_is_answered_too(tmp_path: Path) -> None:
    """Records say that the loss rose by 0.5 when full was grown."""
    grow = {"grow": {"operator": "stack", "require": {"loss_increase_below": 0.1}}}
    found = Finished(tmp_path, schedule(tmp_path, {"retry": {"set": {"grow.operator": "identity"}}}, **grow))
    found.commit(found.plan, 2.5, 1.9)
    found.commit(found.after(1), 2.5, 1.9)
    with pytest.raises(GrowthRejected, match=r"growing by identity is outside of grow\.require"):
        found.driver().run()
    assert found.callback.calls.count("rejected full") == 2
