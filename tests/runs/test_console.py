"""What a run looks like: plain lines into a file, a live line on a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count

import pytest
from rich.console import Console

from factories import make_record, make_schedule
from playback import curved_records, play, play_stage
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.results.record import StageRecord
from raystage.runs.console import LiveDisplay, PlainDisplay, make_display
from raystage.runs.progress import Pace, StageProgress, describe_growth
from raystage.units import format_count


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(make_schedule(tmp_path_factory.mktemp("text"), training={"workers": 2}))


@pytest.fixture(scope="module")
def records(plan: Plan) -> dict[str, StageRecord]:
    return curved_records(plan)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain_lines(play_on, seconds_per_call: float = 0.0) -> list[str]:
    """What a PlainDisplay writes while `play_on` plays on it; each look at the clock takes some seconds."""
    stream, ticks = io.StringIO(), count()
    play_on(PlainDisplay(stream, clock=lambda: next(ticks) * seconds_per_call))
    return stream.getvalue().splitlines()


def terminal(width: int) -> Console:
    return Console(file=Terminal(), width=width, force_terminal=True, color_system=None)


def seen(console: Console) -> list[str]:
    """Every line that stood on the terminal at some time, without the codes that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n").splitlines()


def live_output(plan: Plan, records: dict[str, StageRecord], width: int) -> list[str]:
    console = terminal(width)
    display = LiveDisplay(plan, console)
    play(display, plan, records)
    display.ended(None)
    return seen(console)


def test_who_is_waited_for_is_a_line_of_its_own(plan: Plan) -> None:
    stage, whom = plan.staged.stages[0], "process 4711 on node2, which trains it"
    expected = [f"[staged 1/2 small] waiting for {whom}"]
    assert plain_lines(lambda display: display.waiting(plan.staged, stage, whom)) == expected
    console = terminal(120)
    LiveDisplay(plan, console).waiting(plan.staged, stage, whom)
    assert [line.rstrip() for line in seen(console)] == expected


# --- which display ----------------------------------------------------------------------------


def test_a_terminal_gets_the_live_display_and_a_file_plain_lines(plan, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_display(plan, Terminal()), LiveDisplay)
    assert isinstance(make_display(plan, io.StringIO()), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(plan, Terminal()), PlainDisplay)


