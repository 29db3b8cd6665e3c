"""What came out of a sweep, from what its trials left: ranks, what was claimed and what was spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_record
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.results.record import Prefix, StageRecord
from raystage.results.sweep_report import SweepReport
from raystage.runs.surroundings import surroundings
from raystage.sweeps.reports.build import TrialOutcome, TrialRun, build_sweep_report, needed_of
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweeps import make_sweep

LENGTHS = "stages[0].until.tokens: {grid: [400, 800]}"
RATES = "stages[2].training.optimizer.lr: {grid: [1e-3, 2e-3, 3e-3]}"


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """Two trials, of which the second one's first stage goes on from the first one's."""
    return plan_sweep(make_sweep(tmp_path, LENGTHS))


def trained(plan: SweepPlan, **trained_for: str) -> dict[str, StageRecord]:
    """The records of all stages of a sweep that shared what it could; `trained_for` by the name of a stage."""
    found: dict[str, StageRecord] = {}
    for key, node in plan.tree.nodes.items():
        runs = trained_for.get(node.stage.name, f"search-{node.trials[0]}")
        found[key] = replace(make_record(node.stage, 2.0), trained_for=runs)
        if node.prefix_key:
            shorter = plan.tree.nodes[node.prefix_key].stage
            found[key] = replace(found[key], prefix=Prefix(shorter.key, shorter.duration, shorter.flops, 1.0))
    return found


def trial_run(plan: Plan, records: dict[str, StageRecord]) -> TrialRun:
    return needed_of(build_report(plan, records, {}, surroundings(0.0, "raystage sweep s.yaml")))


def reported(
    plan: SweepPlan, outcomes: list[TrialOutcome], records: dict[str, StageRecord], seen: dict[int, int] | None = None
) -> SweepReport:
    """The sweep's report. seen: by trial how many of its stages it saw finished; all unless said."""
    runs = {}
    for one in outcomes:
        keys = [stage.key for stage in plan.trials[one.number].plan.staged.stages]
        known = {key: records[key] for key in keys[: (seen or {}).get(one.number, len(keys))] if key in records}
        runs[one.number] = trial_run(plan.trials[one.number].plan, known)
    return build_sweep_report(plan, outcomes, runs, records, "FINISHED", 12.5)


def finished(plan: SweepPlan, *losses: float | None) -> list[TrialOutcome]:
    return [
        TrialOutcome(number, plan.trials[number].config, eval_loss=loss, objectives={"eval_loss": loss})
        for number, loss in enumerate(losses)
    ]


def test_what_a_sweep_spends_is_what_its_plan_said(plan: SweepPlan) -> None:
    report = reported(plan, finished(plan, 2.0, 1.9), trained(plan))
    search = report.search
    assert (search.flops_claimed, search.flops_spent) == (plan.tree.flops_apart, plan.tree.flops_shared)
    assert search.sharing_factor == plan.tree.sharing_factor
    assert search.flops_spent < search.flops_claimed
    assert (search.stages_trained, search.stages_claimed) == (len(plan.tree.nodes), 6)
    assert (search.trials, search.seconds) == (2, 12.5)


def test_stages_of_earlier_runs_are_claimed_and_not_spent(plan: SweepPlan) -> None:
    search = reported(plan, finished(plan, 2.0, 1.9), trained(plan, small="yesterday")).search
    small = sum(node.own_flops for node in plan.tree.nodes.values() if node.stage.name == "small")
    assert search.flops_claimed == plan.tree.flops_apart
    assert search.flops_spent == plan.tree.flops_shared - small


def test_a_donor_that_no_trial_ends_with_was_trained_all_the_same(plan: SweepPlan) -> None:
    """As after LAG's choice: the part up to the choice is a stage of its own, in nobody's last report."""
    second = plan.trials[1].plan.staged
    prefix_key = plan.tree.nodes[second.stages[0].key].prefix_key
    keys = [prefix_key, *(stage.key for stage in second.stages)]
    records = {key: replace(trained(plan)[key], trained_for="search-1") for key in keys}
    search = reported(plan, finished(plan, 2.0, 1.9)[1:], records).search
    assert search.flops_spent == search.flops_claimed == second.flops


def test_a_stopped_trial_counts_as_far_as_it_came(plan: SweepPlan) -> None:
    first, second = (trial.plan.staged for trial in plan.trials)
    records = {
        key: one for key, one in trained(plan).items() if key not in (second.stages[1].key, second.stages[2].key)
    }
    reached = second.stages[0].flops + second.stages[1].flops // 2
    stopped = TrialOutcome(1, plan.trials[1].config, is_stopped=True, eval_loss=3.0, flops=reached)
    report = reported(plan, [*finished(plan, 2.0), stopped], records)
    assert report.search.flops_claimed == first.flops + reached
    assert report.search.flops_spent == first.flops + reached - first.stages[0].flops
    assert [(row.state, row.rank) for row in report.trials] == [("FINISHED", 1), ("ABORTED", None)]


