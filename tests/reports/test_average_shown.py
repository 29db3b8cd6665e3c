"""How the average of a stage's last checkpoints is shown: in the report, on the terminal, in W&B."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_curves, make_schedule
from playback import play_stage
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.markdown import markdown
from raystage.reports.plan_tables import plan_table
from raystage.results.endings import AverageRecord
from raystage.results.record import StageRecord
from raystage.results.report import report_from_json
from raystage.runs.console import PlainDisplay
from raystage.runs.wandb_rows import result_row
from raystage.safe_console import SafeConsole
from raystage.storage.stored_files import record_from

AVERAGE = AverageRecord(
    positions=(400, 600, 800), weights=(0.25, 0.5, 0.25), eval_loss=2.25, single_eval_loss=2.5, best_eval_loss=2.4,
    is_kept=True, single="checkpoints/000000000000800-one", checkpoints=("checkpoints/000000000000800-one",),
    seconds=0.5,
)  # fmt: skip
REFUSED = replace(AVERAGE, eval_loss=2.75, is_kept=False)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}, "average": {"last": 3, "every": 200}},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "grow": {"operator": "stack"}},
    ]
    return make_plan(make_schedule(tmp_path_factory.mktemp("text"), stages=stages))


def records_of(plan: Plan, average: AverageRecord) -> dict[str, StageRecord]:
    """Every stage finished; the first one with this average."""
    records = make_curves(plan)
    key = plan.staged.stages[0].key
    delivered = average.eval_loss if average.is_kept else average.single_eval_loss
    return {**records, key: replace(records[key], average=average, eval_loss=delivered)}


@pytest.mark.parametrize("average", [AVERAGE, REFUSED])
def test_a_record_with_an_average_survives_json(plan: Plan, average: AverageRecord) -> None:
    record = replace(records_of(plan, average)[plan.staged.stages[0].key], checkpoint="checkpoints/average-one")
    content = json.loads(json.dumps(record.to_json()))
    assert record_from(content, record.key) == record
    assert "average" not in replace(record, average=None).to_json()
    assert record.last_checkpoint == AVERAGE.single
    assert record.needed_checkpoints == ("checkpoints/average-one", AVERAGE.single)
    content["average"]["checkpoints"] = ["../elsewhere"]
    with pytest.raises(ValueError, match="expected checkpoints/ and a name"):
        record_from(content, record.key)


def test_the_report_has_it_in_the_row_of_its_stage_and_in_a_table(plan: Plan) -> None:
    report = build_report(plan, records_of(plan, AVERAGE), {})
    content = json.loads(json.dumps(to_json(report)))
    assert report_from_json(content) == report
    small, full = content["stages"]
    assert small["average"]["gain"] == 0.25
    assert (small["eval_loss"], small["average"]["single_eval_loss"]) == (2.25, 2.5)
    assert "average" not in full
    row = next(line for line in markdown(report).splitlines() if line.endswith("| the average |"))
    assert row == "| small | 400, 600, 800 tokens | 0.25, 0.5, 0.25 | 2.250 | 2.500 | the average |"
    refused = markdown(build_report(plan, records_of(plan, REFUSED), {}))
    assert "| 2.750 | 2.500 | the last checkpoint |" in refused
    assert "Averages of checkpoints" not in markdown(build_report(plan, make_curves(plan), {}))


def test_a_loss_that_is_no_number_is_left_open(plan: Plan) -> None:
    report = build_report(plan, records_of(plan, replace(REFUSED, eval_loss=math.nan)), {})
    assert report.stages[0].average.eval_loss is None
    assert report.stages[0].average.gain is None
    assert report_from_json(json.loads(json.dumps(to_json(report)))) == report


@pytest.mark.parametrize(
    ("average", "said"),
    [
        (AVERAGE, "ends with the average of its last 3 checkpoints: eval loss 2.250, the last alone 2.500"),
        (REFUSED, "ends with its last checkpoint: eval loss 2.500, the average of the last 3 2.750"),
    ],
)
def test_the_display_says_what_a_stage_ends_with(plan: Plan, average: AverageRecord, said: str) -> None:
    stream, stage = io.StringIO(), plan.staged.stages[0]
    display = PlainDisplay(stream)
    play_stage(display, plan.staged, stage, records_of(plan, average)[stage.key])
    assert stream.getvalue().splitlines()[-1].endswith(f"small] {said}")


def test_wandb_gets_both_losses(plan: Plan) -> None:
    stage = plan.staged.stages[0]
    row = result_row(plan.staged, stage, records_of(plan, REFUSED)[stage.key], reused=False)
    assert row["stage/eval_loss"] == row["stage/single_eval_loss"] == 2.5
    assert (row["stage/average_eval_loss"], row["stage/average_is_kept"]) == (2.75, 0)
    full = plan.staged.stages[1]
    assert "stage/average_eval_loss" not in result_row(plan.staged, full, make_curves(plan)[full.key], reused=False)


def test_the_plan_says_it(plan: Plan, tmp_path: Path) -> None:
    shown = io.StringIO()
    SafeConsole(file=shown, width=200).print(plan_table(plan))
    said = "small ends with an average of its last 3 checkpoints, one at every 200 tokens; the store keeps them."
    assert said in " ".join(shown.getvalue().split())
