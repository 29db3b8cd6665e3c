"""What the store has of a sweep's trials: read again while it may change, and once where it will not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raystage.files.filesystem import open_folder
from raystage.files.typed_json import to_json
from raystage.reports.build import build_report
from raystage.storage.store import Store
from raystage.sweeps.reports.build import TrialOutcome, TrialReports, TrialRun, build_sweep_report, needed_of
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweep_results import finished, trained
from sweeps import make_sweep


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """The second trial goes on from the end of the first one's small model."""
    return plan_sweep(make_sweep(tmp_path, "stages[0].until.tokens: {grid: [400, 800]}"))


@pytest.fixture
def store(tmp_path: Path, plan: SweepPlan) -> Store:
    """Both trials finished."""
    store, records = Store(open_folder(tmp_path / "store")), trained(plan, lambda key: 2.0)
    for record in records.values():
        store.commit_record(record)
    for trial in plan.trials:
        report = build_report(trial.plan, records, {})
        store.write_run(f"{plan.sweep.name}-{trial.number}", "report.json", to_json(report))
    return store


def states(runs: dict[int, TrialRun]) -> dict[int, set[str]]:
    return {number: {stage.state for stage in run.stages} for number, run in runs.items()}


def test_the_sweeps_report_is_the_same_as_from_whole_files(plan: SweepPlan, store: Store) -> None:
    outcomes, known = finished(plan, 2.0, 2.1), TrialReports(store, plan.sweep.name)
    whole = {number: needed_of(store.run_report(f"{plan.sweep.name}-{number}")) for number in (0, 1)}
    records = trained(plan, lambda key: 2.0)
    reports = known.runs(outcomes)
    found = build_sweep_report(plan, outcomes, reports, known.records(reports.values()), "FINISHED", 1.0)
    assert found == build_sweep_report(plan, outcomes, whole, records, "FINISHED", 1.0)
    assert found.search.flops_spent == plan.tree.flops_shared


def test_what_has_ended_is_read_once(plan: SweepPlan, store: Store) -> None:
    ended, other = finished(plan, 2.0, 2.1)
    outcomes = [ended, replace(other, is_running=True, objectives={})]
    known = TrialReports(store, plan.sweep.name)
    before = known.records(known.runs(outcomes).values())
    for number in (0, 1):
        content = store.read_run(f"{plan.sweep.name}-{number}", "report.json")
        stages = [{**row, "state": "CHANGED"} for row in content["stages"]]
        store.write_run(f"{plan.sweep.name}-{number}", "report.json", {**content, "stages": stages})
    for key in before:
        store.stage_folder(key).delete()
    reports = known.runs(outcomes)
    assert states(reports)[1] == {"CHANGED"}
    assert "CHANGED" not in states(reports)[0]
    assert known.records(reports.values()) == before


def test_a_trial_that_goes_on_after_its_part_is_read_again(plan: SweepPlan, store: Store) -> None:
    """As LAG's best do."""
    ended = finished(plan, 2.0, 2.1)[0]
    known = TrialReports(store, plan.sweep.name)
    known.runs([replace(ended, is_stopped=True)])
    report = store.run_report(f"{plan.sweep.name}-0")
    store.write_run(f"{plan.sweep.name}-0", "report.json", to_json(replace(report, stages=report.stages[:1])))
    assert len(known.runs([ended])[0].stages) == 1 < len(report.stages)


def test_a_trial_that_has_not_begun_has_no_report(plan: SweepPlan, tmp_path: Path) -> None:
    known = TrialReports(Store(open_folder(tmp_path / "empty")), plan.sweep.name)
    assert known.runs([TrialOutcome(0, {}, is_running=True)]) == {}


def test_a_trial_whose_report_or_record_is_broken_is_left_out(plan: SweepPlan, store: Store) -> None:
    """It must not stop a sweep that has finished its trials."""
    store.run_folder(f"{plan.sweep.name}-0").write_whole("report.json", b'{"a":')
    known = TrialReports(store, plan.sweep.name)
    reports = known.runs(finished(plan, 2.0, 2.1))
    assert set(reports) == {1}
    key = reports[1].stages[0].key
    store.stage_folder(key).write_whole("record.json", b'{"a":')
    assert key not in known.records(reports.values())
