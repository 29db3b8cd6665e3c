"""The page and the pictures of a sweep: the result first, nothing fetched, all of it told in words as well."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from outline import Outline
from raystage.config.schedule import parse
from raystage.files.typed_json import to_json
from raystage.reports.image import as_png, write_image
from raystage.results.sweep_report import ObjectiveRow, SweepReport, sweep_report_from_json
from raystage.sweeps.reports.build import TrialOutcome
from raystage.sweeps.reports.figures import sweep_sheet
from raystage.sweeps.reports.html import MOST_ROWS, sweep_page, trial_table
from raystage.sweeps.reports.summary import (
    CHOSEN_AND_JUDGED,
    HELD_AGAINST_ITS_OWN,
    caveats,
    importance_caveats,
    markdown,
    summary,
    verdict,
)
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweep_results import finished, swept
from sweeps import make_sweep

SPACE = """
stages[0].until.tokens: {grid: [400, 800]}
stages[1].grow.operator: {grid: [stack, interleave]}
"""
OBJECTIVES = [{"metric": "eval_loss"}, {"metric": "compute_saved"}]
INKS = ("fifth-1", "fifth-2", "fifth-3", "fifth-4", "fifth-5")


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return plan_sweep(make_sweep(tmp_path, SPACE))


@pytest.fixture
def report(plan: SweepPlan) -> SweepReport:
    return swept(plan, finished(plan, 2.0, 1.7, 1.9, 1.8), {1: 0.25})


@pytest.fixture
def front_report(tmp_path: Path) -> SweepReport:
    plan = plan_sweep(make_sweep(tmp_path, SPACE, objective=OBJECTIVES))
    saved = [0.3, 0.1, 0.2, 0.0]
    return swept(plan, finished(plan, 2.0, 1.7, 1.9, 1.8, compute_saved=saved), dict(enumerate(saved)))


def test_the_first_line_is_the_result_in_words(report: SweepReport) -> None:
    search, pays = report.search, report.pays_for_itself_after
    line = verdict(report)
    assert Outline(sweep_page(report)).headings[0] == (1, line)
    assert line.startswith(
        "Trial 1 is best (tokens=400, operator=interleave): held-out loss 1.7000; the search trained"
    )
    assert f"{search.sharing_factor:.2f} times fewer than its trials cost apart" in line
    assert "it saves at least 25.0 % of compute against training from scratch" in line
    assert line.endswith(f"and pays for itself after {pays:.1f} runs of that schedule.")


def test_a_loss_is_said_to_be_one_and_what_was_not_measured_too(plan: SweepPlan) -> None:
    outcomes = finished(plan, 2.0, 1.7, 1.9, 1.8)
    assert verdict(swept(plan, outcomes, {1: -0.1})).endswith(
        "; it costs up to 10.0 % more compute than training from scratch."
    )
    assert verdict(swept(plan, outcomes)).endswith("; the saving against training from scratch was not measured.")


def test_where_no_trial_came_to_its_end_the_page_says_so(plan: SweepPlan) -> None:
    outcomes = [TrialOutcome(trial.number, trial.config, error="no <room>") for trial in plan.trials]
    report = swept(plan, outcomes)
    outline = Outline(sweep_page(report))
    assert outline.headings[0][1].startswith("No trial finished; the search trained ")
    assert outline.text.count("ERRORED: no <room>") == 4
    assert sweep_sheet(report).count("<svg") > 0
    as_png(sweep_sheet(report))


def test_nothing_is_fetched_and_nothing_runs(front_report: SweepReport) -> None:
    text = sweep_page(front_report)
    outline = Outline(text)
    assert not re.findall(r"https?:|url\((?!#)|@import|//[a-z]", text)
    assert not [tag for tag, _ in outline.tags if tag in ("script", "img", "iframe", "object")]
    assert "default-src 'none'" in text


def test_what_mattered_says_of_how_few_trials_it_is(report: SweepReport) -> None:
    few = "The shares are of 4 trials."
    chance = "Fewer than 20 trials tell little: even if no path matters, the halves differ by chance"
    for text in (sweep_page(report), markdown(report), " ".join(summary(report))):
        assert few in text
        assert chance in text
    for text in (sweep_page(report), " ".join(summary(report))):
        assert "The best trial was chosen on the text that it is judged by" in text
        assert "Each trial is compared with baselines of its own" not in text
        assert "No other path took two values" not in text
    only = replace(report, importance={"stages[0].until.tokens": 1.0})
    assert "No other path took two values, so its share is 100 %, whatever its effect." in markdown(only)
    many = replace(report, trials=report.trials * 5)
    assert chance not in markdown(many)
    assert "The shares are of 20 trials." in markdown(many)
    assert importance_caveats(replace(report, importance={})) == []


def test_headings_identities_and_references_fit_together(front_report: SweepReport) -> None:
    outline = Outline(sweep_page(front_report))
    assert all(after[0] <= before[0] + 1 for before, after in pairwise(outline.headings))
    assert [text for _, text in outline.headings[1:]] == [
        "Trials", "What mattered", "Stages", "Trials across the space", "One objective against the other",
        "The best schedule",
    ]  # fmt: skip
    identities = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in outline.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert (attributes.get(name) or identities[0]) in identities


def test_pictures_are_told_to_who_cannot_see_them(front_report: SweepReport) -> None:
    charts = [attributes for tag, attributes in Outline(sweep_page(front_report)).tags if tag == "svg"]
    assert len(charts) == 6  # tree, trials, front; for wide and for narrow screens
    labels = [chart["aria-label"] for chart in charts if chart["role"] == "img"]
    assert labels[0] == "10 stages of 4 trials as a tree; 2 are shared."
    assert "the best is trial 1, rank 1: held-out loss 1.7000" in labels[2]
    assert labels[4].endswith("None beats: held-out loss 1.7000, compute saved 10.0 %; held-out loss 1.9000, "
                              "compute saved 20.0 %; held-out loss 2.0000, compute saved 30.0 %.")  # fmt: skip


def test_shared_stages_are_discs_and_others_rings(report: SweepReport) -> None:
    outline = Outline(sweep_page(report))
    assert outline.count("circle", "shared") == 2 * 2
    assert outline.count("circle", "end") == 2 * 8
    assert outline.count("line", "donor") == 2 * 1
    assert outline.count("path", "saving") == 2 * 2  # the way of the best trial
    assert outline.count("polyline", "best") == 2 * 1


def test_trials_stand_by_rank_with_all_their_figures(front_report: SweepReport) -> None:
    table = trial_table(front_report)
    assert table.columns == ["rank", "trial", "tokens", "operator", "compute saved", "held-out loss", "FLOPs", "state"]
    assert [(row[0], row[1], row[4], row[5]) for row in table.rows] == [
        ("1*", "1", "10.0 %", "1.7000"),
        ("2", "3", "0.0 %", "1.8000"),
        ("3*", "2", "20.0 %", "1.9000"),
        ("4*", "0", "30.0 %", "2.0000"),
    ]


@pytest.mark.parametrize("which", ["report", "front_report"])
def test_rows_of_the_markdown_are_as_long_as_their_head(which: str, request: pytest.FixtureRequest) -> None:
    lines = [line for line in markdown(request.getfixturevalue(which)).splitlines() if line.startswith("|")]
    assert len(lines) > 2
    assert len({line.count(" | ") for line in lines}) == 1


def test_of_thousands_of_trials_the_page_shows_the_best(report: SweepReport) -> None:
    rows = tuple(replace(report.trials[0], number=number, rank=number + 1) for number in range(3000))
    many = replace(report, trials=rows, best=replace(report.best, number=0))
    text = sweep_page(many)
    assert len(trial_table(many).rows) == MOST_ROWS
    assert f"The first {MOST_ROWS} of 3000" in text
    assert "The best 40 of 3000 trials are drawn." in text
    assert len(text) < 2e6


def test_the_best_schedule_runs(plan: SweepPlan, report: SweepReport) -> None:
    text = re.search(r"<code>(name: .*?)</code>", sweep_page(report), re.DOTALL)[1]
    again = parse(yaml.safe_load(text), plan.sweep.schedule_file.parent)
    assert again.name == "search-1"
    assert again.stages[1].grow.operator == "interleave"


def test_texts_are_escaped(report: SweepReport) -> None:
    nasty = "<b onload=alert(1)>\"&'"
    content = json.loads(json.dumps(to_json(report)).replace('"interleave"', json.dumps(nasty)))
    text = sweep_page(sweep_report_from_json(content | {"name": nasty}))
    assert not [tag for tag, attributes in Outline(text).tags if tag == "b" or "onload" in attributes]


def test_every_colour_is_there_by_day_by_night_and_on_paper(report: SweepReport) -> None:
    text = sweep_page(report)
    assert all(text.count(f"--{ink}:") == 3 for ink in INKS)


# --- image files ------------------------------------------------------------------------------


def test_a_png_and_an_svg_are_written_the_same_each_time(report: SweepReport, tmp_path: Path) -> None:
    png, svg = write_image(sweep_sheet(report), tmp_path / "sweep.png")
    assert struct.unpack(">II", png.read_bytes()[16:24])[0] == 2000
    assert svg.read_text() == sweep_sheet(report)
    again = write_image(sweep_sheet(report), tmp_path / "again.png")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]


def test_the_file_has_all_pictures_of_the_page(report: SweepReport, front_report: SweepReport) -> None:
    assert Outline(sweep_sheet(report)).count("svg", "wide") == 2
    outline = Outline(sweep_sheet(front_report))
    assert outline.count("svg", "wide") == 3
    assert outline.count("circle", "shared") == 2
    assert outline.count("polyline", "best") == outline.count("polyline", "front") == 1
    assert "1.7000 trial 1, rank 1" in outline.text
    assert "held-out loss (lower is better)" in outline.text


def test_a_best_trial_by_saving_may_be_the_one_with_the_worst_baseline(report: SweepReport) -> None:
    by_saving = replace(report, objective=(ObjectiveRow(metric="compute_saved"),))
    assert caveats(report) == [CHOSEN_AND_JUDGED]
    assert caveats(by_saving) == [CHOSEN_AND_JUDGED, HELD_AGAINST_ITS_OWN]
    assert caveats(replace(by_saving, trials=by_saving.trials[:1])) == []
