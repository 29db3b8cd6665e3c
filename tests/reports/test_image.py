"""The picture of a run as image files: drawn at any time, with the same elements as on the page."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib import rcParams
from matplotlib.image import imread

from factories import make_curves, make_schedule
from outline import Outline
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.reports.build import build_report
from raystage.reports.figures import run_sheet
from raystage.reports.image import as_png, write_image
from raystage.reports.svg import sheet
from raystage.results.report import RunReport

BIG = {
    "model": {"hidden_size": 64, "num_heads": 4, "ffn_size": 192, "context_length": 64},
    "training": {"global_batch_tokens": 4096, "lr_schedule": {"kind": "wsd", "warmup": "50K", "decay": 0.2}},
    "stages": [
        {"name": "small", "model": {"num_layers": 6}, "until": {"tokens": "800K"}},
        {"name": "full", "model": {"num_layers": 12}, "until": {"tokens": "800K"}, "grow": {"operator": "stack"}},
    ],
    "baseline": {"budgets": ["800K", "1.2M", "1.6M"]},
}


@pytest.fixture
def plan(tmp_path) -> Plan:
    return make_plan(make_schedule(tmp_path, **BIG))


@pytest.fixture
def report(plan: Plan) -> RunReport:
    report = build_report(plan, make_curves(plan, offset=0.05), {})
    assert report.savings.equal_loss_reached
    return report


def pixels(content: bytes, tmp_path) -> Any:
    """(height, width, 4), from 0 to 1."""
    (tmp_path / "read.png").write_bytes(content)
    return imread(tmp_path / "read.png")


def test_a_png_and_an_svg_are_written(report, tmp_path) -> None:
    png, svg = write_image(run_sheet(report), tmp_path / "curves.png")
    content = png.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert width == 2000
    assert height > 1500
    assert svg == tmp_path / "curves.svg"
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_report_gives_the_same_bytes(report, tmp_path) -> None:
    first = [path.read_bytes() for path in write_image(run_sheet(report), tmp_path / "first.png")]
    assert [path.read_bytes() for path in write_image(run_sheet(report), tmp_path / "second.png")] == first


def test_matplotlibs_settings_are_left_as_they_were(report) -> None:
    before = dict(rcParams)
    as_png(run_sheet(report))
    assert dict(rcParams) == before


def test_the_file_has_both_units_the_verdict_and_the_legend(report) -> None:
    outline = Outline(run_sheet(report))
    assert outline.count("svg", "wide") == 2  # over FLOPs and over tokens
    assert outline.count("polyline", "staged") == 2
    assert outline.count("line", "border") == 2
    assert outline.count("rect", "end") == 2 * 3 + 1  # and one in the legend
    assert outline.count("polygon", "saving") == 1
    assert outline.text.startswith(f"tiny: {report.savings.verdict.split(' of ')[0]}")
    assert "training compute (FLOPs)" in outline.text
    assert "training tokens" in outline.text
    assert "end of each budget's run" in outline.text
    assert "speed-up" in outline.text


def test_a_file_is_never_dark_and_fetches_nothing(report) -> None:
    text = run_sheet(report)
    assert "@media" not in text
    assert "--paper: #ffffff" in text
    assert text.count("http") == 1  # the name of SVG itself
    assert "<script" not in text


def test_a_file_shows_control_characters_and_markup_as_text(report) -> None:
    report = replace(report, name="a\x07<b>&$x$")
    (title,) = (one for one in ElementTree.fromstring(run_sheet(report)).iter() if "a\\x07<b>&$x$" in (one.text or ""))
    assert title.get("class") == "title"
    as_png(run_sheet(report))


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 5])
def test_a_run_in_progress_can_be_drawn(plan, finished) -> None:
    keys = [stage.key for run in plan.runs() for stage in run.stages][:finished]
    records = {key: record for key, record in make_curves(plan).items() if key in keys}
    text = run_sheet(build_report(plan, records, {}))
    as_png(text)
    assert ("no evaluation yet" in Outline(text).text) is (finished == 0)


def test_without_a_baseline_the_staged_run_stands_alone(tmp_path) -> None:
    plan = make_plan(make_schedule(tmp_path, **{**BIG, "baseline": None}))
    outline = Outline(run_sheet(build_report(plan, make_curves(plan), {})))
    assert outline.count("polyline", "baseline") == 0
    assert "baselines from scratch" not in outline.text


SMALL = (
    '<svg class="chart wide" viewBox="0 0 1000 100">'
    '<clipPath id="c"><rect x="0" y="0" width="500" height="100"/></clipPath>'
    '<g clip-path="url(#c)"><line class="curve staged" x1="0" y1="20" x2="1000" y2="20"/></g>'
    '<circle class="dot staged" cx="700" cy="60" r="20"/><rect class="spot" x="800" y="40" width="50" height="50"/>'
    '<path class="edge saving" stroke-width="8" d="M100,50H300V90H400"/></svg>'
)


def test_elements_have_their_places_and_the_colours_of_the_style_sheet(tmp_path) -> None:
    """A drawing of 100 units height below a title of one line; the PNG has two pixels for each unit."""
    text = sheet("title", [SMALL])
    top = float(ElementTree.fromstring(text).find("{*}svg").get("y"))
    image = pixels(as_png(text), tmp_path)

    def colour(x: float, y: float) -> str:
        return "#" + "".join(f"{round(255 * part):02x}" for part in image[round(2 * (top + y)), round(2 * x)][:3])

    assert colour(250, 20) == colour(700, 60) == "#0059a8"  # --staged
    assert colour(750, 20) == "#ffffff"  # clipped
    assert colour(820, 60) == "#ffffff"  # only under the pointer
    assert colour(200, 50) == colour(300, 70) == colour(350, 90) == "#b04300"  # --saving
    assert colour(200, 90) == "#ffffff"
