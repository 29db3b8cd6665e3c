"""The report of a run at any time, as JSON and as a page of Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from factories import make_record, make_records, make_schedule
from raystage.errors import InputError
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.initial import InitPlan
from raystage.reports.build import GivenUp, build_report, curve
from raystage.reports.markdown import markdown
from raystage.reports.tables import metric_table
from raystage.results.comparison import length_per_parameter, measure_savings
from raystage.results.data.data_use import Counted
from raystage.results.record import Certificate, Prefix, StageRecord, perplexity
from raystage.results.report import report_from_json

BASELINE_LOSSES = (2.4, 2.2, 2.1)
STAGE_FIELDS = {
    "name", "key", "state", "num_params", "num_layers", "num_workers", "zero_stage", "tokens", "steps", "flops",
    "seconds", "worker_seconds", "peak_memory_bytes", "eval_loss", "perplexity", "accuracy", "metrics",
    "growth",
}  # fmt: skip
SAVINGS_FIELDS = {
    "at_eval_loss", "compute_saved", "speedup", "time_saved", "flops_staged", "flops_baseline", "equal_loss_reached",
    "verdict", "tokens_saved", "loss_difference_at_equal_flops", "at_equal_flops", "compute_saved_at_most",
    "flops_baseline_at_most", "loss_difference_at_equal_flops_at_most", "is_judged_on_half",
}  # fmt: skip
MEASURED = {
    "tokens", "steps", "flops", "seconds", "worker_seconds", "evaluation_seconds", "evaluation_flops",
    "peak_memory_bytes", "eval_loss", "perplexity", "accuracy",
}  # fmt: skip


@pytest.fixture
def plan(tmp_path):
    return make_plan(make_schedule(tmp_path, training={"workers": 2}))


@pytest.fixture
def records(plan):
    return make_records(plan, 2.2, BASELINE_LOSSES)


@pytest.fixture
def report(plan, records):
    return build_report(plan, records, {}, {"python": "3.11"})


# --- a finished run ---------------------------------------------------------------------------


def test_it_is_strict_json_and_the_same_from_json(report):
    text = json.dumps(to_json(report), allow_nan=False)
    assert report_from_json(json.loads(text)) == report
    assert json.dumps(to_json(report_from_json(json.loads(text)))) == text


def test_stages_stand_in_order_with_all_their_fields(report):
    assert [row.name for row in report.stages] == ["small", "full"]
    assert all(row.keys() >= STAGE_FIELDS for row in to_json(report.stages))
    assert report.name == "tiny"
    assert report.state == "FINISHED"
    assert report.environment == {"python": "3.11"}


def test_a_stages_figures_are_its_own(plan, report):
    row, stage = report.stages[1], plan.staged.stages[1]
    assert (row.duration, row.steps, row.flops) == (1200, 12, stage.flops)
    assert (row.num_layers, row.num_params, row.num_workers, row.zero_stage) == (4, stage.num_params, 2, 1)
    assert row.worker_seconds == 2 * row.seconds
    assert (row.start, row.start_flops) == (800, plan.staged.stages[0].flops)
    assert row.eval_loss == 2.2


def test_a_row_says_how_good_its_model_was_at_its_end(plan, records):
    first, full = plan.staged.stages[1].key, plan.baselines[0].stages[-1].key
    for key, accuracy in ((first, 0.25), (full, 0.5)):
        early = replace(records[key].end, accuracy=0.1)
        records[key] = replace(records[key], evaluations=(early, replace(early, accuracy=accuracy)))
    report = build_report(plan, records, {})
    rows = report.stages[1], report.baseline.runs[0]
    assert [row.perplexity for row in rows] == [pytest.approx(math.exp(loss)) for loss in (2.2, 2.4)]
    assert [row.accuracy for row in rows] == [0.25, 0.5]
    assert report.stages[0].accuracy is None
    assert "| 2.200 | 9.025 | 25.0 % |" in markdown(report)
    assert "| 2.400 | 11.02 | 50.0 % |" in markdown(report)


def test_metrics_of_the_schedule_have_a_table_of_their_own(plan, records):
    full, baseline = plan.staged.stages[1].key, plan.baselines[0].stages[-1].key
    for key, metrics in ((full, {"exact_match": 0.25, "f1/10": 0.5}), (baseline, {"exact_match": 0.125})):
        records[key] = replace(records[key], evaluations=(replace(records[key].end, metrics=metrics),))
    report = build_report(plan, records, {})
    assert report.stages[1].metrics == {"exact_match": 0.25, "f1/10": 0.5}
    table = metric_table(report)
    assert table.columns == ("metric", "full", "baseline-1000")
    assert table.rows == [["exact_match", "0.25", "0.125"], ["f1/10", "0.5", "-"]]
    assert "| exact_match | 0.25 | 0.125 |" in markdown(report)


def test_perplexity_of_any_loss():
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_a_grown_stage_has_its_certificate(report):
    first, second = report.stages
    assert first.growth is None
    assert to_json(second.growth) == {
        "operator": "stack",
        "optimizer_state": "grow",
        "seconds": 0.5,
        "flops": 0,
        "energy_joules": None,
        "certificate": {
            "eval_loss_before": 2.0,
            "eval_loss_after": 2.5,
            "max_logit_difference": 3.0,
            "mean_logit_difference": 0.5,
            "activation_rms_ratio": [1.0, None],
            "gradient_error": None,
            "gradient_error_estimated": 1.25,
            "moment_norms": {"exp_avg": {"before": 0.5, "after": 0.75}},
            "twin_distance": 0.02,
            "twin_steps": 12,
            "seconds": 0.5,
            "bytes_read": 4096,
            "exact": False,
        },
    }


def test_the_page_says_what_growing_did(plan, records, report):
    row = next(line for line in markdown(report).splitlines() if line.startswith("| full | stack |"))
    cells = ["full", "stack", "no", "2.000", "2.500", "3 (0.5)", "1.2 (estimated)", "0.02 at 12 steps", "0.5 s"]
    assert row == f"| {' | '.join(cells)} |"
    first = plan.staged.stages[0]
    assert "What growing did" not in markdown(build_report(plan, {first.key: records[first.key]}, {}))


def test_an_exact_prediction_counts_more_than_an_estimate(plan, records):
    stage = plan.staged.stages[1]
    growth = records[stage.key].growth
    both = replace(growth, certificate=replace(growth.certificate, gradient_error=1e-6, exact=True))
    page = markdown(build_report(plan, {**records, stage.key: make_record(stage, 2.2, growth=both)}, {}))
    assert "| 1e-06 | 0.02 at 12 steps |" in page


def test_a_record_of_before_these_figures_is_shown_with_dashes(plan, records):
    """Records are kept for ever: one with the three first figures alone is read and shown."""
    stage = plan.staged.stages[1]
    content = json.loads(json.dumps(records[stage.key].to_json()))
    figures = ("eval_loss_before", "eval_loss_after", "max_logit_difference")
    content["growth"]["certificate"] = {figure: content["growth"]["certificate"][figure] for figure in figures}
    old = StageRecord.from_json(content)
    page = markdown(build_report(plan, {**records, stage.key: old}, {}))
    assert "| full | stack | - | 2.000 | 2.500 | 3 (-) | - | - | 0.5 s |" in page


def test_a_record_survives_json(plan, records):
    record = records[plan.staged.stages[1].key]
    assert StageRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_curves_are_part_of_a_row(report):
    assert [point.loss for point in report.stages[0].evaluations] == [3.0]
    assert [point.lr for point in report.stages[0].train] == [2e-3]


def test_a_baseline_run_sums_over_its_chain(plan, records, report):
    """Trunk pieces shared with smaller budgets count in full: it is what the budget would have cost alone."""
    row, run = report.baseline.runs[2], plan.baselines[2]
    chain = [records[stage.key] for stage in run.stages]
    assert len(chain) > 1
    assert (row.budget, row.duration, row.steps) == (2000, 2000, 20)
    assert row.flops == run.flops
    assert row.seconds == pytest.approx(sum(record.seconds for record in chain))
    assert row.worker_seconds == pytest.approx(2 * row.seconds)
    assert row.evaluation_seconds == 0.25 * len(chain)
    assert row.peak_memory_bytes == max(record.peak_memory_bytes for record in chain)
    assert row.eval_loss == 2.1
    assert row.key == run.stages[-1].key
    assert row.length_per_parameter == 2000 / run.stages[-1].num_params
    assert to_json(row).keys() >= STAGE_FIELDS


def test_the_curve_of_a_chain_joins_its_stages(plan, records):
    points = curve(plan.staged, records)
    assert [(point.position, point.flops) for point in points] == [
        (800, plan.staged.stages[0].flops),
        (2000, plan.staged.flops),
    ]
    assert [point.loss for point in points] == [3.0, 2.2]


def test_savings_stand_beside_the_tokens_per_parameter(plan, report):
    savings = report.savings
    baseline, staged = plan.baselines[1].flops, plan.staged.flops  # 2.2 is the loss of the second budget
    assert to_json(savings).keys() == SAVINGS_FIELDS
    assert savings.compute_saved == 1 - staged / baseline
    assert savings.speedup == baseline / staged - 1
    assert (savings.flops_staged, savings.flops_baseline) == (staged, baseline)
    assert savings.at_eval_loss == 2.2
    assert savings.equal_loss_reached is True
    ratio = 2000 / plan.staged.stages[-1].num_params
    assert report.length_per_parameter == length_per_parameter(plan.staged) == ratio
    assert savings.verdict.endswith(f"FLOPs, at {ratio:.3g} tokens per parameter")


def test_every_stage_of_the_staged_run_counts(plan, records):
    """Growing's seconds are the stage's; evaluation's are not."""
    savings = measure_savings(plan, records)
    assert savings.flops_staged == sum(records[stage.key].flops for stage in plan.staged.stages)


