"""The page of a report: one HTML file that needs nothing else, with all that the report has."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import yaml

from factories import make_curves, make_records, make_schedule
from outline import Outline
from raystage.config.schedule import parse
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.reports.build import build_report
from raystage.reports.curves import baseline_curves, loss_range, stage_curves, staged_points
from raystage.reports.figures import run_panels
from raystage.reports.html import configuration, lineage, page
from raystage.reports.tables import tables
from raystage.results.report import report_from_json

BIG = {
    "model": {"hidden_size": 64, "num_heads": 4, "ffn_size": 192, "context_length": 64},
    "training": {"global_batch_tokens": 4096, "lr_schedule": {"kind": "wsd", "warmup": "50K", "decay": 0.2}},
    "stages": [
        {"name": "small", "model": {"num_layers": 6}, "until": {"tokens": "800K"}},
        {"name": "full", "model": {"num_layers": 12}, "until": {"tokens": "800K"}, "grow": {"operator": "stack"}},
    ],
    "baseline": {"budgets": ["800K", "1.2M", "1.6M"]},
}
INKS = ("ink", "muted", "staged", "saving", "good", "bad", "link", "baseline", *(f"run-{n}" for n in range(1, 7)))


@pytest.fixture
def schedule(tmp_path):
    return make_schedule(tmp_path, **BIG)


@pytest.fixture
def plan(schedule):
    return make_plan(schedule)


@pytest.fixture
def report(plan):
    return build_report(plan, make_curves(plan, offset=0.05), {}, {"python": "3.11", "torch": "2.13"})


def run_file(plan, schedule) -> dict:
    """As the driver writes it."""
    stages = [
        {"run": run.name, "name": stage.name, "key": stage.key, "state": "FINISHED"}
        for run in plan.runs()
        for stage in run.stages
    ]
    return {"stages": stages, "schedule_as_set": schedule.model_dump(mode="json", by_alias=True, exclude_unset=True)}


@pytest.fixture
def run(plan, schedule):
    return run_file(plan, schedule)


@pytest.fixture
def outline(report, run):
    return Outline(page([(report, run)]))


# --- one run ----------------------------------------------------------------------------------


def test_the_first_words_are_the_verdict(outline, report):
    verdict = report.savings.verdict
    assert outline.headings[0] == (1, f"S{verdict[1:]}.")
    assert outline.text.startswith(f"S{verdict[1:]}.")


def test_headings_go_down_one_level_at_a_time(outline):
    levels = [level for level, _ in outline.headings]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [text for _, text in outline.headings[1:]] == [
        "Open to doubt", "Curves", "Stages", "How the stages ran", "Data", "What growing did",
        "Baseline: the last stage's model from scratch", "Compute", "Lineage", "Configuration", "Environment",
    ]  # fmt: skip


def test_every_figure_of_the_report_is_there(outline, report):
    for table in tables(report):
        for row in table.rows:
            for cell in row:
                assert " ".join(cell.split()) in outline.text
    for warning in report.warnings:
        assert warning in outline.text
    for name, value in report.environment.items():
        assert f"{name} {value}" in outline.text


def test_nothing_is_fetched(report, run):
    text = page([(report, run)])
    outline = Outline(text)
    assert not re.findall(r"https?:|url\((?!#)|@import|//[a-z]", text)
    assert not [tag for tag, _ in outline.tags if tag in ("script", "img", "iframe", "object")]
    assert {attributes["href"] for tag, attributes in outline.tags if tag == "link"} == {"data:,"}
    assert "default-src 'none'" in text


def test_identities_are_unique_and_references_lead_somewhere(report, run):
    tags = Outline(page([(report, run), (report, run)])).tags
    identities = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in tags:
        for name in ("for", "aria-labelledby", "aria-describedby", "href"):
            target = (attributes.get(name) or "data:").removeprefix("#")
            assert target.startswith("data:") or target in identities
        clip = attributes.get("clip-path")
        assert clip is None or clip[len("url(#") : -1] in identities


def test_tables_and_pictures_are_told_to_who_cannot_see_them(outline):
    tables_ = [attributes for tag, attributes in outline.tags if tag == "table"]
    assert len(tables_) == sum(tag == "caption" for tag, _ in outline.tags) == 6
    assert all(attributes["scope"] in ("row", "col") for tag, attributes in outline.tags if tag == "th")
    charts = [attributes for tag, attributes in outline.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) == 6  # over FLOPs, tokens and time, for wide and for narrow screens
    assert all(
        chart["role"] == "img" and "The staged run (small, full) is at loss" in chart["aria-label"] for chart in charts
    )


def test_the_axis_is_picked_without_script(outline):
    picks = [attributes for tag, attributes in outline.tags if tag == "input"]
    assert [pick["id"] for pick in picks] == ["run-1-flops", "run-1-position", "run-1-seconds"]
    assert [("checked" in pick, pick["type"], pick["name"]) for pick in picks] == [
        (True, "radio", "run-1-axis"), (False, "radio", "run-1-axis"), (False, "radio", "run-1-axis"),
    ]  # fmt: skip


def test_texts_are_escaped(report, run):
    nasty = "<b onload=alert(1)>\"&'"
    content = json.loads(json.dumps(to_json(report)).replace('"small"', json.dumps(nasty)))
    content |= {"name": nasty, "warnings": [nasty], "environment": {nasty: nasty}}
    content["savings"]["verdict"] = nasty
    report = report_from_json(content)
    run = json.loads(json.dumps(run).replace('"small"', json.dumps(nasty)))
    outline = Outline(page([(report, run), (report, run)]))
    assert not [tag for tag, attributes in outline.tags if tag == "b" or "onload" in attributes]
    assert outline.text.count(nasty) > 10
    charts = [attributes["aria-label"] for _, attributes in outline.tags if "aria-label" in attributes]
    assert charts
    assert all(nasty in label for label in charts)


# --- the curves -------------------------------------------------------------------------------


def test_points_stand_where_the_data_says(plan, report):
    """The wide picture is 930 units across from 52 and 340 up from 390; tokens go from 0 to 1.04 times the last."""
    stages = stage_curves(report)
    points = staged_points(stages)
    low, high = loss_range([points, *(run.points for run in baseline_curves(report))])
    svg = next(panel.wide for panel in run_panels(report, "id") if panel.unit.field == "position")
    longest = max(run.duration for run in plan.runs())
    expected = [
        (52 + 930 * point.position / (1.04 * longest), 390 - 340 * (point.loss - low) / (high - low))
        for point in points
    ]
    line = re.search(r'class="curve staged" points="([^"]+)"', svg)[1].split()
    drawn = [tuple(map(float, place.split(","))) for place in line]
    assert len(drawn) == len(points)
    assert [value for place in drawn for value in place] == pytest.approx(
        [value for place in expected for value in place], abs=0.06
    )
    end = re.search(r'<circle class="dot staged" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert (float(end[1]), float(end[2])) == drawn[-1]
    border = re.search(r'<line class="border" x1="([\d.]+)"', svg)
    assert float(border[1]) == drawn[len(stages[0].points)][0]


def test_time_goes_on_from_stage_to_stage(plan, report):
    """Seconds of a point count from its stage's beginning, those on the axis from the run's."""
    small, full = stage_curves(report)
    assert full.points[0].seconds == report.stages[0].seconds + report.stages[1].growth.seconds
    assert report.stages[1].start_seconds == report.stages[0].seconds
    assert small.points[0].seconds == report.stages[0].evaluations[0].seconds
    last = report.baseline.runs[2].evaluations[-1]
    trunk = sum(make_curves(plan)[stage.key].seconds for stage in plan.baselines[2].stages[:-1])
    assert last.run_seconds == pytest.approx(trunk + last.seconds)


def test_every_growth_border_and_budget_is_marked(outline):
    drawings = 3 * 2
    assert outline.count("circle", "jump") == drawings + 1  # and one in the legend
    assert outline.count("line", "border") == drawings
    assert outline.count("rect", "end") == 3 * drawings + 1
    assert outline.count("polygon", "saving") == 2  # over FLOPs alone
    assert "% of compute saved" in outline.text


def test_without_equal_loss_there_is_neither_line_nor_arrow(plan, run):
    outline = Outline(page([(build_report(plan, make_curves(plan, offset=2.0), {}), run)]))
    assert outline.count("line", "equal") == outline.count("polygon", "saving") == 0


# --- configuration and lineage ----------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"baseline": None}, {"training": {"workers": 2, "micro_batch_size": None}}])
def test_the_configuration_is_the_schedule_again(tmp_path, changes):
    schedule = make_schedule(tmp_path, **changes)
    text = configuration(run_file(make_plan(schedule), schedule)["schedule_as_set"])
    keys, again = (
        [stage.key for run in make_plan(one).runs() for stage in run.stages]
        for one in (schedule, parse(yaml.safe_load(text)))
    )
    assert keys == again
    assert "cpus_per_worker" not in text


def test_shared_stages_stand_once_in_the_lineage(plan, run, report):
    roots = lineage(run["stages"], report.stages)
    staged, trunk = roots
    assert (staged.name, staged.growth, staged.ends) == ("small", None, [])
    (full,) = staged.children
    assert (full.name, full.growth, full.ends) == ("full", "grown by stack, moments: grow", ["staged"])

    def keys(nodes):
        return [key for node in nodes for key in (node.key, *keys(node.children))]

    every = keys(roots)
    assert len(every) == len(set(every))
    assert set(every) == {stage.key for run in plan.runs() for stage in run.stages}
    assert trunk.key == plan.baselines[2].stages[0].key


# --- at any time ------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 5])
def test_an_unfinished_run_says_so(plan, run, finished):
    keys = [stage.key for one in plan.runs() for stage in one.stages]
    records = {key: record for key, record in make_curves(plan).items() if key in keys[:finished]}
    states = {} if finished == 0 else {keys[finished]: "RUNNING"}
    outline = Outline(page([(build_report(plan, records, states), run)]))
    assert outline.headings[0][1].startswith("No saving to report yet")
    assert ("It has not begun" if finished == 0 else "not finished when this was written") in outline.text
    assert ("No evaluation yet" in outline.text) is (finished == 0)
    assert (outline.count("svg", "chart") == 6) is (finished > 0)


def test_a_run_without_a_baseline(tmp_path):
    schedule = make_schedule(tmp_path, **{**BIG, "baseline": None})
    plan = make_plan(schedule)
    outline = Outline(page([(build_report(plan, make_curves(plan), {}), run_file(plan, schedule))]))
    assert "the schedule has no baseline" in outline.headings[0][1]
    assert "Baseline" not in " ".join(text for _, text in outline.headings[1:])
    assert outline.count("polyline", "baseline") == 0
    assert outline.count("polyline", "curve") == 6


def test_a_report_of_an_older_version_is_shown_with_what_it_has(report):
    """Without ledger and without seconds from the run's start; its run.json without the schedule as set, or lost."""
    old = json.loads(json.dumps(to_json(report)))
    del old["ledger"]
    for row in old["stages"] + old["baseline"]["runs"]:
        row.pop("start_seconds", None)
        for point in row["evaluations"] + row["train"]:
            del point["run_seconds"]
    old = report_from_json(old)
    outline = Outline(page([(old, None)]))
    assert not {"Compute", "Lineage", "Configuration"} & {text for _, text in outline.headings}
    assert outline.count("svg", "chart") == 4
    assert Outline(page([(old, {"stages": [], "schedule": {}})])).headings == outline.headings


