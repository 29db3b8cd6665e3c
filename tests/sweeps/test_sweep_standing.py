"""How a sweep stands while it goes: gathered, shown, written down, and read by `raystage status`."""

from __future__ import annotations

import io
import json
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from claimants import SPAWN
from raystage.cli.main import main
from raystage.files.filesystem import open_folder
from raystage.storage.processes import this_process
from raystage.storage.store import Store
from raystage.sweeps.console import PlainSweep, live_view, make_sweep_display
from raystage.sweeps.reports.build import TrialOutcome
from raystage.sweeps.standing import Watcher
from raystage.sweeps.status import SweepStatus
from raystage.sweeps.trials import SweepPlan, plan_sweep
from sweeps import SPACE, make_sweep

BEGAN = 1_000.0


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return plan_sweep(make_sweep(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_folder(tmp_path / "store"))


def outcomes(plan: SweepPlan) -> list[TrialOutcome]:
    """Trial 0 is done, 1 runs, 2 failed; 3 was not begun."""
    configs = [trial.config for trial in plan.trials]
    return [
        TrialOutcome(0, configs[0], eval_loss=1.5, flops=10, objectives={"eval_loss": 1.5}),
        TrialOutcome(1, configs[1], is_stopped=True, is_running=True, eval_loss=1.75),
        TrialOutcome(2, configs[2], error="the loss is nan"),
    ]


def status_of(plan: SweepPlan, number: int, finished: int, step: int = 0, started_at: float = BEGAN) -> dict:
    """What the trial's run writes: so many stages finished, the next one at `step`."""
    rows = [
        {"run": "staged", "name": stage.name, "key": stage.key, "steps": stage.steps, "tokens_per_second": 50.0,
         "state": "FINISHED" if index < finished else "RUNNING" if index == finished else "SCHEDULING",
         "step": stage.steps if index < finished else step if index == finished else 0,
         "loss": 1.875, "waiting_for": None}
        for index, stage in enumerate(plan.trials[number].plan.staged.stages)
    ]  # fmt: skip
    return {"name": "run", "state": "RUNNING", "started_at": started_at, "updated_at": started_at, "stages": rows}


def watcher(plan: SweepPlan, step: int = 2) -> Watcher:
    files = {"search-0": status_of(plan, 0, 3), "search-1": status_of(plan, 1, 2, step)}
    return Watcher(plan, lambda name: files.get(name, {}), BEGAN)


def test_trials_stages_best_and_work_are_gathered(plan: SweepPlan) -> None:
    found = watcher(plan).look(outcomes(plan), BEGAN + 60)
    assert found.count_line() == "4 trials: 1 done, 1 running, 1 waiting, 1 failed"
    assert found.best == (0, "eval_loss", 1.5)
    running = found.trials[1]
    assert running.place() == "3/3 full  step 2/4  loss 1.875  50 tok/s"
    nodes = plan.tree.nodes
    full = plan.trials[1].plan.staged.stages[2]
    done = {stage.key for number in (0, 1) for stage in plan.trials[number].plan.staged.stages} - {full.key}
    assert found.flops_done == pytest.approx(sum(nodes[key].own_flops for key in done) + full.flops / 2)
    assert found.flops_total == plan.tree.flops_left
    assert found.seconds_left is None


def test_the_time_left_is_that_of_what_is_left(plan: SweepPlan) -> None:
    files = {"search-1": status_of(plan, 1, 2, 1)}
    one = Watcher(plan, lambda name: files.get(name, {}), BEGAN)
    one.look(outcomes(plan), BEGAN + 20)
    files["search-1"] = status_of(plan, 1, 2, 3)
    found = one.look(outcomes(plan), BEGAN + 30)
    gained = plan.trials[1].plan.staged.stages[2].flops / 2
    assert found.seconds_left == pytest.approx((found.flops_total - found.flops_done) * 10 / gained)


def test_the_work_is_that_of_all_runs(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, objective={"metric": "compute_saved"})
    finished = set(plan_sweep(sweep).baselines.roots)
    plan = plan_sweep(sweep, finished)
    found = Watcher(plan, lambda name: {}, BEGAN).look([], BEGAN)
    in_store = sum(plan.baselines.nodes[key].own_flops for key in finished)
    assert found.flops_total == plan.tree.flops_shared + plan.baselines.flops_shared - in_store
    assert found.flops_claimed == sum(run.flops for trial in plan.trials for run in trial.plan.runs())
    assert found.flops_claimed > found.flops_total


def test_further_seeds_count_whatever_values_they_train(tmp_path: Path) -> None:
    """When the sweep is planned, it is not known which values will be the best."""
    tuned = ("seeds=2", "baseline.tune={training.optimizer.lr: [1e-3, 2e-3]}")
    plan = plan_sweep(make_sweep(tmp_path, SPACE, *tuned, objective={"metric": "compute_saved"}))
    staged = plan.trials[1].plan.further_seeds[0].staged
    row = {"run": staged.name, "name": staged.stages[0].name, "key": "f" * 64, "state": "FINISHED", "steps": 4}
    status = {"name": "run", "started_at": BEGAN, "updated_at": BEGAN, "stages": [row]}
    found = Watcher(plan, lambda name: status, BEGAN).look(outcomes(plan)[1:2], BEGAN)
    assert found.flops_done == plan.baselines.nodes[staged.stages[0].key].own_flops > 0


def test_what_an_earlier_driver_left_says_nothing(plan: SweepPlan) -> None:
    old = status_of(plan, 1, 2, 2, started_at=BEGAN - 100)
    found = Watcher(plan, lambda name: old if name == "search-1" else {}, BEGAN).look(outcomes(plan), BEGAN, "starting")
    assert found.trials[1].state == "WAITING"


def test_without_a_terminal_lines_are_calm(plan: SweepPlan) -> None:
    stream, ticks = io.StringIO(), count(0, 20)
    display = PlainSweep(stream, clock=lambda: next(ticks))
    standing = watcher(plan).look(outcomes(plan), BEGAN + 60)
    for _ in range(8):
        display.show(standing)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "trial 1: 3/3 full  step 2/4  loss 1.875  50 tok/s"
    assert lines[1].startswith("4 trials: 1 done, 1 running, 1 waiting, 1 failed; best so far: trial 0, eval_loss 1.5")
    assert lines[1].endswith("1:00 so far, time left unknown")
    assert len(lines) == 3


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_view_shows_all_of_it(plan: SweepPlan, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(live_view(watcher(plan).look(outcomes(plan), BEGAN + 60)))
    text = " ".join(console.file.getvalue().split())
    assert "search 4 trials: 1 done" in text
    assert "trial 1: 3/3 full step 2/4 loss 1.875" in text
    assert "best so far: trial 0, eval_loss 1.5" in text
    assert "time left unknown" in text


def test_before_the_first_trial_it_says_what_is_started(plan: SweepPlan) -> None:
    found = Watcher(plan, lambda name: {}, BEGAN).look([], BEGAN + 12, "starting a Ray cluster")
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(live_view(found))
    assert console.file.getvalue() == "search: starting a Ray cluster  0:12\n"


def test_a_pipe_and_a_dumb_terminal_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(make_sweep_display(io.StringIO()), PlainSweep)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_sweep_display(Terminal()), PlainSweep)


# --- raystage status ----------------------------------------------------------------------------


def follow(plan: SweepPlan, store: Store) -> SweepStatus:
    """A sweep that has just been begun here, with the trials of `outcomes`."""
    status = SweepStatus(plan, store, "raystage sweep s.yaml", lambda: outcomes(plan), PlainSweep(io.StringIO()), 60.0)
    for number, finished in ((0, 3), (1, 2)):
        store.write_run(f"search-{number}", "status.json", status_of(plan, number, finished, 2, 2e9))
        store.write_run(f"search-{number}", "trial.json", {"sweep": "search", "number": number})
    status._look()
    return status


def call(store: Store, *arguments: str, columns: int = 100) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["status", *arguments, "--store", store.folder.uri])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_status_knows_sweeps_and_their_trials(plan: SweepPlan, store: Store) -> None:
    status = follow(plan, store)
    listed = call(store)
    assert "1/4 trials" in listed
    assert "search-1" not in listed
    shown = json.loads(call(store, "search", "--json"))
    assert (shown["kind"], shown["state"], shown["is_alive"]) == ("sweep", "RUNNING", True)
    assert [one["state"] for one in shown["trials"]] == ["FINISHED", "RUNNING", "ERRORED", "WAITING"]
    assert shown["counts"] == {"FINISHED": 1, "RUNNING": 1, "ERRORED": 1, "WAITING": 1}
    for columns in (40, 80, 200):
        text = " ".join(call(store, "search", columns=columns).split())
        assert all(part in text for part in ("1.750", "1.875", "2/4", "WAITING: trials 3", "the loss is nan"))
    status.ended(KeyboardInterrupt())