def test_a_loss_reached_in_an_early_stage_counts_for_nothing(plan, records):
    """Only what is fully decayed is compared: what the small model had reached on the way was better here."""
    early = plan.staged.stages[0]
    better = {**records, early.key: replace(records[early.key], eval_loss=2.15)}
    assert measure_savings(plan, better) == measure_savings(plan, records)


def test_tokens_and_the_loss_at_equal_flops_stand_beside_the_figure(plan, report):
    """2.2 is reached after 1,500 tokens; the staged run's FLOPs lie between those of 2.2 and of 2.1."""
    savings = report.savings
    assert savings.duration_saved == 1 - 2000 / 1500
    assert 2.1 - 2.2 < savings.loss_difference_at_equal_flops < 0
    page = markdown(report).split("\n\n")
    assert "Tokens saved: -33.3 %. At equal FLOPs (" in page[1]
    assert "higher than the baseline's: 2.200 against 2.1" in page[1]


def test_what_was_given_up_counts_in_tokens_too(plan, records):
    """An attempt at other data of the same length: as many tokens again, of which it took 300 over."""
    small = plan.staged.stages[0]
    other = replace(small, key="other")
    taken = Prefix(small.key, 300, 300, 0.1)
    both = {**records, "other": replace(records[small.key], key="other", prefix=taken)}
    savings = measure_savings(plan, both, (other,))
    assert savings.duration_saved == 1 - (2000 + 800 - 300) / 1500


