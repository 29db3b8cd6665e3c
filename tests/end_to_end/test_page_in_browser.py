"""The page of a report as a reader sees it, in a real browser: RAYSTAGE_BROWSER, or a Chromium that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from browser import Tab, find_browser, open_tab
from factories import make_curves, make_schedule
from raystage.planning.build import make_plan
from raystage.reports.build import build_report
from raystage.reports.html import page
from raystage.sweeps.reports.html import sweep_page
from raystage.sweeps.trials import plan_sweep
from sweep_results import finished, swept
from sweeps import make_sweep

BROWSER = find_browser()
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        BROWSER is None, reason="no browser: RAYSTAGE_BROWSER names none, nor is a Chromium or Chrome installed"
    ),
]
SHOWN = "[...document.querySelectorAll('.panel')].map(panel => getComputedStyle(panel).display != 'none')"
OVERFLOW = "document.scrollingElement.scrollWidth - innerWidth"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two runs side by side, one with a long name."""
    (tmp_path / "text").mkdir()
    schedule = make_schedule(tmp_path / "text", training={"workers": 2})
    plan = make_plan(schedule)
    stages = [
        {"run": run.name, "name": stage.name, "key": stage.key, "state": "FINISHED"}
        for run in plan.runs()
        for stage in run.stages
    ]
    run = {"stages": stages, "schedule_as_set": schedule.model_dump(mode="json", by_alias=True, exclude_unset=True)}
    reports = [build_report(plan, make_curves(plan, offset=offset), {}, {"python": "3.11"}) for offset in (0.0, 2.0)]
    path = tmp_path / "page.html"
    path.write_text(
        page([(reports[0], run), (replace(reports[1], name="a-run-with-a-name" * 5), run)]), encoding="utf-8"
    )
    return path


@pytest.fixture
def tab(file: Path, tmp_path: Path) -> Iterator[Tab]:
    with open_tab(BROWSER, tmp_path / "profile") as opened:
        opened.resize(1280)
        opened.open(file)
        yield opened


def test_nothing_is_complained_of_and_nothing_fetched(tab: Tab, file: Path) -> None:
    assert tab.evaluate("document.readyState") == "complete"
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [file.as_uri()]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(tab: Tab, width: int) -> None:
    tab.resize(width)
    assert tab.evaluate(OVERFLOW) <= 0


def test_on_a_phone_tables_scroll_within_their_own_boxes(tab: Tab) -> None:
    scrolls = "[...document.querySelectorAll('.scroll:has(table)')].some(box => box.scrollWidth > box.clientWidth)"
    tab.resize(360)
    assert tab.evaluate(scrolls) is True


def test_on_a_wide_screen_no_table_of_a_run_has_to_scroll(tab: Tab) -> None:
    boxes = "[...document.querySelectorAll('[aria-labelledby^=run-1-table]')]"
    assert tab.evaluate(f"{boxes}.length") >= 5
    assert tab.evaluate(f"{boxes}.filter(box => box.scrollWidth > box.clientWidth).length") == 0


def test_a_phone_gets_charts_with_letters_that_can_be_read(tab: Tab) -> None:
    texts = "[...document.querySelectorAll('.chart text')].map(text => text.getBoundingClientRect().height)"
    height = f"Math.min(...{texts}.filter(height => height > 0))"  # 0: not shown
    assert tab.evaluate(height) >= 12
    tab.resize(360)
    assert tab.evaluate(height) >= 10


def test_the_axis_is_picked_by_a_click(tab: Tab) -> None:
    first = slice(0, 3)
    assert tab.evaluate(SHOWN)[first] == [True, False, False]
    tab.evaluate("document.querySelector('label[for=all-seconds]').click()")
    assert tab.evaluate(SHOWN)[first] == [False, False, True]
    assert tab.evaluate(SHOWN)[3:6] == [True, False, False]


