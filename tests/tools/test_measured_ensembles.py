"""A stage with several members, trained: what differs between them, who learns from them, and what the run measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from distributed import run_workers
from factories import make_schedule
from raystage.cli.main import main
from raystage.cli.report import read_report
from raystage.config.schedule import Schedule
from raystage.errors import StageRejected
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.results.record import StageRecord
from raystage.results.report import RunReport
from raystage.runs.driver import Driver
from raystage.storage.store import Store
from raystage.tools.measured import MeasuredEnsembles
from raystage.train.worker import Job, run_job

# "trunk": other seeds after a trunk, and a student.
CASES = ("trunk", "seed", "data", "schedule")
NAMES = ["several", "several-member-2", "several-member-3"]


def schedule_of(text: Path, case: str, several: dict | None = None, **ensemble: object) -> Schedule:
    """Three members, of the first stage or after a trunk."""
    changes = {"set": {"training.optimizer.lr": "*0.5"}} if case == "schedule" else {}
    vary = "seed" if case == "trunk" else case
    written = {"name": "several", "until": {"tokens": 400},
               "ensemble": {"members": 3, "vary": vary, **changes, **ensemble}, **(several or {})}  # fmt: skip
    trunk = {"name": "trunk", "until": {"tokens": 400}}
    objective = {"name": "distillation", "teacher": "several", "alpha": 1}
    student = {"name": "student", "until": {"tokens": 400}, "objective": objective}
    training = {"optimizer": {"lr": 2e-2}, "evaluate": {"tokens": 400, "every": 100},
                "lr_schedule": {"kind": "constant"}}  # fmt: skip
    stages = [trunk, written, student] if case == "trunk" else [written]
    return make_schedule(text, stages=stages, model={"num_layers": 1}, training=training, baseline=None)


def train(schedules: list[Schedule], store: str) -> None:
    for schedule in schedules:
        for stage in make_plan(schedule).stages_by_key().values():
            run_job(Job((stage,), store), lambda *message: None)


class Trained:
    def __init__(self, folder: Path) -> None:
        self.folder, self.text, self.store = folder, folder / "text", Store(open_folder(folder / "store"))
        self.text.mkdir()
        self.schedules = {case: schedule_of(self.text, case) for case in CASES}
        run_workers(1, train, list(self.schedules.values()), str(folder / "store"), folder=folder / "processes")
        self.kept = folder / "store/runs/tiny/ensembles/several.json"

    def drive(self, schedule: Schedule | None = None) -> RunReport:
        schedule = schedule or self.schedules["trunk"]
        plan = make_plan(schedule)
        return Driver(plan, schedule, self.store, [MeasuredEnsembles(plan, self.store)], draws=False).run()

    def members(self, case: str) -> list[StageRecord]:
        return [self.store.record(one.key) for one in plan_of(self, case).ensembles[0].members]


def plan_of(trained: Trained, case: str = "trunk") -> Plan:
    return make_plan(trained.schedules[case])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("measured"))


@pytest.fixture
def fresh(trained: Trained) -> Trained:
    """Without what an earlier run has measured."""
    trained.kept.unlink(missing_ok=True)
    return trained


# --- the members --------------------------------------------------------------------------------


def losses(records: list[StageRecord], place: int) -> list[float]:
    return [record.evaluations[place].loss for record in records]


def test_members_after_a_trunk_begin_with_its_weights_and_read_in_another_order(trained: Trained) -> None:
    trunk = trained.store.record(plan_of(trained).staged.stages[0].key)
    records = trained.members("trunk")
    assert len({record.train[0].loss for record in records}) == 3
    assert all(record.parent_key == trunk.key for record in records)
    assert len(set(losses(records, -1))) == 3


def test_members_from_the_start_have_weights_of_their_own_only_where_the_seed_differs(trained: Trained) -> None:
    """Their first evaluation comes before the first step."""
    assert len(set(losses(trained.members("seed"), 0))) == 3
    of_data, of_schedule = losses(trained.members("data"), 0), losses(trained.members("schedule"), 0)
    assert len({*of_data, *of_schedule}) == 1
    assert len(set(losses(trained.members("data"), -1))) == 3
    assert len({record.train[0].loss for record in trained.members("data")}) == 3  # other text
    assert len({record.train[0].loss for record in trained.members("schedule")}) == 1  # the same text
    assert len(set(losses(trained.members("schedule"), -1))) == 3


def test_the_student_learns_what_all_members_find_probable(fresh: Trained) -> None:
    """With the teachers alone in its loss, which are better than it is."""
    report = fresh.drive()
    trunk, several, student = report.stages
    assert student.eval_loss < several.eval_loss < trunk.eval_loss
    assert report.members[0].teaches == ("student",)


# --- what is measured ---------------------------------------------------------------------------


def test_the_run_measures_its_ensemble_and_its_report_shows_it(fresh: Trained) -> None:
    report = fresh.drive()
    found, records = report.ensembles["several"], fresh.members("trunk")
    assert [row.name for row in found.members] == NAMES
    assert [row.eval_loss for row in found.members] == pytest.approx([one.eval_loss for one in records], rel=1e-5)
    assert found.prediction.eval_loss <= sum(row.eval_loss for row in found.members) / 3
    trunk = fresh.store.record(plan_of(fresh).staged.stages[0].key)
    assert found.prediction.training_flops == trunk.flops + sum(one.flops for one in records)
    assert found.prediction.forward_flops == 3 * found.weights.forward_flops
    assert read_report(fresh.store, "tiny").report.ensembles == report.ensembles
    for name in ("report.md", "report.html"):
        written = (fresh.folder / "store/runs/tiny" / name).read_text()
        assert "mean prediction" in written
        assert "mean weights" in written
        assert "Members of ensembles" not in written  # its table has them


def test_what_is_measured_is_not_measured_again_unless_it_was_of_other_members(fresh: Trained) -> None:
    first = fresh.drive().ensembles["several"].seconds
    assert fresh.drive().ensembles["several"].seconds == first
    content = json.loads(fresh.kept.read_text())
    fresh.kept.write_text(json.dumps({**content, "members": content["members"][:2], "checksum": None}))
    assert len(fresh.drive().ensembles["several"].members) == 3


def test_without_measure_the_command_measures_the_members(fresh: Trained, tmp_path: Path) -> None:
    schedule = schedule_of(fresh.text, "trunk", measure=False)
    assert fresh.drive(schedule).ensembles == {}
    file = tmp_path / "schedule.yaml"
    file.write_text(yaml.safe_dump(schedule.content()))
    command = ["ensemble", str(file), "--stage", "several", "--store", str(fresh.folder / "store"), "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in json.loads(done.stdout)["members"]] == NAMES
    assert fresh.drive(schedule).ensembles["several"].prediction.eval_loss is not None


def test_an_ensemble_that_a_gate_does_not_accept_is_not_measured(fresh: Trained) -> None:
    with pytest.raises(StageRejected, match=r"^stage several-member-2: not accepted"):
        fresh.drive(schedule_of(fresh.text, "trunk", several={"accept": {"eval_loss_below": 1e-3}}))
    assert not fresh.kept.exists()


def test_the_command_says_which_member_is_not_trained(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text(yaml.safe_dump(trained.schedules["data"].content()))
    command = ["ensemble", str(file), "--store", str(trained.folder / "store"), "--set", "seed=5"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "ensemble: several is not finished; expected the members to be trained" in " ".join(done.stderr.split())
