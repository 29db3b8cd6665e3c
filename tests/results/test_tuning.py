"""Which of the values that were tried are compared, and what the report makes of them and of several seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_record, make_schedule
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan, with_choice
from raystage.plans.plan import Choice, Plan, RunPlan
from raystage.reports.build import build_report
from raystage.reports.cost_tables import cost_table, ledger_table
from raystage.reports.html import page
from raystage.reports.markdown import markdown
from raystage.results.record import StageRecord
from raystage.results.report import RunReport, SeedRow, report_from_json
from raystage.results.savings import FinishedRun, compare
from raystage.results.seeds import interval
from raystage.results.tuning import TunedLoss, choose, compared, edges, final_loss, tried_with
from raystage.runs.driver import Driver
from raystage.runs.wandb_rows import run_config, savings_summary
from raystage.storage.store import Store

LR = "training.optimizer.lr"
RATES = [1e-3, 2e-3, 4e-3, 8e-3]  # the schedule's own is 2e-3
BUDGETS = [1000, 1500, 2000]
# At the end of every run. Of the baseline 8e-3 is best at 1,000 tokens and 4e-3 beyond.
LOSSES = {
    "staged": 2.4, "staged-lr-0.001": 2.5, "staged-lr-0.004": 2.3, "staged-lr-0.008": 2.2,
    "baseline": (2.6, 2.4, 2.3),
    "baseline-lr-0.001": (2.7, 2.5, 2.4),
    "baseline-lr-0.004": (2.65, 2.3, 2.1),
    "baseline-lr-0.008": (2.5, 2.35, 2.15),
}  # fmt: skip


def tuned(folder: Path, rates: list[float] = RATES, **changes: object) -> Schedule:
    return make_schedule(folder, **{"baseline": {"budgets": BUDGETS, "tune": {LR: rates}}, **changes})


def losses_of(runs: tuple[RunPlan, ...], losses: dict) -> dict[str, float]:
    """By name of the run: 'baseline-1500-lr-0.004' is the second of 'baseline-lr-0.004'."""
    found = {}
    for run in runs:
        side, _, rest = run.name.partition("-")
        if side == "baseline":
            budget, _, variant = rest.partition("-")
            key = f"baseline-{variant}" if variant else "baseline"
            if key in losses:
                found[run.name] = losses[key][BUDGETS.index(int(budget))]
        elif run.name in losses:
            found[run.name] = losses[run.name]
    return found


def finished(plan: Plan, losses: dict = LOSSES) -> dict[str, StageRecord]:
    """The stages of all runs that have a loss; what comes before the last of a run ends at 3.0."""
    ends = losses_of(plan.runs(), losses)
    runs = [run for run in plan.runs() if run.name in ends]
    records = {stage.key: make_record(stage, 3.0) for run in runs for stage in run.stages[:-1]}
    return records | {run.stages[-1].key: make_record(run.stages[-1], ends[run.name]) for run in runs}


def rate_of(run: RunPlan) -> float:
    return run.stages[-1].training.optimizer.lr


# --- choosing ---------------------------------------------------------------------------------


def test_each_side_has_its_best_value_the_baseline_at_each_budget(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    assert choose(plan, finished(plan)) == Choice(((LR, 8e-3),), (((LR, 8e-3),), ((LR, 4e-3),), ((LR, 4e-3),)))


def halved(record: StageRecord, choosing: float, judging: float) -> StageRecord:
    """A record whose last evaluation tells the halves of the held-out text apart."""
    end = replace(record.end, choosing_loss=choosing, judging_loss=judging)
    return replace(record, evaluations=(*record.evaluations[:-1], end))


def with_halves(plan: Plan, records: dict[str, StageRecord], lucky: str) -> dict[str, StageRecord]:
    """All text is alike but for one run, which says the first half better by 1 nat and the other worse by 1."""
    luck = {run.stages[-1].key: 1.0 for run in plan.runs() if run.name == lucky}
    return {
        key: halved(record, record.eval_loss - luck.get(key, 0), record.eval_loss + luck.get(key, 0))
        for key, record in records.items()
    }


def test_values_are_chosen_on_one_half_of_the_text_and_compared_on_the_other(tmp_path: Path) -> None:
    """Two rates are as good as each other; the one that had luck on the first half is chosen, and its luck is gone."""
    plan = make_plan(tuned(tmp_path))
    records = finished(plan)
    lucky = with_halves(plan, records, "staged-lr-0.004")
    assert choose(plan, lucky).staged == ((LR, 4e-3),)
    report = build_report(plan, lucky, {})
    assert report.savings.at_eval_loss is not None
    assert report.savings.compute_saved is None  # 3.3 on the other half
    assert "3.300 against 2.100 to 2.500" in report.savings.verdict
    plain = build_report(plan, with_halves(plan, records, ""), {})
    assert plain.savings.is_judged_on_half
    assert plain.tuning.chosen_on_half
    assert not any("chosen by the text" in warning for warning in plain.warnings)
    assert "Losses are those of the half of the held-out text by which no value was chosen." in markdown(plain)


def test_records_without_halves_are_chosen_and_compared_on_all_text_and_it_is_said(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    records = finished(plan)
    mixed = with_halves(plan, records, "staged-lr-0.004")
    old = plan.baselines[0].stages[-1].key
    mixed[old] = records[old]
    assert choose(plan, mixed).staged == ((LR, 8e-3),)
    report = build_report(plan, mixed, {})
    assert not report.savings.is_judged_on_half
    assert any(warning.startswith("Values are chosen by the text that they") for warning in report.warnings)


def test_what_a_further_seed_comes_to_changes_no_choice(tmp_path: Path) -> None:
    """A seed of an older version, without halves: the choice stays that of the first seed's first half."""
    schedule = tuned(tmp_path, seeds=2)
    plan = make_plan(schedule)
    lucky = with_halves(plan, finished(plan), "staged-lr-0.004")
    chosen = with_choice(plan, schedule, choose(plan, lucky))
    records = lucky | finished(chosen, {"staged-seed-1": 2.25, "baseline-seed-1": (2.6, 2.3, 2.15)})
    assert choose(chosen, records) == choose(plan, lucky)
    assert not build_report(chosen, records, {}).savings.is_judged_on_half