def test_a_tiny_report_with_a_single_evaluation(tmp_path):
    """Nothing to draw a line through is no error."""
    schedule = make_schedule(tmp_path)
    plan = make_plan(schedule)
    report = build_report(plan, make_records(plan, 2.2, (2.4, 2.2, 2.1)), {})
    assert Outline(page([(report, run_file(plan, schedule))])).count("circle", "dot") == 6


# --- several runs -----------------------------------------------------------------------------


def test_several_runs_stand_side_by_side(plan, report, run):
    worse = replace(build_report(plan, make_curves(plan, offset=0.3), {}), name="worse")
    outline = Outline(page([(report, run), (worse, run)]))
    assert outline.headings[0] == (1, "2 runs side by side")
    assert [text for level, text in outline.headings if level == 2] == ["Side by side", "Curves", "tiny", "worse"]
    assert outline.text.startswith(f"2 runs side by side tiny : S{report.savings.verdict[1:]}.")
    assert "more compute" in outline.text
    assert outline.count("polyline", "run-1") == outline.count("polyline", "run-2") == 6
    assert outline.count("svg", "chart") == 18
    levels = [level for level, _ in outline.headings]
    assert all(after <= before + 1 for before, after in pairwise(levels))


# --- colours ----------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb', WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_words_stand_out_from_their_ground_by_day_by_night_and_on_paper(report, run):
    palettes = re.findall(r":root \{([^}]+)\}", page([(report, run)]))
    assert len(palettes) == 3
    for palette in palettes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", palette))
        for name in (
            "ink",
            "muted",
            "staged",
            "saving",
            "good",
            "bad",
            "link",
            "baseline",
            *(f"run-{n}" for n in range(1, 7)),
        ):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours["ink"], colours["panel"]) >= 4.5
        assert contrast(colours["muted"], colours["panel"]) >= 4.5