def test_equal_loss_never_reached_is_said(plan):
    savings = build_report(plan, make_records(plan, 2.9, BASELINE_LOSSES), {}).savings
    assert savings.compute_saved is None
    assert savings.equal_loss_reached is False
    assert "never reached" in savings.verdict
    assert "tokens per parameter" not in savings.verdict


def test_a_loss_that_is_not_finite_becomes_null(plan, records):
    last = plan.staged.stages[-1]
    growth = replace(records[last.key].growth, certificate=Certificate(2.0, math.inf, math.nan))
    report = build_report(plan, {**records, last.key: make_record(last, math.nan, growth=growth)}, {})
    assert report.stages[1].eval_loss is None
    assert report.stages[1].growth.certificate.eval_loss_after is None
    assert report.savings.at_eval_loss is None
    assert "held-out loss is nan" in report.savings.verdict
    assert "2.000 -> -" in markdown(report)


# --- a run in progress ------------------------------------------------------------------------


def test_before_it_starts_all_is_planned_and_nothing_measured(plan):
    report = build_report(plan, {}, {})
    assert report.state == "SCHEDULING"
    for row in report.stages + report.baseline.runs:
        assert row.state == "SCHEDULING"
        assert {to_json(row)[field] for field in MEASURED} == {None}
        assert row.growth is None
        assert row.evaluations == row.train == ()
    assert [row.num_layers for row in report.stages] == [2, 4]
    assert report.savings.compute_saved is None
    assert "no saving to report yet: 4 of 4 runs not finished" in report.savings.verdict