def test_the_fair_baseline_is_the_best_value_at_each_budget() -> None:
    """Rates A and B at C = 3.42, 4.99 and 6.81, the staged run 1.75 at 3.18. A is better at the largest budget: along
    its curve the straight line says 46.6 %. With the best rate at each budget it says 32.1 %, and that is the most."""
    flops, first, second = (3.42, 4.99, 6.81), (2.20, 1.95, 1.60), (2.00, 1.70, 1.61)
    staged = FinishedRun(1.75, 3.18, 0)

    def curve(losses: Iterable[float]) -> list[FinishedRun]:
        return [FinishedRun(loss, cost, 0) for cost, loss in zip(flops, losses, strict=True)]

    assert compare(staged, curve(first)).compute_saved_at_most == pytest.approx(0.466, abs=5e-4)
    best = compare(staged, curve(map(min, first, second)))
    assert best.compute_saved_at_most == pytest.approx(0.321, abs=5e-4)
    assert 0 < best.compute_saved < best.compute_saved_at_most
    both = compare(staged, [*curve(first), *curve(second)])
    assert both == best


def test_the_reports_baseline_has_the_best_value_at_each_budget(tmp_path: Path) -> None:
    """The same, carried through plan, choice and report."""
    losses = {
        "staged": 1.75, "staged-lr-0.004": 1.9, "baseline": (2.20, 1.95, 1.60), "baseline-lr-0.004": (2.00, 1.70, 1.61),
    }  # fmt: skip
    plan = make_plan(tuned(tmp_path, [4e-3]))
    report = build_report(plan, finished(plan, losses), {})
    assert [row.name for row in report.baseline.runs] == [
        "baseline-1000-lr-0.004", "baseline-1500-lr-0.004", "baseline-2000",
    ]  # fmt: skip
    smaller, larger = (run.flops for run in plan.baselines[:2])
    assert report.savings.flops_baseline_at_most == pytest.approx(smaller * (larger / smaller) ** (0.25 / 0.3))


