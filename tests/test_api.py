"""`import raystage`: schedules loaded and planned, reports as tables; what it imports, and when."""

from __future__ import annotations

import copy
import html
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factories import make_curves, make_schedule
from raystage import api
from raystage.cluster.shutdown import ShutdownSignal
from raystage.config.schedule import Schedule
from raystage.errors import InputError, RaystageError
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.runs.driver import Driver
from raystage.storage.store import Store
from raystage.sweeps.config import Sweep
from raystage.sweeps.trials import plan_sweep
from sweep_results import finished, swept
from sweeps import write_sweep

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture
def done(tmp_path: Path) -> api.Report:
    """A run of two stages with baselines, as its store has it."""
    (tmp_path / "texts").mkdir()
    schedule = make_schedule(tmp_path / "texts")
    plan, store = make_plan(schedule), Store(open_folder(tmp_path / "store"))
    for record in make_curves(plan).values():
        store.commit_record(record)
    Driver(plan, schedule, store).run()
    return api.report("tiny", str(tmp_path / "store"))


@pytest.fixture
def searched(tmp_path: Path) -> api.Report:
    sweep = api.load(write_sweep(tmp_path))
    plan = plan_sweep(sweep)
    losses = [2.0 + 0.1 * number for number in range(len(plan.trials))]
    return api.Report(swept(plan, finished(plan, *losses)), Store(open_folder(tmp_path / "store")))


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import raystage; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("raystage")}
    assert ours == {"raystage"}
    assert not {"torch", "ray", "pydantic", "yaml", "numpy"} & set(done.stdout.split())