def test_after_ctrl_c_no_trial_is_running(plan: SweepPlan, store: Store) -> None:
    status = follow(plan, store)
    status._doing = "starting Ray Tune"
    status.ended(KeyboardInterrupt())
    assert "starting Ray Tune" not in call(store, "search")
    shown = json.loads(call(store, "search", "--json"))
    assert (shown["state"], shown["trials"][1]["state"]) == ("ABORTED", "INTERRUPTED")


def test_nor_after_the_driver_was_killed(plan: SweepPlan, store: Store) -> None:
    follow(plan, store)._ticker.stop()
    killed = SPAWN.Process(target=int)
    killed.start()
    content = store.read_run("search", "status.json")
    process = this_process().to_json() | {"pid": killed.pid, "started": 1.0}
    killed.kill()
    killed.join()
    store.write_run("search", "status.json", content | {"process": process})
    shown = json.loads(call(store, "search", "--json"))
    assert (shown["state"], shown["trials"][1]["state"]) == ("INTERRUPTED", "INTERRUPTED")
    assert "continue with: raystage sweep s.yaml" in " ".join(call(store, "search").split())


def test_a_sweep_that_kept_no_status_is_known_by_its_report(store: Store) -> None:
    store.write_run("old", "sweep.json", {"digest": "d", "started_at": 1.0, "command": "raystage sweep old.yaml"})
    trials = [{"number": 0, "name": "old-0", "state": "RUNNING", "config": {}, "eval_loss": 1.25, "error": None}]
    store.write_run("old", "report.json", {"kind": "sweep", "state": "RUNNING", "trials": trials})
    assert json.loads(call(store, "old", "--json"))["trials"][0]["state"] == "INTERRUPTED"