def test_nothing_is_chosen_before_all_values_are_finished(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    records = finished(plan)
    del records[plan.variants[-1].baselines[0].stages[-1].key]  # the smallest budget of the last value
    assert choose(plan, records) is None
    assert compared(plan, records) is plan


def test_of_equal_losses_the_schedules_own_value_counts(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path, [4e-3]))
    equal = {"staged": 2.0, "staged-lr-0.004": 2.0, "baseline": (2.5, 2.4, 2.0), "baseline-lr-0.004": (2.3, 2.2, 2.0)}
    best = choose(plan, finished(plan, equal))
    assert best == Choice(((LR, 2e-3),), (((LR, 4e-3),), ((LR, 4e-3),), ((LR, 2e-3),)))


def test_a_value_with_which_training_diverged_is_the_worst(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    worse = {**LOSSES, "staged": math.nan, "staged-lr-0.008": math.inf}
    assert choose(plan, finished(plan, worse)).staged == ((LR, 4e-3),)


def test_which_values_a_run_tries(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path, seeds=2))
    tries = {run.name: tried_with(plan, run.name) for run in plan.runs()}
    assert tries["staged-lr-0.004"] == tries["baseline-1000-lr-0.004"] == "training.optimizer.lr 0.004"
    assert tries["staged"] == tries["baseline-1000"] == tries["staged-seed-1"] == ""