def test_what_was_finished_for_a_trial_that_was_stopped_meanwhile_is_its_own(plan: SweepPlan) -> None:
    """Its workers were faster than the decision: it was stopped at an evaluation in a stage that they then finished."""
    first, second = (trial.plan.staged for trial in plan.trials)
    records = {key: one for key, one in trained(plan).items() if key != second.stages[2].key}
    stopped = TrialOutcome(1, plan.trials[1].config, is_stopped=True, flops=second.stages[0].flops + 1)
    search = reported(plan, [*finished(plan, 2.0), stopped], records, {1: 0}).search
    assert search.flops_claimed == first.flops + second.stages[0].flops + second.stages[1].flops
    assert search.flops_spent == search.flops_claimed - first.stages[0].flops


def test_what_a_stopped_trial_began_and_another_one_finished_counts_once(tmp_path: Path) -> None:
    plan = plan_sweep(make_sweep(tmp_path, RATES))
    stages = plan.trials[0].plan.staged.stages
    stopped = TrialOutcome(0, plan.trials[0].config, is_stopped=True, flops=stages[0].flops + stages[1].flops // 2)
    others = finished(plan, 0.0, 2.0, 1.9)[1:]
    records = {key: one for key, one in trained(plan, middle="search-1").items() if key != stages[2].key}
    search = reported(plan, [stopped, *others], records, {0: 1}).search
    assert search.flops_spent == plan.tree.flops_shared - stages[2].flops
    assert search.flops_claimed == stopped.flops + 2 * plan.trials[1].plan.staged.flops


def test_a_failed_trial_has_its_error_and_no_rank(plan: SweepPlan) -> None:
    failed = TrialOutcome(0, plan.trials[0].config, error="NonFiniteLoss: stage full: the loss is nan")
    report = reported(plan, [failed, *finished(plan, 0.0, 1.9)[1:]], trained(plan), {0: 0})
    row = report.trials[0]
    assert (row.state, row.error, row.rank) == ("ERRORED", failed.error, None)
    assert report.best.number == 1
    assert report.best.config == plan.trials[1].config


def test_where_all_failed_there_is_no_best(plan: SweepPlan) -> None:
    failed = [TrialOutcome(number, {}, error="no") for number in (0, 1)]
    report = reported(plan, failed, {})
    assert (report.best, report.pays_for_itself_after) == (None, None)
    assert (report.search.flops_spent, report.search.sharing_factor) == (0, None)


def test_ranks_go_by_the_objective_and_what_was_not_reached_is_last(tmp_path: Path) -> None:
    target = {"metric": "flops_to_loss", "target": 1.5}
    plan = plan_sweep(make_sweep(tmp_path, RATES, objective=target))
    figures = [float("inf"), 2e9, 1e9]
    outcomes = [
        TrialOutcome(number, plan.trials[number].config, objectives={"flops_to_loss": figure})
        for number, figure in enumerate(figures)
    ]
    rows = reported(plan, outcomes, trained(plan)).trials
    assert [row.rank for row in rows] == [3, 2, 1]
    assert rows[0].objectives == {"flops_to_loss": None}  # strictly JSON


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    objectives = [{"metric": "eval_loss"}, {"metric": "compute_saved"}]
    plan = plan_sweep(make_sweep(tmp_path, RATES, objective=objectives))
    pairs = [(1.9, 0.1), (2.0, 0.3), (2.1, 0.2)]
    outcomes = [
        TrialOutcome(number, {}, objectives={"eval_loss": loss, "compute_saved": saved})
        for number, (loss, saved) in enumerate(pairs)
    ]
    rows = reported(plan, outcomes, trained(plan)).trials
    assert [(row.rank, row.is_pareto) for row in rows] == [(1, True), (2, True), (3, False)]


def test_a_search_pays_for_itself_once_the_best_schedule_saved_as_much(tmp_path: Path) -> None:
    plan = plan_sweep(make_sweep(tmp_path, RATES, objective={"metric": "compute_saved"}))
    records, outcome = trained(plan), TrialOutcome(0, {}, objectives={"compute_saved": 0.25})
    run = trial_run(plan.trials[0].plan, records)
    savings = replace(run.savings, compute_saved=0.25, flops_baseline=4_000, flops_staged=3_000)
    found = build_sweep_report(plan, [outcome], {0: replace(run, savings=savings)}, records, "FINISHED", 1.0)
    assert found.pays_for_itself_after == found.search.flops_spent / 1_000
    worse = replace(run, savings=replace(savings, compute_saved=-0.1))
    found = build_sweep_report(plan, [outcome], {0: worse}, records, "FINISHED", 1.0)
    assert found.pays_for_itself_after is None