def test_halfway_the_finished_stages_have_their_figures(plan, records):
    small, full = plan.staged.stages
    report = build_report(plan, {small.key: records[small.key]}, {full.key: "RUNNING"})
    assert report.state == "RUNNING"
    assert [row.state for row in report.stages] == ["FINISHED", "RUNNING"]
    assert report.stages[0].eval_loss == 3.0
    assert report.stages[1].eval_loss is None


def test_the_staged_run_may_be_finished_before_its_baseline(plan, records):
    staged = {stage.key: records[stage.key] for stage in plan.staged.stages}
    savings = build_report(plan, staged, {}).savings
    assert (savings.at_eval_loss, savings.flops_staged) == (2.2, plan.staged.flops)
    assert savings.flops_baseline is None
    assert "3 of 4 runs not finished (baseline-1000, baseline-1500, baseline-2000)" in savings.verdict


def test_a_baseline_run_is_reused_only_if_all_of_it_is(plan, records):
    run = plan.baselines[2]
    states = dict.fromkeys((stage.key for stage in run.stages), "REUSED")
    assert build_report(plan, records, states).baseline.runs[2].state == "REUSED"
    states[run.stages[-1].key] = "FINISHED"
    assert build_report(plan, records, states).baseline.runs[2].state == "FINISHED"


def test_a_run_that_reused_everything_is_finished(plan, records):
    report = build_report(plan, records, dict.fromkeys(records, "REUSED"))
    assert report.state == "FINISHED"
    assert {row.state for row in report.stages + report.baseline.runs} == {"REUSED"}


@pytest.mark.parametrize("state", ["ERRORED", "ABORTED", "RESTARTING"])
def test_trouble_in_one_stage_is_the_runs_state(plan, records, state):
    last = plan.baselines[-1].stages[-1].key
    known = {key: record for key, record in records.items() if key != last}
    report = build_report(plan, known, {last: state})
    assert report.state == report.baseline.runs[-1].state == state
    assert report.stages[0].state == "FINISHED"


def test_without_a_baseline_there_is_nothing_to_compare_with(tmp_path):
    plan = make_plan(make_schedule(tmp_path, baseline=None))
    report = build_report(plan, make_records(plan, 2.2, ()), {})
    assert report.baseline.runs == ()
    assert report.savings.compute_saved is None
    assert report.savings.verdict == "no saving to report: the schedule has no baseline to compare with"
    assert report.warnings == ()
    assert "## Baseline" not in markdown(report)


# --- what is open to doubt --------------------------------------------------------------------


def warnings(folder, losses=BASELINE_LOSSES, **changes) -> str:
    plan = make_plan(make_schedule(folder, **changes))
    return "\n".join(build_report(plan, make_records(plan, 2.2, losses), {}).warnings)


