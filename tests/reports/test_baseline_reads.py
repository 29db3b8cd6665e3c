"""The report says what the baselines read, where the stages read different texts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from changing_texts import changing_plan
from factories import make_records
from raystage.files.typed_json import to_json
from raystage.reports.build import build_report
from raystage.reports.html import page
from raystage.reports.markdown import markdown
from raystage.reports.terminal import final_table
from raystage.results.report import RunReport, report_from_json
from raystage.safe_console import SafeConsole

IN_WORDS = {
    "last": "the last stage's text alone, shuffled",
    "staged": "the texts of all stages, each over the same share of the run",
}


def finished(folder: Path, data: str | None, reads: str = "ab") -> RunReport:
    plan = changing_plan(folder, data, reads)
    return build_report(plan, make_records(plan, 2.2, (2.4, 2.2, 2.1)), {}, {})


def views(report: RunReport) -> list[str]:
    """The report on a terminal, as Markdown and as a page."""
    shown = io.StringIO()
    SafeConsole(file=shown, width=200).print(final_table(report))
    return [shown.getvalue(), markdown(report), page([(report, None)]).replace("&#39;", "'")]


@pytest.mark.parametrize("data", ["last", "staged"])
def test_every_view_says_what_the_baselines_read(data: str, tmp_path: Path) -> None:
    report = finished(tmp_path, data)
    assert to_json(report)["baseline"]["data"] == data
    assert report_from_json(to_json(report)).baseline == report.baseline
    for view in views(report):
        assert IN_WORDS[data] in " ".join(view.split())
    assert report.savings.compute_saved is not None


def test_nothing_is_said_where_all_read_one_text(tmp_path: Path) -> None:
    report = finished(tmp_path, "staged", "aa")
    assert "data" not in to_json(report)["baseline"]
    for view in views(report):
        assert not any(words in " ".join(view.split()) for words in IN_WORDS.values())


def test_another_text_is_a_doubt_only_where_the_baseline_does_not_read_it(tmp_path: Path) -> None:
    (doubt,) = [one for one in finished(tmp_path, "last").warnings if one.startswith("Not the same text")]
    assert "stage a0 of the staged run" in doubt
    assert doubt.endswith("With baseline.data: staged the baseline reads them, too.")
    assert not [one for one in finished(tmp_path, "staged").warnings if one.startswith("Not the same text")]
