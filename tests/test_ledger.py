"""Where the compute of a run went: each stage once, the saving's part apart from the bill."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories import make_records, make_schedule
from raystage.ledger import Ledger, measure_ledger
from raystage.plan import make_plan


@pytest.fixture
def plan(tmp_path):
    return make_plan(make_schedule(tmp_path, training={"workers": 2}))


@pytest.fixture
def records(plan):
    """Every stage took its FLOPs / 1e10 seconds, evaluated for 1,000 FLOPs in 0.25 s, and grew in 0.5 s for nothing."""
    return make_records(plan, 2.2, (2.4, 2.2, 2.1))


def entry(ledger: Ledger, what: str):
    return next(one for one in ledger.entries if one.what == what)


def test_the_saving_counts_the_staged_run_alone(plan, records):
    ledger = measure_ledger(plan, records, {})
    assert ledger.flops_claimed == plan.staged.flops
    assert {one.what for one in ledger.entries if one.is_claimed} == {"training the stages", "growing"}


def test_stretches_that_budgets_share_are_paid_once(plan, records):
    ledger = measure_ledger(plan, records, {})
    assert entry(ledger, "training the baselines").flops == plan.baseline_flops_shared()
    assert ledger.baseline_flops_apart == sum(run.flops for run in plan.baselines) > plan.baseline_flops_shared()


def test_evaluation_is_paid_and_not_claimed(plan, records):
    ledger = measure_ledger(plan, records, {})
    assert entry(ledger, "evaluating the stages").flops == 2 * 1000
    assert entry(ledger, "evaluating the stages").worker_seconds == 2 * 0.25 * 2
    assert ledger.flops_spent == plan.staged.flops + plan.baseline_flops_shared() + 1000 * len(records)


def test_fitting_a_growth_is_apart_from_training(plan, records):
    grown = plan.staged.stages[1]
    growth = replace(records[grown.key].growth, flops=77, seconds=0.25)
    fitted = {**records, grown.key: replace(records[grown.key], growth=growth, flops=grown.flops + 77, seconds=3.0)}
    ledger = measure_ledger(plan, fitted, {})
    assert (entry(ledger, "growing").flops, entry(ledger, "growing").worker_seconds) == (77, 0.5)
    assert entry(ledger, "training the stages").flops == plan.staged.flops
    small = records[plan.staged.stages[0].key].seconds
    assert entry(ledger, "training the stages").worker_seconds == pytest.approx(2 * (small + 2.75))


def test_what_lay_in_the_store_is_claimed_and_not_paid(plan, records):
    small = plan.staged.stages[0]
    ledger = measure_ledger(plan, records, {small.key: "REUSED"})
    assert entry(ledger, "training the stages").flops_reused == small.flops
    assert entry(ledger, "evaluating the stages").flops_reused == 1000
    whole = measure_ledger(plan, records, {})
    assert ledger.flops_claimed == whole.flops_claimed
    assert ledger.flops_spent == whole.flops_spent - small.flops - 1000


def test_all_reused_costs_nothing(plan, records):
    assert measure_ledger(plan, records, dict.fromkeys(records, "REUSED")).flops_spent == 0


def test_only_finished_stages_count(plan, records):
    small = plan.staged.stages[0]
    ledger = measure_ledger(plan, {small.key: records[small.key]}, {})
    assert (ledger.flops_claimed, ledger.baseline_flops_apart) == (small.flops, 0)
    assert measure_ledger(plan, {}, {}).flops_spent == 0


def test_a_stage_that_the_baseline_shares_with_the_run_counts_as_the_runs(tmp_path):
    """A run that never grows is its own baseline."""
    one = [{"name": "only", "model": {"num_layers": 2}, "until": {"tokens": 1000}}]
    constant = {"global_batch_tokens": 100, "lr_schedule": {"kind": "constant"}}
    plan = make_plan(make_schedule(tmp_path, stages=one, baseline={"budgets": [1000]}, training=constant))
    assert plan.baselines[0].stages[0].key == plan.staged.stages[0].key
    ledger = measure_ledger(plan, make_records(plan, 2.2, (2.2,)), {})
    assert ledger.flops_claimed == plan.staged.flops
    assert entry(ledger, "training the baselines").flops == 0
    assert ledger.baseline_flops_apart == plan.staged.flops