def test_a_growth_says_its_jump_under_the_pointer(tab: Tab) -> None:
    place = tab.evaluate(
        "(() => { const circle = document.querySelector('#run-1 ~ section .over-flops .wide circle.jump');"
        " circle.scrollIntoView({block: 'center'}); const box = circle.getBoundingClientRect();"
        " return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).textContent })()"
    )
    assert place.startswith("full, grown by stack: held-out loss ")


def test_in_the_dark_the_page_is_dark(tab: Tab) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    tab.emulate(dark=True)
    assert tab.evaluate(ground) == "rgb(18, 22, 27)"


def test_on_paper_all_axes_are_shown(tab: Tab) -> None:
    tab.emulate("print", dark=True)
    assert set(tab.evaluate(SHOWN)) == {True}
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf().startswith(b"%PDF")


# --- the page of a sweep ----------------------------------------------------------------------

SPACE = """
stages[0].until.tokens: {grid: [400, 600, 800]}
stages[1].grow.operator: {grid: [stack, interleave]}
stages[2].training.optimizer.lr: {grid: [2e-3, 4e-3]}
"""


@pytest.fixture
def sweep_tab(tmp_path: Path) -> Iterator[Tab]:
    objectives = [{"metric": "eval_loss"}, {"metric": "compute_saved"}]
    plan = plan_sweep(make_sweep(tmp_path, SPACE, name="a-sweep-with-a-name" * 5, objective=objectives))
    losses, saved = [2 - 0.01 * number for number in range(12)], [0.03 * number % 0.2 for number in range(12)]
    path = tmp_path / "sweep.html"
    report = swept(plan, finished(plan, *losses, compute_saved=saved), dict(enumerate(saved)))
    path.write_text(sweep_page(report), encoding="utf-8")
    with open_tab(BROWSER, tmp_path / "profile") as opened:
        opened.resize(1280)
        opened.open(path)
        yield opened


def test_a_sweeps_page_fits_every_screen_and_can_be_read_on_all(sweep_tab: Tab) -> None:
    texts = "[...document.querySelectorAll('.chart text')].map(text => text.getBoundingClientRect().height)"
    for width in (320, 360, 768, 1280):
        sweep_tab.resize(width)
        assert sweep_tab.evaluate(OVERFLOW) <= 0
        if width >= 360:
            assert sweep_tab.evaluate(f"Math.min(...{texts}.filter(height => height > 0))") >= 10
    assert sweep_tab.complaints == []
    assert len([url for url in sweep_tab.requests if not url.startswith("data:")]) == 1


def test_words_of_a_sweeps_pictures_stay_within_them(sweep_tab: Tab) -> None:
    beyond = (
        "[...document.querySelectorAll('.chart')].flatMap(chart => [...chart.querySelectorAll('text')].filter(text =>"
        " text.getBoundingClientRect().right > chart.getBoundingClientRect().right + 1).map(text => text.textContent))"
    )
    for width in (360, 1280):
        sweep_tab.resize(width)
        assert sweep_tab.evaluate(beyond) == []


def test_a_stage_of_the_tree_says_all_of_itself_under_the_pointer(sweep_tab: Tab) -> None:
    place = sweep_tab.evaluate(
        "(() => { const disc = document.querySelector('.wide circle.shared');"
        " disc.scrollIntoView({block: 'center'}); const box = disc.getBoundingClientRect();"
        " return document.elementFromPoint(box.x + 2, box.y + box.height / 2).textContent })()"
    )
    assert place == "small: tokens=400; 400 tokens; held-out loss 2.5000; trials 0, 1, 2, 3"


def test_a_sweeps_pictures_have_the_colours_of_the_night(sweep_tab: Tab) -> None:
    stroke = "getComputedStyle(document.querySelector('.wide .trial.best')).stroke"
    assert sweep_tab.evaluate(stroke) == "rgb(176, 67, 0)"
    sweep_tab.emulate(dark=True)
    assert sweep_tab.evaluate(stroke) == "rgb(255, 159, 90)"
