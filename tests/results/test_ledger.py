"""Where the compute of a run went: each stage once, the saving's part apart from the bill."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories import make_records, make_schedule
from raystage.planning.build import make_plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.results.ledger import Ledger, measure_ledger
from raystage.results.record import Prefix


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


# --- hours, energy, money -----------------------------------------------------------------------

HOUR = {"seconds": 3600.0, "evaluation_seconds": 360.0, "energy_joules": 7.2e6, "evaluation_energy_joules": 3.6e5}
PRICES = {"price_per_hour": 2.5, "currency": "EUR", "grid_intensity": 0.5}


def an_hour_each(plan, **changes):
    """Every stage took an hour and 2 kWh, evaluation a tenth of that; growing half a second and 1,800 J of it."""
    records = make_records(plan, 2.2, (2.4, 2.2, 2.1))
    return {key: replace(record, growth=_measured(record), **{**HOUR, **changes}) for key, record in records.items()}


def _measured(record):
    return record.growth and replace(record.growth, energy_joules=1800.0)


def priced(folder, **changes):
    training = {"workers": 2, "gpus_per_worker": 1, "global_batch_tokens": 100}
    return make_plan(make_schedule(folder, training=training, costs=PRICES, **changes))


def test_a_stages_cost_by_hand(tmp_path):
    """2 stages of 1 h on 2 workers with a GPU each: 4 worker-hours at 2.50, 4 GPU-hours, 4 kWh at 0.5 kg; growing is
    listed apart."""
    plan = priced(tmp_path)
    ledger = measure_ledger(plan, an_hour_each(plan), {})
    training, growing = entry(ledger, "training the stages"), entry(ledger, "growing")
    assert (growing.worker_seconds, growing.gpu_hours, growing.energy_kwh) == (
        1.0,
        pytest.approx(1 / 3600),
        1800 / 3.6e6,
    )
    assert training.worker_seconds + growing.worker_seconds == 4 * 3600
    assert training.gpu_hours + growing.gpu_hours == pytest.approx(4)
    assert training.energy_kwh + growing.energy_kwh == pytest.approx(4)
    assert training.co2_kg + growing.co2_kg == pytest.approx(2)
    assert training.money + growing.money == pytest.approx(10)
    assert ledger.claimed.money == pytest.approx(10)
    assert ledger.currency == "EUR"


def test_what_lay_in_the_store_is_in_the_claim_and_not_in_the_bill(tmp_path):
    plan = priced(tmp_path)
    records = an_hour_each(plan)
    whole = measure_ledger(plan, records, {})
    assert whole.billed.money == pytest.approx(len(records) * 2 * 1.1 * 2.5)
    some = measure_ledger(plan, records, {plan.staged.stages[0].key: "REUSED"})
    assert some.claimed == whole.claimed
    assert whole.billed.money - some.billed.money == pytest.approx(2 * 1.1 * 2.5)
    assert whole.billed.energy_kwh - some.billed.energy_kwh == pytest.approx(2.1)
    nothing = measure_ledger(plan, records, dict.fromkeys(records, "REUSED")).billed
    assert (nothing.worker_seconds, nothing.gpu_hours, nothing.energy_kwh, nothing.money) == (0, 0, 0, 0)


def test_without_a_meter_energy_is_not_known_and_all_else_is(tmp_path):
    plan = priced(tmp_path)
    ledger = measure_ledger(plan, an_hour_each(plan, energy_joules=None), {})
    assert (ledger.claimed.energy_kwh, ledger.claimed.co2_kg) == (None, None)
    assert (ledger.billed.energy_kwh, ledger.billed.co2_kg) == (None, None)
    assert ledger.claimed.money == pytest.approx(10)
    assert entry(ledger, "evaluating the stages").energy_kwh == pytest.approx(0.2)


def test_one_stage_without_a_meter_leaves_no_total(tmp_path):
    """A total of what was measured elsewhere would be too small."""
    plan = priced(tmp_path)
    records, first = an_hour_each(plan), plan.staged.stages[0].key
    some = {**records, first: replace(records[first], energy_joules=None, evaluation_energy_joules=None)}
    ledger = measure_ledger(plan, some, {})
    assert (ledger.claimed.energy_kwh, ledger.billed.energy_kwh) == (None, None)
    reused = measure_ledger(plan, some, {first: "REUSED"})
    assert reused.claimed.energy_kwh is None
    assert reused.billed.energy_kwh == pytest.approx((len(records) - 1) * 2.1)


def test_without_prices_there_is_energy_but_neither_money_nor_co2(plan):
    ledger = measure_ledger(plan, an_hour_each(plan), {})
    assert ledger.claimed.energy_kwh == pytest.approx(4)
    assert (ledger.claimed.co2_kg, ledger.claimed.money, ledger.currency) == (None, None, None)
    assert ledger.claimed.gpu_hours == 0


def test_an_attempt_that_was_given_up_costs_what_nobody_took_over(tmp_path):
    """One was given up after an hour, of which the stage that went on from it took over half."""
    plan = priced(tmp_path)
    records, first = an_hour_each(plan), plan.staged.stages[0]
    taken = Prefix("tried", 400, 1000, 1800.0, 3.6e6)
    known = {
        **records,
        "tried": replace(records[first.key], key="tried"),
        first.key: replace(records[first.key], prefix=taken),
    }
    given_up = (replace(first, key="tried"),)
    found = entry(measure_ledger(plan, known, {}, given_up), "attempts that were given up")
    assert found.flops == first.flops - 1000
    assert (found.worker_seconds, found.gpu_hours, found.energy_kwh) == (3600, 1, 1)
    assert found.flops_reused == 0
    reused = measure_ledger(plan, known, {"tried": "REUSED"}, given_up)
    assert entry(reused, "attempts that were given up").flops_reused == first.flops - 1000


def test_prices_are_part_of_no_key(tmp_path):
    assert [stage.key for stage in priced(tmp_path).staged.stages] == [
        stage.key
        for stage in make_plan(
            make_schedule(tmp_path, training={"workers": 2, "gpus_per_worker": 1, "global_batch_tokens": 100})
        ).staged.stages
    ]


def test_the_page_has_a_table_of_costs_where_there_are_any(tmp_path, plan, records):
    paid = priced(tmp_path)
    page = markdown(build_report(paid, an_hour_each(paid), {}))
    assert "| claimed | 4:00:00 | 4 | 4 kWh | 2 kg | 10.00 EUR |" in page
    unmeasured = markdown(build_report(paid, an_hour_each(paid, energy_joules=None), {}))
    assert "| claimed | 4:00:00 | 4 | not measured | - | 10.00 EUR |" in unmeasured
    assert "## Costs" not in markdown(build_report(plan, records, {}))