def test_what_is_compared_stands_in_the_schedules_place_and_that_among_the_variants(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    best = compared(plan, finished(plan))
    assert rate_of(best.staged) == 8e-3
    assert [rate_of(run) for run in best.baselines] == [8e-3, 4e-3, 4e-3]
    assert {run.name for run in best.runs()} == {run.name for run in plan.runs()}
    assert [rate_of(one.staged) for one in best.variants] == [2e-3, 1e-3, 4e-3]
    assert [rate_of(one.baselines[0]) for one in best.variants] == [2e-3, 1e-3, 4e-3]
    assert [rate_of(one.baselines[2]) for one in best.variants] == [2e-3, 1e-3, 8e-3]


# --- the report of a tuned run ----------------------------------------------------------------


@pytest.fixture
def report(tmp_path: Path) -> RunReport:
    plan = make_plan(tuned(tmp_path))
    return build_report(plan, finished(plan), {})


def test_best_is_compared_with_best(report: RunReport, tmp_path: Path) -> None:
    """2.2 lies in the middle of 2.3 and 2.1, which the best baseline has at 1,500 and 2,000 tokens. From 2.5 at 1,000
    tokens on the loss falls 1.41 times less steeply, and counts as so much steeper."""
    plan = make_plan(tuned(tmp_path))
    smaller, larger = (run.flops for run in plan.baselines[1:])
    assert report.savings.at_eval_loss == 2.2
    bent = (0.2 / math.log(2000 / 1500)) / (0.2 / math.log(1500 / 1000))
    earliest = smaller * (larger / smaller) ** (0.5 / bent)
    assert report.savings.flops_baseline_at_most == pytest.approx(math.sqrt(smaller * larger))
    assert report.savings.flops_baseline == pytest.approx(earliest)
    assert report.savings.compute_saved == pytest.approx(1 - plan.staged.flops / earliest)
    assert "seeds" not in to_json(report.savings)
    assert [row.eval_loss for row in report.stages] == [3.0, 2.2]
    assert [row.eval_loss for row in report.baseline.runs] == [2.5, 2.3, 2.1]
    assert report_from_json(json.loads(json.dumps(to_json(report), allow_nan=False))) == report


def test_all_that_was_tried_stands_in_the_report_by_size(report: RunReport) -> None:
    staged, baseline = report.tuning.staged, report.tuning.baseline
    assert [row.values for row in staged.rows] == [{LR: rate} for rate in RATES]
    assert [row.is_best for row in staged.rows] == [False, False, False, True]
    assert [row.is_best for row in baseline.rows] == [False, False, True, True]
    assert (staged.at_edge, baseline.at_edge) == (True, True)
    assert baseline.rows[2].eval_losses == (
        TunedLoss(1000, 2.65, is_best=False), TunedLoss(1500, 2.3, is_best=True), TunedLoss(2000, 2.1, is_best=True),
    )  # fmt: skip


def test_a_report_of_before_each_budget_had_its_own_best_value_is_read(report: RunReport) -> None:
    """Then it was one for all budgets, by the last of them. There were no costs, and no word on what was covered."""
    old = json.loads(json.dumps(to_json(report)))
    for side in ("staged", "baseline"):
        for row in old["tuning"][side]["rows"]:
            for loss in row["eval_losses"]:
                del loss["is_best"]
    for key in ("claimed", "billed", "currency"):
        del old["ledger"][key]
    for entry in old["ledger"]["entries"]:
        for key in ("gpu_hours", "energy_kwh", "co2_kg", "money"):
            del entry[key]
    found = report_from_json(old)
    marks = [[loss.is_best for loss in row.eval_losses] for row in found.tuning.baseline.rows]
    assert marks == [[False] * 3, [False] * 3, [False, False, True], [False, False, True]]
    assert cost_table(found).rows == ()
    assert ledger_table(found) == ledger_table(report)


def test_the_tables_mark_the_best_of_each_side(report: RunReport) -> None:
    text = markdown(report)
    assert "| lr 0.004 | 2.300 | 2.650 | 2.300 (best) | 2.100 (best) |" in text
    assert "| lr 0.008 | 2.200 (best) | 2.500 (best) | 2.350 | 2.150 |" in text
    assert "lr 0.008" in page([(report, None)])


def test_what_came_out_worse_is_billed_and_not_claimed(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    ledger = build_report(plan, finished(plan), {}).ledger
    tuning = next(entry for entry in ledger.entries if entry.what == "tuning")
    once = plan.staged.flops + plan.baseline_flops_shared()
    best = compared(plan, finished(plan))
    # Of either side one of four values is compared, at each budget; those at 1,500 and 2,000 tokens share a trunk.
    assert tuning.flops == 4 * once - plan.staged.flops - best.baseline_flops_shared()
    assert not tuning.is_claimed
    assert ledger.flops_claimed == plan.staged.flops
    assert ledger.flops_spent == 4 * once + 1000 * len({stage.key for run in plan.runs() for stage in run.stages})


def test_a_best_value_at_the_edge_and_few_values_are_open_to_doubt(report: RunReport, tmp_path: Path) -> None:
    edge = [warning for warning in report.warnings if "edge" in warning]
    assert [warning.partition(",")[0] for warning in edge] == [
        "The staged run's best training.optimizer.lr", "The baseline's best training.optimizer.lr",
    ]  # fmt: skip
    assert all("lr, 0.008, lies at the edge" in warning for warning in edge)
    assert not any("not tuned" in warning for warning in report.warnings)
    plan = make_plan(tuned(tmp_path, [4e-3]))
    two = build_report(plan, finished(plan), {}).warnings
    assert any(warning.startswith("Only 2 values of training.optimizer.lr tried") for warning in two)
    assert not any("edge" in warning for warning in two)


def test_a_rate_that_is_not_among_what_is_tuned_stays_open_to_doubt(tmp_path: Path) -> None:
    schedule = make_schedule(
        tmp_path, baseline={"budgets": BUDGETS, "tune": {"training.optimizer.weight_decay": [0.0, 0.1, 0.2]}}
    )
    warnings = build_report(make_plan(schedule), {}, {}).warnings
    assert any("rate is not tuned" in warning for warning in warnings)


def test_below_a_weight_decay_of_0_there_is_nothing_to_try(tmp_path: Path) -> None:
    decay = "training.optimizer.weight_decay"
    plan = make_plan(make_schedule(tmp_path, baseline={"budgets": BUDGETS, "tune": {decay: [0, 0.1, 0.2]}}))
    assert edges(plan, ((decay, 0.0),)) == []
    assert edges(plan, ((decay, 0.2),)) == [decay]


def test_while_it_goes_the_report_waits(tmp_path: Path) -> None:
    plan = make_plan(tuned(tmp_path))
    written = {name: LOSSES[name] for name in ("staged", "baseline")}
    report = build_report(plan, finished(plan, written), {})
    assert report.savings.compute_saved is None
    assert report.savings.verdict.startswith("no saving to report yet: 12 of 16 runs not finished (baseline-1000-")
    assert report.tuning.staged.rows[0].is_best is None
    assert "| lr 0.002 | 2.400 | 2.600 | 2.400 | 2.300 |" in markdown(report)


# --- several seeds ----------------------------------------------------------------------------


def of_seeds(folder: Path, *staged_losses: float) -> tuple[Plan, RunReport]:
    """The plan and the report of as many seeds; every seed's baselines come to the same losses."""
    plan = make_plan(make_schedule(folder, seeds=len(staged_losses)))
    names = ["", *(f"-seed-{seed}" for seed in range(1, len(staged_losses)))]
    losses = {f"staged{name}": loss for name, loss in zip(names, staged_losses, strict=True)}
    losses |= {f"baseline{name}": (2.7, 2.4, 2.19) for name in names}
    return plan, build_report(plan, finished(plan, losses), {})


def test_over_seeds_the_verdict_is_the_mean_with_its_interval(tmp_path: Path) -> None:
    plan, report = of_seeds(tmp_path, 2.2, 2.205, 2.21)
    savings = report.savings
    smaller, larger = (run.flops for run in plan.baselines[1:])

    bent = (0.3 / math.log(1500 / 1000)) / (0.21 / math.log(2000 / 1500))  # how much steeper the stretch before is

    def saved(loss: float) -> float:
        share = (2.4 - loss) / 0.21 / bent
        return 1 - plan.staged.flops / (smaller ** (1 - share) * larger**share)

    each = [saved(loss) for loss in (2.2, 2.205, 2.21)]
    expected = interval(each)
    assert savings.compute_saved == pytest.approx(each[0])  # the written seed's, as before
    assert savings.seeds.compute_saved.mean == pytest.approx(expected.mean)
    assert savings.seeds.compute_saved.low == pytest.approx(expected.low)
    assert savings.verdict.startswith("saved ")
    assert "mean of 3 seeds, 95 % interval" in savings.verdict
    assert savings.verdict.endswith("tokens per parameter")
    assert [row.seed for row in report.seeds] == [0, 1, 2]
    assert [row.compute_saved for row in report.seeds] == pytest.approx(each)
    assert not any("seed" in warning for warning in report.warnings)
    assert "| 1 | 2.205 | " in markdown(report)
    assert "| mean (95 % interval) | - | " in markdown(report)


def test_where_the_interval_spans_zero_no_figure_is_shown_alone(tmp_path: Path) -> None:
    """One seed saves, one costs more: neither the verdict nor the page claims a saving."""
    _, report = of_seeds(tmp_path, 2.2, 2.45, 2.55)
    assert report.savings.compute_saved > 0
    assert report.savings.verdict.startswith("no saving shown: the interval spans zero")
    shown = page([(report, None)])
    facts = shown[shown.index("compute saved") :]
    assert "not shown (" in facts[:300]
    assert "speed-up" not in shown
    assert "(seed 0 alone)" in shown
    assert "| mean (95 % interval) | - | not shown (" in markdown(report)


def test_two_seeds_are_too_few(tmp_path: Path) -> None:
    _, report = of_seeds(tmp_path, 2.2, 2.21)
    assert "Only 2 seeds: an interval over fewer than 3 says little." in report.warnings


def test_further_seeds_are_billed_and_not_claimed(tmp_path: Path) -> None:
    plan, report = of_seeds(tmp_path, 2.2, 2.21, 2.22)
    entries = {entry.what: entry for entry in report.ledger.entries}
    assert entries["further seeds"].flops == 2 * (plan.staged.flops + plan.baseline_flops_shared())
    assert report.ledger.flops_claimed == plan.staged.flops
    assert "tuning" not in entries


def test_before_all_seeds_are_finished_there_is_no_figure(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path, seeds=2))
    report = build_report(plan, finished(plan, {"staged": 2.2, "baseline": (2.6, 2.4, 2.2)}), {})
    assert report.savings.compute_saved is None
    assert "4 of 8 runs not finished" in report.savings.verdict
    assert report.seeds[1] == SeedRow(1, None, None, None)


def test_wandb_has_each_runs_own_values_and_the_interval(tmp_path: Path) -> None:
    plan, report = of_seeds(tmp_path, 2.2, 2.21, 2.22)
    config = run_config({"seed": 0}, plan, plan.further_seeds[1].staged)
    assert config["variant"] == {"seed": 2}
    tried = make_plan(tuned(tmp_path))
    assert run_config({}, tried, tried.variants[0].baselines[0])["variant"] == {"seed": 0, LR: 1e-3}
    summary = savings_summary(report.savings)
    assert summary["savings/compute_saved_mean"] == report.savings.seeds.compute_saved.mean
    assert summary["savings/compute_saved_low"] < summary["savings/compute_saved_high"]
    assert all(not isinstance(value, dict) for value in summary.values())


# --- carried out ------------------------------------------------------------------------------


class Callback:
    """Writes down which runs began and which stages were there already."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.rates: dict[str, float] = {}

    def run_started(self, run: RunPlan) -> None:
        self.began.append(run.name)

    def stage_started(self, run: RunPlan, stage: object, reused: bool) -> None:
        assert reused
        self.rates[run.name] = stage.training.optimizer.lr

    def __getattr__(self, name: str) -> object:
        return lambda *facts: None


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    text = tmp_path / "text"
    text.mkdir()
    return tuned(text, seeds=2)


def commit(store: Store, records: dict[str, StageRecord]) -> None:
    for record in records.values():
        store.commit_record(record)


def test_a_driver_that_starts_again_comes_to_the_same_choice(schedule: Schedule, tmp_path: Path) -> None:
    """Everything is there: nothing is trained, and the further seed has the values that were best."""
    plan, store = make_plan(schedule), Store(open_folder(tmp_path / "store"))
    records = finished(plan)
    commit(store, records)
    chosen = with_choice(plan, schedule, choose(plan, records))
    ends = {"staged-seed-1": 2.25, "baseline-seed-1": (2.6, 2.3, 2.15)}
    commit(store, finished(chosen, ends))
    callback = Callback()
    driver = Driver(make_plan(schedule), schedule, store, [callback])
    assert driver.is_finished
    report = driver.run()
    assert [row.staged_eval_loss for row in report.seeds] == [2.2, 2.25]
    assert callback.began == [run.name for run in plan.runs()]
    assert (callback.rates["staged-seed-1"], callback.rates["baseline-1000-seed-1"]) == (8e-3, 8e-3)
    assert callback.rates["baseline-2000-seed-1"] == 4e-3
    kept = store.read_run("tiny", "run.json")
    assert {stage["state"] for stage in kept["stages"]} == {"REUSED"}
    assert {stage["key"] for stage in kept["stages"]} == {s.key for run in chosen.runs() for s in run.stages}


def test_a_further_seed_is_not_trained_before_its_values_are_known(schedule: Schedule, tmp_path: Path) -> None:
    """Of the values that are tried one is not finished: what is to be trained next ends with it."""
    plan, store = make_plan(schedule), Store(open_folder(tmp_path / "store"))
    records = finished(plan)
    missing = plan.variants[-1].staged.stages[-1]
    commit(store, {key: record for key, record in records.items() if key != missing.key})
    driver = Driver(make_plan(schedule), schedule, store, [])
    assert not driver.is_finished
    assert [stage.key for stage in driver._next_job()] == [missing.key]
    commit(store, {missing.key: records[missing.key]})
    again = Driver(make_plan(schedule), schedule, store, [])
    job = again._next_job()
    assert {stage.seed for stage in job} == {1}
    assert {stage.training.optimizer.lr for stage in job if stage.parent_key is None} == {8e-3, 4e-3}


def test_the_loss_of_a_run_is_that_of_its_last_stage(tmp_path: Path) -> None:
    plan = make_plan(make_schedule(tmp_path))
    first, last = plan.staged.stages
    records = {first.key: make_record(first, 1.5)}
    assert final_loss(plan.staged, records) is None
    records[last.key] = replace(make_record(last, 1.5), eval_loss=2.0)
    assert final_loss(plan.staged, records) == 2.0
