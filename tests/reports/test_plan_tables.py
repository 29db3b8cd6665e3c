"""Tables and the JSON of a plan: what they hold, and that they fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from factories import make_records, make_schedule
from raystage.cli.views.plan_json import plan_json
from raystage.config.schedule import Schedule
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.formats import format_jump
from raystage.reports.plan_tables import plan_table
from raystage.reports.terminal import final_table
from raystage.units import format_count, format_flops

LOSSES = (2.2, (2.7, 2.4, 2.19))


WIDTHS = [40, 60, 80, 100, 120, 200]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return make_schedule(tmp_path_factory.mktemp("text"), training={"workers": 2})


@pytest.fixture(scope="module")
def plan(schedule: Schedule) -> Plan:
    return make_plan(schedule)


def render(table: RenderableType, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


# --- the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_plan_is_shown_whole_at_any_usual_width(plan, width):
    lines = render(plan_table(plan), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for stage in plan.staged.stages:
        assert stage.name in text
        assert stage.key[:12] in text
        assert stage.key[:13] not in text
    assert "2 x ZeRO 1" in text
    assert "stack" in text
    assert "Predicted saving at equal tokens" in text


def test_a_row_of_the_plan(plan):
    row = next(line for line in render(plan_table(plan), 200) if line.startswith("full"))
    stage = plan.staged.stages[1]
    share = f"{stage.flops / plan.staged.flops:.0%}"
    sizes = [format_count(stage.num_params), "1.2K", "12", format_flops(stage.flops), share]
    assert row.split()[:7] == ["full", "4", *sizes]
    assert row.split()[-1] == stage.key[:12]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_plan_has_all_columns_at_every_width(plan, width):
    lines = render(plan_table(plan), width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    for column in ("layers", "params", "tokens", "FLOPs", "evaluation adds", "activations", "workers", "growth", "key"):
        assert set(column.split()) <= set(re.findall(r"\w+", text))
    assert all(stage.key[:12] in text for stage in plan.staged.stages)
    assert "…" not in text


def test_the_plan_says_what_a_shared_trunk_saves(plan):
    text = " ".join(render(plan_table(plan), 200))
    shared, apart = plan.baseline_flops_shared(), sum(run.flops for run in plan.baselines)
    less = f"{100 * (1 - shared / apart):.1f} %"
    assert f"Baseline: 4 layers from scratch for 1K tokens ({format_flops(plan.baselines[0].flops)} FLOPs)" in text
    assert f"share a trunk: {format_flops(shared)} FLOPs to train, {less} less than {format_flops(apart)}" in text


def test_the_plan_says_the_rates_and_the_positions_that_change(tmp_path):
    until, long = {"tokens": 800}, {"rope_theta": "2M", "rope_scaling": {"kind": "yarn", "factor": 4}}
    falls = {"training": {"lr_schedule": {"from": "current", "kind": "linear", "min_lr_ratio": 0.1}}}
    rises = {"training": {"lr_schedule": {"kind": "wsd", "warmup": 200, "decay": 0.2}}}
    stages = [
        {"name": "a", "until": until},
        {"name": "b", "until": until, "model": long, **falls},
        {"name": "c", "until": until, **rises},
    ]
    training = {"lr_schedule": {"kind": "constant", "warmup": 100}}
    made = make_schedule(tmp_path, model={"num_layers": 2}, training=training, stages=stages, baseline=None)
    text = "\n".join(render(plan_table(make_plan(made)), 200))
    assert "at most: a 200 tokens or 30:00, b" in text
    assert "Learning rate: a 0 to 0.002, b 0.002 to 0.0002, c 0 to 0 (at most 0.002)." in text
    assert [text.count(words) for words in ("rope_theta 2M", "yarn 4x")] == [1, 1]


def test_the_plan_says_what_is_frozen(tmp_path):
    """Of 4 layers 2, of 656 parameters each, beside embeddings and head of 2,056 each and a norm of 8."""
    until, full = {"tokens": 800}, {"num_layers": 4}
    stages = [
        {"name": "small", "until": until, "model": {"num_layers": 2}},
        {"name": "full", "until": until, "model": full, "grow": {"operator": "stack"}, "freeze": {"layers": "old"}},
        {"name": "end", "until": until, "model": full, "thaw": {"from": "bottom", "every": 100}},
    ]
    made = make_schedule(tmp_path, stages=stages, baseline=None)
    text = "\n".join(render(plan_table(make_plan(made)), 200))
    assert re.findall(r"\d+% frozen|thaws from \w+", text) == ["19% frozen", "69% frozen", "thaws from bottom"]


def test_a_plan_without_a_baseline_says_so(schedule):
    plan = make_plan(schedule.model_copy(update={"baseline": None}))
    assert "No baseline: the run will not measure what it saves." in render(plan_table(plan), 100)
    assert plan_json(plan)["baseline"] == {"runs": [], "flops_shared": 0, "flops_apart": 0}


def test_a_plan_is_planned_and_shown_without_torch_or_ray():
    modules = "sys, raystage.reports.plan_tables, raystage.cli.views.plan_json"
    check = f"import {modules}; print({{'torch', 'ray', 'wandb'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "set()\n"


# --- the plan as JSON -------------------------------------------------------------------------


def test_plan_json_is_json_with_all_that_is_known_of_a_stage(plan):
    content = json.loads(json.dumps(plan_json(plan)))
    assert content["name"] == "tiny"
    small, full = content["stages"]
    stage = plan.staged.stages[1]
    assert (full["name"], full["key"], full["parent_key"]) == ("full", stage.key, small["key"])
    assert (full["num_layers"], full["hidden_size"], full["num_heads"], full["head_size"]) == (4, 8, 2, 4)
    assert (full["num_params"], full["tokens"], full["steps"]) == (stage.num_params, 1200, 12)
    assert (full["start_tokens"], full["flops"]) == (800, stage.flops)
    assert small["flops_share"] + full["flops_share"] == pytest.approx(1)
    assert (full["num_workers"], full["zero_stage"], full["precision"]) == (2, 1, "fp32")
    assert small["growth"] is None
    assert full["growth"] == {"operator": "stack", "optimizer_state": "grow"}
    parts = [full["memory"][f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "activations")]
    assert full["memory"]["total_bytes"] == sum(parts)


def test_plan_json_counts_the_baselines_together_and_apart(plan):
    content = plan_json(plan)
    runs = content["baseline"]["runs"]
    assert [run["budget_tokens"] for run in runs] == [1000, 1500, 2000]
    assert [sum(stage["tokens"] for stage in run["stages"]) for run in runs] == [1000, 1500, 2000]
    assert content["baseline"]["flops_apart"] == sum(run["flops"] for run in runs)
    distinct = {stage["key"]: stage["flops"] for run in runs for stage in run["stages"]}
    assert content["baseline"]["flops_shared"] == sum(distinct.values()) < content["baseline"]["flops_apart"]
    assert content["flops"] == sum(stage["flops"] for stage in content["stages"])
    assert content["predicted_saving"] == pytest.approx(1 - content["flops"] / content["scratch_flops"])


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_of_the_report_stands_whole_at_every_width(plan, width):
    report = build_report(plan, make_records(plan, *LOSSES), {})
    lines = render(final_table(report), width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for row in (*report.stages, *report.baseline.runs):
        cells = [row.name, format_count(row.num_params), format_count(row.duration), format_flops(row.flops),
                 f"{row.eval_loss:.3f}", f"{row.perplexity:.4g}", row.state]  # fmt: skip
        assert all(cell in text.split() for cell in cells)
    assert "2.000 -> 2.500" in text
    assert "loss at growth" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_final_table_ends_with_the_verdict(plan, width):
    report = build_report(plan, make_records(plan, *LOSSES), {})
    lines = render(final_table(report), width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    assert report.savings.compute_saved > 0
    assert text.endswith(report.savings.verdict)
    assert all(warning in text for warning in report.warnings)
    assert "2.000 -> 2.500" in text
    assert "…" not in text
    for row in [*report.stages, *report.baseline.runs]:
        assert row.name in text


def test_a_row_of_the_final_table(plan):
    states = {stage.key: "REUSED" for stage in plan.staged.stages}
    lines = render(final_table(build_report(plan, make_records(plan, *LOSSES), states)), 100)
    row = next(line for line in lines if line.startswith("full"))
    stage = plan.staged.stages[1]
    sizes = [format_count(stage.num_params), "1.2K", format_flops(stage.flops)]
    assert row.split() == ["full", "4", *sizes, "2.200", "9.025", "-", "2.000", "->", "2.500", "0:00", "REUSED"]
    assert next(line for line in lines if line.startswith("baseline-2000")).split()[-1] == "FINISHED"


def test_accuracy_stands_beside_the_loss_where_it_was_counted(plan):
    records = make_records(plan, *LOSSES)
    full = plan.staged.stages[1]
    end = replace(records[full.key].end, accuracy=0.3412)
    records[full.key] = replace(records[full.key], evaluations=(end,))
    lines = render(final_table(build_report(plan, records, {})), 100)
    assert "9.025    34.1 %" in next(line for line in lines if line.startswith("full"))


def test_metrics_of_the_schedule_are_a_table_of_their_own(plan):
    records = make_records(plan, *LOSSES)
    full = plan.staged.stages[1].key
    records[full] = replace(records[full], evaluations=(replace(records[full].end, metrics={"f1/10": 0.51234}),))
    lines = render(final_table(build_report(plan, records, {})), 100)
    assert next(line for line in lines if line.startswith("f1/10")).split() == ["f1/10", "0.5123"]


def test_what_is_not_finished_is_a_dash_with_its_state(plan):
    lines = render(final_table(build_report(plan, {}, {plan.staged.stages[0].key: "ERRORED"})), 100)
    small = next(line for line in lines if line.startswith("small"))
    params = format_count(plan.staged.stages[0].num_params)
    assert small.split() == ["small", "2", params, *"------", "ERRORED"]
    assert "no saving to report yet" in " ".join(lines)


def test_a_jump_of_what_could_not_be_measured():
    assert format_jump(2.0, None) == "2.000 -> -"


def test_the_cost_of_a_teacher_is_shown(tmp_path: Path) -> None:
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "full", "until": {"tokens": 800}, "objective": {"name": "distillation", "teacher": "small"}},
    ]
    model = {"num_layers": 2}
    plan = make_plan(make_schedule(tmp_path, model=model, stages=stages, baseline=None))
    shown = " ".join(render(plan_table(plan), 200))
    assert "full learns from small: the teacher's forward passes are 25.0 % of its FLOPs, and its copy on" in shown
