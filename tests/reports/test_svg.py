"""A chart as SVG: scales and ticks worked out by hand, and where things stand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from factories import make_schedule
from playback import curved_records
from raystage.planning.build import make_plan
from raystage.reports.build import build_report
from raystage.reports.figures import run_panels
from raystage.reports.svg import (
    Arrow,
    Chart,
    ChartAxis,
    ChartStretch,
    Level,
    Line,
    Mark,
    Scale,
    Size,
    draw,
    linear_ticks,
    log_ticks,
    time_ticks,
)

# 100 units across (from 20 to 120) and 50 up (from 60 to 10).
SIZE = Size("wide", 130, 90, 10, (10, 10, 30, 20))
CHART = Chart("losses", ChartAxis("tokens", 0, 200, ((0, "0"), (100, "100"))), ChartAxis("loss", 1, 3, ((2, "2"),)))


def drawn(**parts: object) -> ElementTree.Element:
    return ElementTree.fromstring(draw(replace(CHART, **parts), SIZE, "id"))


def one(svg: ElementTree.Element, tag: str, style: str) -> dict[str, str]:
    found = [element for element in svg.iter(tag) if element.get("class") == style]
    assert len(found) == 1
    return found[0].attrib


def texts(svg: ElementTree.Element, style: str) -> list[str]:
    return [element.text for element in svg.iter("text") if element.get("class") == style]


# --- scales and ticks -------------------------------------------------------------------------


def test_a_linear_scale_lays_a_quarter_at_a_quarter():
    assert Scale(0, 200, 20, 120).at(50) == 45


def test_a_logarithmic_scale_lays_the_geometric_mean_in_the_middle():
    scale = Scale(1e9, 1e13, 0, 400, is_log=True)
    assert [scale.at(value) for value in (1e9, 1e11, 1e13)] == pytest.approx([0, 200, 400])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.93, 2.27, [2.0, 2.1, 2.2]), (0, 1.04e6, [0, 2e5, 4e5, 6e5, 8e5, 1e6])],
)
def test_linear_ticks_are_round_and_within(low, high, ticks):
    assert linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (9e10, 2.4e12, 6, [1e11, 2e11, 5e11, 1e12, 2e12]),
        (9e10, 2.4e12, 3, [1e11, 3e11, 1e12]),
        (9e9, 2e14, 6, [1e10, 1e11, 1e12, 1e13, 1e14]),
        (1e1, 1e12, 4, [1e1, 1e4, 1e7, 1e10]),
    ],
)
def test_log_ticks_thin_out_until_they_fit(low, high, count, ticks):
    assert log_ticks(low, high, count) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (75, [0, 15, 30, 45, 60, 75]),
        (3700, [0, 900, 1800, 2700, 3600]),
        (5 * 86400, [0, 86400, 2 * 86400, 3 * 86400, 4 * 86400, 5 * 86400]),
    ],
)
def test_time_ticks_are_what_clocks_show(high, ticks):
    assert time_ticks(0, high) == ticks


# --- where things stand -----------------------------------------------------------------------


def test_a_line_goes_through_its_points():
    """50 of 200 tokens is a quarter of the way; a loss of 1.5 is a quarter of the way up, and up is less."""
    svg = drawn(lines=(Line([(0, 3), (50, 1.5), (200, 1)], "curve"),))
    assert one(svg, "polyline", "curve")["points"] == "20.0,10.0 45.0,47.5 120.0,60.0"


def test_lines_are_cut_off_at_the_frame():
    svg = drawn(lines=(Line([(0, 9), (200, 1)], "curve"),))
    clip = svg.find("clipPath/rect").attrib
    assert (clip["x"], clip["y"], clip["width"], clip["height"]) == ("20", "10", "100", "50")
    assert svg.find("g").get("clip-path") == "url(#id)"
    assert svg.find("clipPath").get("id") == "id"


def test_a_logarithmic_axis_has_no_place_for_zero():
    flops = ChartAxis("FLOPs", 1, 100, (), is_log=True)
    svg = drawn(x=flops, lines=(Line([(0, 3), (1, 3), (10, 2)], "curve"),))
    assert one(svg, "polyline", "curve")["points"] == "20.0,10.0 70.0,35.0"


def test_a_mark_says_what_it_is_under_the_pointer():
    svg = drawn(marks=(Mark(100, 2, "dot", "a <b> & c"), Mark(100, 2, "end", "", "square")))
    dot = one(svg, "circle", "dot")
    assert (dot["cx"], dot["cy"]) == ("70.0", "35.0")
    assert svg.find("circle/title").text == "a <b> & c"
    square = one(svg, "rect", "end")
    assert (square["x"], square["y"], square["width"]) == ("66.0", "31.0", "8")


@pytest.mark.parametrize("place", [(201, 2), (-1, 2), (100, 3.1), (100, 0.9)])
def test_a_mark_beyond_the_axes_is_left_out(place):
    assert drawn(marks=(Mark(*place, "dot", ""),)).find("circle") is None


def test_ticks_stand_at_their_values():
    svg = drawn()
    places = {element.text: element.get("x") for element in svg.iter("text") if element.get("text-anchor") == "middle"}
    assert (places["0"], places["100"]) == ("20.0", "70.0")
    assert one(svg, "line", "grid")["y1"] == "35.0"


def test_a_stretch_has_the_longest_name_that_fits_and_a_border():
    names = ("medium, 6 layers", "medium", "6L")
    wide = drawn(stretches=(ChartStretch(0, 200, names, has_border=False),))
    assert texts(wide, "stage") == ["medium, 6 layers"]
    assert not [line for line in wide.iter("line") if line.get("class") == "border"]
    assert texts(drawn(stretches=(ChartStretch(100, 200, names, has_border=True),)), "stage") == ["medium"]
    narrow = drawn(stretches=(ChartStretch(100, 130, names, has_border=True),))
    assert texts(narrow, "stage") == ["6L"]
    assert one(narrow, "line", "border")["x1"] == "70.0"
    assert texts(drawn(stretches=(ChartStretch(100, 110, names, has_border=True),)), "stage") == []


def test_a_level_goes_all_the_way():
    line = one(drawn(levels=(Level(2, "equal"),)), "line", "equal")
    assert (line["x1"], line["x2"], line["y1"], line["y2"]) == ("20.0", "120.0", "35.0", "35.0")


@pytest.mark.parametrize(("start", "end", "tip"), [(160, 100, 76.0), (100, 160, 94.0)])
def test_an_arrow_points_at_its_end_and_stops_beside_it(start, end, tip):
    svg = drawn(arrows=(Arrow(start, end, 2, "saving", ("saved",)),))
    assert one(svg, "polygon", "saving")["points"].startswith(f"{tip},35.0 ")
    assert texts(svg, "saving words") == ["saved"]


def test_an_arrows_words_stand_above_it_where_there_is_no_room_below():
    def height(loss: float) -> float:
        svg = drawn(arrows=(Arrow(160, 100, loss, "saving", ("saved",)),))
        return float(one(svg, "text", "saving words")["y"])

    assert height(2.5) > 22.5
    assert height(1.1) < 57.5


def test_the_picture_has_words_for_who_cannot_see_it():
    svg = drawn(summary='it "falls" & <rests>')
    assert (svg.get("role"), svg.get("aria-label")) == ("img", 'it "falls" & <rests>')
    assert re.fullmatch(r"0 0 130 90", svg.get("viewBox"))


def test_no_line_runs_through_words(tmp_path):
    """They stand before a background of their own, drawn after the lines."""
    plan = make_plan(make_schedule(tmp_path))
    drawn = run_panels(build_report(plan, curved_records(plan), {}), "r")[0].wide
    last_line = max(drawn.rindex("<polyline"), drawn.rindex('class="grid"'))
    behind = re.findall(r'<rect class="behind" x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"/>'
                        r'<text class="saving words" x="([\d.-]+)" y="([\d.-]+)"', drawn[last_line:])  # fmt: skip
    assert len(behind) == 2
    for left, top, width, height, end, baseline in (map(float, one) for one in behind):
        assert left < end <= left + width
        assert top < baseline < top + height