def test_a_forced_colour_makes_no_terminal_of_a_file(plan, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(make_display(plan, io.StringIO()), PlainDisplay)


def test_standard_error_is_the_default(plan, records, capsys):
    play(make_display(plan), plan, records)
    output = capsys.readouterr()
    assert output.out == ""
    assert "[staged 1/2 small]" in output.err


def test_nothing_heavy_is_imported():
    check = "import sys, raystage.runs.console; print({'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "set()\n"


# --- plain lines ------------------------------------------------------------------------------


def test_plain_lines_of_a_stage_tell_start_growth_evaluations_and_end(plan, records):
    stage = plan.staged.stages[1]
    lines = plain_lines(lambda display: play_stage(display, plan.staged, stage, records[stage.key]))
    assert all(line.startswith("[staged 2/2 full] ") for line in lines)
    said = [line.removeprefix("[staged 2/2 full] ") for line in lines]
    params = format_count(stage.num_params)
    assert said[0] == f"4 layers, {params} parameters, 12 steps of 100 tokens, 2 workers, ZeRO 1"
    assert said[1] == "grown by stack in 0.5 s: eval loss 2.000 -> 2.500, logits differ by up to 3, not exact"
    assert said[2] == "step 6/12  loss 2.633  eval 2.533  1.23K tok/s  0:00 left"
    assert said[3].startswith("step 12/12")
    assert said[4] == "FINISHED: eval loss 2.373 after 0:00 of training"
    assert len(said) == 5


def test_gradients_are_spoken_of_where_an_exact_prediction_was_tested(plan, records):
    stage = plan.staged.stages[1]
    growth = records[stage.key].growth
    exact = replace(growth, certificate=replace(growth.certificate, gradient_error=2e-6))
    assert "gradients" not in describe_growth(stage, growth)
    said = describe_growth(stage, exact)
    assert said.endswith("logits differ by up to 3, not exact, gradients as predicted (to 2e-06)")


def test_of_another_head_no_difference_is_said(plan, records):
    stage = plan.staged.stages[1]
    growth = records[stage.key].growth
    exchanged = replace(growth.certificate, eval_loss_after=None, max_logit_difference=None)
    growth = replace(growth, certificate=exchanged)
    assert describe_growth(stage, growth) == "grown by stack in 0.5 s, with another head"
    only_head = replace(stage, parent_shape=replace(stage.shape, head="tokens"))
    assert describe_growth(only_head, growth) == "taken over in 0.5 s, with another head"


def test_a_model_that_stays_as_it_is_is_not_said_to_grow(plan, records):
    stage = plan.staged.stages[1]
    same, growth = replace(stage, parent_shape=stage.shape), records[stage.key].growth
    assert describe_growth(same, growth).startswith("taken over in 0.5 s: eval loss ")


def test_train_lines_come_at_most_every_ten_seconds(plan, records):
    stage = plan.staged.stages[0]
    train_only = replace(records[stage.key], evaluations=())
    for seconds, expected in ((0.0, 0), (4.0, 1), (20.0, len(train_only.train))):
        lines = plain_lines(lambda display: play_stage(display, plan.staged, stage, train_only), seconds)
        assert sum(" step " in line and "layers" not in line for line in lines) == expected


def test_a_reused_stage_is_one_line(plan, records):
    stage = plan.staged.stages[1]
    lines = plain_lines(lambda display: play_stage(display, plan.staged, stage, records[stage.key], reused=True))
    assert lines == ["[staged 2/2 full] REUSED: eval loss 2.373 after 0:00 of training"]


def test_a_restart_says_why(plan):
    run, stage = plan.staged, plan.staged.stages[0]

    def restart(display: PlainDisplay) -> None:
        display.stage_started(run, stage, reused=False)
        display.restarted(run, stage, "a worker died")

    assert plain_lines(restart)[-1] == "[staged 1/2 small] RESTARTING: a worker died"


def test_a_lost_node_is_named_and_the_speed_of_before_is_not_shown_any_more(plan, records):
    run, stage = plan.staged, plan.staged.stages[0]
    point = records[stage.key].train[1]
    lost = "node host3 (10.0.0.3) was lost: health check failed"
    console = terminal(120)
    for display in (LiveDisplay(plan, console), PlainDisplay(io.StringIO())):
        display.stage_started(run, stage, reused=False)
        display.trained(run, stage, point)
        display.interrupted(run, stage, lost)
        assert "tok/s" not in display._progress.text()
        display.trained(run, stage, point)
        assert "tok/s" in display._progress.text()
        display.waiting(run, stage, "more nodes")
        assert "tok/s" not in display._progress.text()
        display.noted(run, stage, "all nodes answer again")
        display.ended(None)
    for said in (lost, "waiting for more nodes", "all nodes answer again"):
        assert f"[staged 1/2 small] {said}" in seen(console)


def test_going_on_says_from_where_and_tells_nothing_of_before_again(plan, records):
    run, stage = plan.staged, plan.staged.stages[1]
    record = records[stage.key]
    before = [point for point in record.train if point.steps - stage.start_steps <= 7]

    def go_on(display: PlainDisplay) -> None:
        display.preparing("starting a Ray cluster")
        display.stage_started(run, stage, reused=False)
        display.resumed(run, stage, 7)
        display.grown(run, stage, record.growth)
        for point in before:
            display.trained(run, stage, point)
        display.evaluated(run, stage, record.evaluations[0])
        display.evaluated(run, stage, record.evaluations[1])

    lines = plain_lines(go_on)
    assert lines[0] == "[0:00] starting a Ray cluster"
    assert lines[2:] == [
        "[staged 2/2 full] continues from step 7 (of 12)",
        "[staged 2/2 full] step 12/12  loss 2.633  eval 2.373  time left unknown",
    ]


def test_the_time_left_is_the_runs_as_well(plan, records):
    stage = plan.staged.stages[0]
    point = records[stage.key].train[1]
    display = PlainDisplay(io.StringIO(), pace=Pace(plan))
    display.stage_started(plan.staged, stage, reused=False)
    display.trained(plan.staged, stage, point)
    speed = point.speed * stage.unit_flops(stage.shape.context_length)
    everything = sum(one.flops + one.evaluation_flops for one in plan.stages_by_key().values())
    whole = Pace(plan).seconds_left(stage, 0, point.speed)
    assert whole == pytest.approx(everything / speed)
    assert 0 < display._progress.run_seconds_left < whole
    finished = [one.key for one in plan.staged.stages]
    assert Pace(plan, finished).seconds_left(stage, 0, point.speed) < whole
    assert Pace(plan).seconds_left(stage, 0, None) is None


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_no_figure_is_cut_on_a_narrow_terminal(plan, records, width):
    text = " ".join(" ".join(live_output(plan, records, width)).split())
    assert "…" not in text
    assert all(f"{record.eval_loss:.3f}" in text for record in records.values())


def test_a_whole_run_stays_short(plan, records):
    lines = plain_lines(lambda display: play(display, plan, records))
    stages = sum(len(run.stages) for run in plan.runs())
    assert stages < len(lines) <= 5 * stages


# --- progress ---------------------------------------------------------------------------------


def test_progress_says_only_what_is_known(plan):
    stage = plan.staged.stages[0]
    assert StageProgress(plan.staged, stage, "SCHEDULING").text() == "step 0/8"
    assert StageProgress(plan.staged, stage, "SCHEDULING").seconds_left is None
    running = StageProgress(plan.staged, stage, "RUNNING", step=2, speed=5.0)
    assert running.text() == "step 2/8  5 tok/s  2:00 left"


def test_steps_are_counted_within_the_stage(plan, records):
    stage = plan.staged.stages[1]
    progress = StageProgress(plan.staged, stage, "SCHEDULING")
    assert progress.after_training(records[stage.key].train[0]).step == 3
    assert progress.after_evaluation(records[stage.key].evaluations[0]).step == 6


# --- live -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_live_display_fits_its_terminal(plan, records, width):
    lines = live_output(plan, records, width)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "2.000 -> 2.500" in line)
    assert row.split() == [
        "staged",
        "2/2",
        *["full"] * (width > 60),
        "2.373",
        "2.000",
        "->",
        "2.500",
        "0:00",
        "FINISHED",
    ]
    assert any(line.startswith("baseline-1500") and line.split()[-1] == "REUSED" for line in lines)


