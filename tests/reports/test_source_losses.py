"""The losses on the sources of a mixture, as report.json, W&B and the pages show them."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from mixtures import mixed_schedule, mixture, write_texts

from factories import make_record
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.plans.plan import RunPlan
from raystage.reports.build import build_report
from raystage.reports.html import page
from raystage.reports.markdown import markdown
from raystage.reports.tables import source_table
from raystage.reports.terminal import final_table
from raystage.results.data.mixtures import losses_by_name
from raystage.results.record import StageRecord
from raystage.results.report import RunReport
from raystage.runs.wandb_rows import evaluation_row
from raystage.safe_console import SafeConsole


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


def stage(name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "until": {"tokens": 640}, "data": data}


def reported(texts: Path, stages: list[dict[str, Any]]) -> tuple[RunPlan, StageRecord, RunReport]:
    """A plan, the record of its first stage with losses of 2 and 3 on its sources, and the report of both."""
    plan = make_plan(mixed_schedule(texts, stages))
    one = plan.staged.stages[0]
    losses = {part.data.content: loss for part, loss in zip(one.data.parts, (2.0, 3.0), strict=False)}
    end = replace(make_record(one, 2.5).end, sources=losses)
    record = StageRecord.from_json(json.loads(json.dumps(make_record(one, 2.5, evaluations=(end,)).to_json())))
    return plan.staged, record, build_report(plan, {one.key: record}, {})


def test_the_report_and_wandb_name_the_loss_on_every_source(texts: Path) -> None:
    run, record, report = reported(texts, [stage("one", mixture(texts, a=0.5, b=0.5))])
    assert to_json(report)["stages"][0]["evaluations"][0]["sources"] == {"a": 2.0, "b": 3.0}
    row = evaluation_row(record.end, run.stages[-1], losses_by_name(record.end, run))
    assert (row["eval/loss"], row["eval/loss/a"], row["eval/loss/b"]) == (2.5, 2.0, 3.0)


def test_every_view_shows_the_loss_on_every_source(texts: Path) -> None:
    """Of the stages that have ended."""
    stages = [stage("one", mixture(texts, a=0.5, b=0.5)), stage("two", mixture(texts, c=1))]
    _, _, report = reported(texts, stages)
    table = source_table(report)
    assert (table.columns, table.rows) == (("source", "one"), [["a", "2.000"], ["b", "3.000"]])
    console = SafeConsole(file=StringIO(), width=80)
    console.print(final_table(report))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    at = lines.index(["source", "one"])
    assert lines[at + 2 : at + 4] == [["a", "2.000"], ["b", "3.000"]]
    assert "## Loss by source\n\n| source | one |\n| --- | --- |\n| a | 2.000 |" in markdown(report)
    assert "Loss by source" in page([(report, None)])


def test_a_source_that_a_stage_did_not_evaluate_has_no_loss_there(texts: Path) -> None:
    _, _, report = reported(texts, [stage("one", mixture(texts, a=0.5, b=0.5))])
    (one,) = report.stages
    (end,) = one.evaluations
    two = replace(one, name="two", evaluations=(end, replace(end, sources={"c": None, "b": 1.5})))
    table = source_table(replace(report, stages=(one, two)))
    assert table.rows == [["a", "2.000", "-"], ["b", "3.000", "1.500"], ["c", "-", "-"]]


def test_a_run_without_a_mixture_has_no_such_table(texts: Path) -> None:
    alone = {"source": "text", "path": str(texts / "a"), "validation_fraction": 0.5}
    _, _, report = reported(texts, [stage("one", alone)])
    assert report.stages[0].evaluations
    assert "Loss by source" not in markdown(report)