def test_one_seed_and_one_rate_are_always_said(tmp_path):
    assert warnings(tmp_path, seed=7).startswith("One seed (7): ")
    assert "One learning rate (0.002): the baseline's rate is not tuned" in warnings(tmp_path)
    assert "One batch (100 tokens): with another the baseline may be better" in warnings(tmp_path)
    told = warnings(tmp_path, baseline={"values_from": "the best of 12 pairs at 1,500 tokens"})
    assert (
        "The baseline's learning rate (0.002) and batch (100 tokens) were found outside of this run: the best of 12 "
        in told
    )
    assert "is not tuned" not in told
    with pytest.raises(InputError, match=r"baseline.values_from: found '  '; expected a few words"):
        make_schedule(tmp_path, baseline={"values_from": "  "})


def test_what_a_head_start_cost_is_missing_from_the_figure_and_the_verdict_says_it(plan, records):
    first, *rest = plan.staged.stages
    init = InitPlan("my/llama", is_checkpoint=False, fingerprint="0", shape=first.shape, keeps_optimizer_state=False)
    begun = replace(plan, staged=replace(plan.staged, stages=(replace(first, init=init), *rest)))
    verdict = measure_savings(begun, records).verdict
    assert verdict.endswith("tokens per parameter, and without what it cost to train the model in init")
    assert "in init" not in measure_savings(plan, records).verdict


def test_little_held_out_text_is_said(tmp_path):
    said = "Little held-out text: losses are of 10 tokens, and of fewer than 4,096 their difference may be chance."
    assert said in warnings(tmp_path, training={"evaluate": {"tokens": 10}})
    assert "held-out text" not in warnings(tmp_path)


def test_counted_text_that_is_shorter_than_what_it_is_asked_for_is_little(tmp_path):
    plan = make_plan(make_schedule(tmp_path))
    records, last = make_records(plan, 2.2, BASELINE_LOSSES), plan.staged.stages[-1].key
    records[last] = replace(records[last], data=asdict(Counted(9000, 300)))
    assert any("losses are of 300 tokens" in one for one in build_report(plan, records, {}).warnings)


def test_a_stage_that_ended_early_may_be_judged_on_less_text(tmp_path):
    last = {**stages(1_000_000)[-1], "until": {"tokens": 1_000_000, "eval_loss": 1.0}}
    plan = make_plan(make_schedule(tmp_path, stages=[stages(1_000_000)[0], last]))
    records, last = make_records(plan, 2.2, BASELINE_LOSSES), plan.staged.stages[-1]
    assert "Not judged on" not in str(build_report(plan, records, {}).warnings)
    records[last.key] = make_record(last, 2.2, steps=1)
    assert "Not judged on as much held-out text: " in str(build_report(plan, records, {}).warnings)


def test_a_decayed_run_of_enough_tokens_and_budgets_has_no_other_doubt(tmp_path):
    text = warnings(tmp_path, stages=stages(200_000), baseline={"budgets": ["100K", "150K", "250K"]})
    assert len(text.split("\n")) == 3  # one seed, one rate, one batch


@pytest.mark.parametrize("rate", [{"kind": "constant"}, {"kind": "wsd", "decay": 0}, {"min_lr_ratio": 1.0}])
def test_a_rate_that_is_not_decayed_is_said_of_both_sides(tmp_path, rate):
    text = warnings(tmp_path, training={"global_batch_tokens": 100, "lr_schedule": rate})
    assert text.count("is not decayed: it ends at 100% of its peak") == 2
    assert "The staged run's rate" in text
    assert "The baseline's rate" in text


@pytest.mark.parametrize("kind", ["wsd", "cosine", "linear"])
def test_a_tenth_of_the_peak_counts_as_decayed(tmp_path, kind):
    rate = {"kind": kind, "min_lr_ratio": 0.1}
    assert "decayed:" not in warnings(tmp_path, training={"global_batch_tokens": 100, "lr_schedule": rate})