def test_all_its_names_are_there_and_others_are_refused() -> None:
    code = (
        "import raystage\n"
        "assert set(raystage.__all__) <= set(dir(raystage))\n"
        "print(*(getattr(raystage, name).__module__ for name in raystage.__all__))\n"
        "raystage.train_it"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == {"raystage.api", "raystage.tools.load"}
    said = "AttributeError: module 'raystage' has no attribute 'train_it'; it has"
    assert f"{said} Report, average, load, load_model, plan" in done.stderr


def test_a_file_a_mapping_and_a_sweep_are_loaded(tmp_path: Path) -> None:
    assert isinstance(api.load(JOBS / "schedules/quickstart.yaml"), Schedule)
    assert isinstance(api.load(str(JOBS / "sweeps/quickstart.yaml")), Sweep)
    content = make_schedule(tmp_path).content()
    before = copy.deepcopy(content)
    loaded = api.load(content, ["stages[0].until.tokens=1.6K", "name=other"])
    assert (loaded.name, loaded.stages[0].until.tokens) == ("other", 1600)
    assert content == before  # overrides change no mapping of the caller's


def test_what_is_planned_is_what_the_command_line_plans(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path)
    expected = [stage.key for stage in make_plan(schedule).staged.stages]
    assert [stage.key for stage in api.plan(schedule).staged.stages] == expected
    assert [stage.key for stage in api.plan(schedule.content()).staged.stages] == expected
    assert len(api.plan(JOBS / "sweeps/quickstart.yaml").trials) == 12


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        ({"name": "x", "stagse": []}, r"stagse: unknown key.*did you mean 'stages'"),
        ({"name": "x", "schedule": "gone.yaml", "space": {"seed": {"grid": [1]}}}, "gone.yaml"),
    ],
)
def test_wrong_input_is_an_error_of_ours(source: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        api.load(source)


def test_a_sweep_is_not_run_nor_a_schedule_searched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found a sweep .*; expected a schedule, or raystage.sweep"):
        api.run(JOBS / "sweeps/quickstart.yaml", store=str(tmp_path))
    with pytest.raises(InputError, match=r"found a schedule .*; expected a sweep, or raystage.run"):
        api.sweep(JOBS / "schedules/quickstart.yaml", store=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_a_table_of_its_stages_and_says_the_verdict(done: api.Report) -> None:
    verdict = done.savings.verdict
    assert (done.name, done.state, done.is_sweep) == ("tiny", "FINISHED", False)
    for shown in (" ".join(str(done).split()), html.unescape(done._repr_html_())):
        assert verdict in shown
        assert all(stage["name"] in shown for stage in done.content["stages"])
    assert done.html().startswith("<!doctype html>")


def test_a_report_has_its_curves_as_a_frame(done: api.Report) -> None:
    frame = done.curves()
    assert list(frame) == ["run", "stage", "tokens", "flops", "seconds", "loss"]
    staged = frame[frame.run == "staged"]
    assert list(dict.fromkeys(staged.stage)) == ["small", "full"]
    assert staged.tokens.is_monotonic_increasing
    assert staged.loss.iloc[-1] == done.content["stages"][-1]["eval_loss"]
    assert len(set(frame.run)) == 1 + len(done.content["baseline"]["runs"])
    with pytest.raises(InputError, match=r"found a run \('tiny'\); expected a sweep, or curves\(\)"):
        done.trials()


def test_a_sweep_s_report_has_a_row_per_trial(searched: api.Report) -> None:
    frame = searched.trials()
    assert len(frame) == len(searched.content["trials"]) == 4
    assert {"number", "rank", "state", "eval_loss", "stages[0].until.tokens"} <= set(frame)
    assert str(searched.content["best"]["number"]) in str(searched)
    assert "<table" in searched._repr_html_()
    with pytest.raises(InputError, match=r"expected a run, or trials\(\)"):
        searched.curves()


def test_an_unknown_run_lists_those_that_there_are(done: api.Report) -> None:
    with pytest.raises(InputError, match="known runs: tiny"):
        api.report("mine", done.store.folder.uri)


def test_signals_are_handled_as_before_once_a_run_has_ended() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    shutdown = ShutdownSignal()
    with shutdown.handled():
        shutdown.saves_first = True
        signal.raise_signal(signal.SIGINT)
        assert shutdown.received_at is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # a second one does not wait
    assert shutdown.received_at is None
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    """It would be a path that leads out of the store."""
    schedule = make_schedule(tmp_path)
    with pytest.raises(InputError, match=r"found '\.\./out'"):
        api.run(schedule, store=str(tmp_path / "store"), name="../out")
    with pytest.raises(InputError, match=r"name: found '\.\./out'"):
        api.sweep(JOBS / "sweeps/quickstart.yaml", store=str(tmp_path / "store"), name="../out")
    assert not (tmp_path / "store").exists()


def test_what_is_refused_leaves_the_earlier_run_of_its_name_alone(
    done: api.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = done.store.folder.uri, make_schedule(tmp_path / "texts", seed=5)
    with pytest.raises(InputError, match="expected an address without"):
        api.run(other, store=store, address="user:secret@host:6379")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE: found 'sometimes'"):
        api.run(other, store=store)
    monkeypatch.setattr(api.ray, "is_initialized", lambda: True)
    with pytest.raises(RaystageError, match="connected to a Ray cluster already"):
        api.run(other, store=store, wandb="disabled")
    assert done.store.earlier_runs("tiny") == []
    assert api.report("tiny", store).content == done.content


def test_a_stage_s_name_in_init_is_looked_up_for_schedules_and_sweeps(done: api.Report, tmp_path: Path) -> None:
    store, key = done.store.folder.uri, done.content["stages"][0]["key"]
    schedule = make_schedule(tmp_path / "texts", init={"from": "tiny/small"}, stages=[
        {"name": "on", "model": {"num_layers": 2}, "until": {"tokens": 400}}], baseline=None)  # fmt: skip
    for call in (api.plan, api.run):
        with pytest.raises(InputError, match=f"{key}/record.json: init.from: damaged"):  # it has no checkpoint
            call(schedule, store=store)
    sweep = api.load(write_sweep(tmp_path))
    sweep.base["init"] = {"from": "tiny/small"}
    assert key in api._found_init(sweep, store).base["init"]["from"]
    assert sweep.base["init"] == {"from": "tiny/small"}  # a caller's sweep stays as it is