def test_finished_stages_are_rows_under_one_heading(plan, records):
    lines = live_output(plan, records, 120)
    rows = [line for line in lines if "FINISHED" in line or "REUSED" in line]
    assert len(rows) == sum(len(run.stages) for run in plan.runs())
    assert sum("loss at growth" in line for line in lines) == 1


def test_the_live_line_shows_how_far_the_stage_is(plan, records):
    console = terminal(120)
    display = LiveDisplay(plan, console)
    run, stage = plan.staged, plan.staged.stages[0]
    display.stage_started(run, stage, reused=False)
    display.trained(run, stage, records[stage.key].train[1])
    display.evaluated(run, stage, records[stage.key].evaluations[0])
    display.restarted(run, stage, "a worker died")
    display.ended(None)
    assert "[staged 1/2 small] RESTARTING: a worker died" in seen(console)
    assert any("RESTARTING" in line and "step 4/8" in line and "eval" in line for line in seen(console))


def test_closing_twice_or_before_the_start_is_harmless(plan):
    console = Console(file=Terminal(), force_terminal=True)
    display = LiveDisplay(plan, console)
    display.ended(None)
    display.ended(None)
    assert seen(console) == []


def test_a_stage_without_a_certificate_has_a_dash(plan):
    stage = plan.staged.stages[0]
    console = terminal(120)
    LiveDisplay(plan, console).stage_finished(plan.staged, stage, make_record(stage, 2.5), reused=True)
    assert seen(console)[-1].split() == ["staged", "1/2", "small", "2.500", "-", "0:00", "REUSED"]