def test_few_budgets_are_said(tmp_path):
    text = warnings(tmp_path, (2.4, 2.2), baseline={"budgets": [1000, 2000]})
    assert "Only 2 baseline budgets: " in text
    assert "Only 1 baseline budget: " in warnings(tmp_path, (2.2,), baseline={"budgets": [2000]})


def test_short_training_is_said(tmp_path):
    assert "Short training" in warnings(tmp_path)
    assert "Short training" not in warnings(tmp_path, stages=stages(200_000))


def test_other_data_in_a_stage_is_said(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for number in range(8):
        (other / f"{number}.txt").write_text(f"something else {number}")
    first = {**stages(1200)[0], "data": {"path": str(other)}}
    assert "Not the same text" in warnings(tmp_path, stages=[first, *stages(1200)[1:]])


def test_other_numbers_of_workers_are_said(tmp_path):
    first = {**stages(1200)[0], "training": {"workers": 3}}
    assert "(1 and 3 workers)" in warnings(tmp_path, stages=[first, *stages(1200)[1:]])


def test_baselines_that_do_not_improve_are_said(tmp_path):
    assert "does not fall with every larger budget" in warnings(tmp_path, (2.4, 2.1, 2.15))
    assert "does not fall with every larger budget" not in warnings(tmp_path)


def test_what_lies_beyond_the_budgets_is_said(tmp_path):
    beyond = "No figure at equal loss: "
    assert beyond in warnings(tmp_path, (2.9, 2.8, 2.7))
    assert beyond not in warnings(tmp_path)
    assert "No comparison at equal FLOPs: " in warnings(tmp_path, (2.4, 2.2), baseline={"budgets": [200, 300]})
    assert "No comparison at equal FLOPs: " not in warnings(tmp_path)


def test_a_staged_run_that_was_tried_at_more_rates_is_said(plan, records):
    first = plan.staged.stages[0]
    optimizer = first.training.optimizer.model_copy(update={"lr": 1e-3})
    slower = replace(first, key="slower", training=first.training.model_copy(update={"optimizer": optimizer}))
    known = {**records, "slower": replace(records[first.key], key="slower")}
    said = "The baseline is tuned less than the staged run, which was tried at 2 learning rates"
    assert said in "\n".join(build_report(plan, known, {}, given_up=GivenUp(stages=(slower,))).warnings)
    assert said not in "\n".join(build_report(plan, known, {}).warnings)


def stages(last_tokens: int) -> list[dict]:
    grown = {
        "name": "full",
        "model": {"num_layers": 4},
        "until": {"tokens": last_tokens},
        "grow": {"operator": "stack"},
    }
    return [{"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}}, grown]


# --- Markdown ---------------------------------------------------------------------------------


def test_the_page_begins_with_the_verdict(report):
    first = markdown(report).split("\n")[0]
    assert first.startswith("**Saved ")
    assert first.endswith(" tokens per parameter.**")


def test_the_page_has_both_tables_and_the_doubts(report):
    page = markdown(report)
    assert "| small | FINISHED | 2 |" in page
    assert "| stack, moments: grow |" in page
    assert "| 2.000 -> 2.500 (+0.500) |" in page
    assert "| 1.5K | FINISHED |" in page
    assert "Wall-clock time saved: " in page
    assert "- One seed (0)" in page


def test_every_table_row_has_as_many_cells_as_its_head(report):
    tables = [line for line in markdown(report).split("\n") if line.startswith("|")]
    assert {line.count("|") for line in tables} == {12, 7, 10, 9, 6}


def test_a_page_of_an_unfinished_run_shows_dashes(plan):
    page = markdown(build_report(plan, {}, {}))
    assert page.startswith("**No saving to report yet: ")
    assert "| full | SCHEDULING | 4 | " in page
    assert "| - | - |" in page
