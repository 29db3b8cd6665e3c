"""The picture of a report: it is drawn for a run at any time, and what it shows is what was measured."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib import rcParams

from factories import make_curves, make_schedule
from raystage.plan.build import make_plan
from raystage.report.build import build_report
from raystage.report.curves import Point, loss_range
from raystage.report.figures import draw, write_curves

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
def plan(tmp_path):
    return make_plan(make_schedule(tmp_path, **BIG))


@pytest.fixture
def report(plan):
    report = build_report(plan, make_curves(plan, offset=0.05), {})
    assert report["savings"]["equal_loss_reached"]
    return report


def drawn_text(figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_png_and_an_svg_are_written(report, tmp_path):
    png, svg = write_curves(report, tmp_path / "curves.png")
    content = png.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert width > 1500
    assert height > 700
    assert svg == tmp_path / "curves.svg"
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_report_gives_the_same_bytes(report, tmp_path):
    first = [path.read_bytes() for path in write_curves(report, tmp_path / "first.png")]
    assert [path.read_bytes() for path in write_curves(report, tmp_path / "second.png")] == first


def test_matplotlibs_settings_are_left_as_they_were(report, tmp_path):
    before = dict(rcParams)
    write_curves(report, tmp_path / "curves.png")
    assert dict(rcParams) == before


def test_the_saving_is_written_at_the_baselines_compute(report):
    over_flops, over_tokens = draw(report).axes
    words = next(text for text in over_flops.texts if "compute saved" in text.get_text())
    assert words.xy == (report["savings"]["flops_baseline"], report["savings"]["at_eval_loss"])
    assert "speed-up" in words.get_text()
    assert not any("compute saved" in text.get_text() for text in over_tokens.texts)


def test_both_panels_share_the_loss_and_have_their_own_units(report):
    over_flops, over_tokens = draw(report).axes
    assert over_flops.get_xscale() == "log"
    assert over_tokens.get_xscale() == "linear"
    assert over_flops.get_ylim() == over_tokens.get_ylim()
    assert "FLOPs" in over_flops.get_xlabel()
    assert "tokens" in over_tokens.get_xlabel()


def test_every_stage_and_every_budget_is_marked(report):
    figure = draw(report)
    assert drawn_text(figure).count("small\n6 layers") == 2
    assert drawn_text(figure).count("full\n12 layers") == 2
    ends = next(line for line in figure.axes[0].lines if line.get_label() == "end of each budget's run")
    assert list(ends.get_xdata()) == [row["flops"] for row in report["baseline"]["runs"]]
    assert "stage border" in legend(figure)


def test_the_jump_at_a_growth_is_in_the_curve(plan, report):
    """Two points stand at the border: before the growth and after it."""
    curve = next(line for line in draw(report).axes[1].lines if line.get_label() == "staged run")
    border = plan.staged.stages[1].start_tokens
    before, after = (loss for tokens, loss in zip(*curve.get_data(), strict=True) if tokens == border)
    assert after - before == pytest.approx(0.4)


def test_a_dearer_staged_run_is_said_to_be_one(plan):
    figure = draw(build_report(plan, make_curves(plan, offset=0.3), {}))
    assert "more compute" in drawn_text(figure)


def test_without_equal_loss_no_line_and_no_arrow(plan):
    figure = draw(build_report(plan, make_curves(plan, offset=2.0), {}))
    assert "equal loss" not in legend(figure)
    assert "compute saved" not in drawn_text(figure)


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 5])
def test_a_run_in_progress_can_be_drawn(plan, tmp_path, finished):
    keys = [stage.key for run in plan.runs() for stage in run.stages][:finished]
    records = {key: record for key, record in make_curves(plan).items() if key in keys}
    report = build_report(plan, records, {})
    write_curves(report, tmp_path / "curves.png")
    assert ("no evaluation yet" in drawn_text(draw(report))) is (finished == 0)


def test_without_a_baseline_the_staged_run_stands_alone(tmp_path):
    plan = make_plan(make_schedule(tmp_path, **{**BIG, "baseline": None}))
    assert legend(draw(build_report(plan, make_curves(plan), {}))) == ["staged run", "stage border"]


def test_where_stages_are_too_narrow_for_their_names_their_depths_stand(tmp_path):
    stages = [
        {"name": f"with-{layers}-layers", "model": {"num_layers": layers}, "until": {"tokens": "200K"}}
        | ({"grow": {"operator": "interleave"}} if layers > 1 else {})
        for layers in range(1, 9)
    ]
    plan = make_plan(make_schedule(tmp_path, **{**BIG, "stages": stages}))
    text = drawn_text(draw(build_report(plan, make_curves(plan, points=40), {})))
    assert "8L" in text
    assert "with-8-layers" not in text


def test_the_first_steep_part_does_not_set_the_loss_axis():
    steep = [Point(0, 0, 5.5), Point(10, 10, 3.0), Point(50, 50, 2.0), Point(100, 100, 1.5)]
    low, high = loss_range([steep])
    assert 1.3 < low < 1.5
    assert 2.0 < high < 2.1


def test_a_flat_curve_has_a_loss_axis_too():
    low, high = loss_range([[Point(100, 100, 1.5)]])
    assert low < 1.5 < high
