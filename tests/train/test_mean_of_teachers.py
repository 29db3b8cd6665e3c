"""A stage that learns from several teachers, on real workers: from equal ones it learns what it learns from one."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from staged_runs import carry_out

pytestmark = pytest.mark.end_to_end


def schedule_of(text: Path, teacher: object, seed: int = 0) -> Schedule:
    """A stage without teachers, and one that learns from them as well as from the text."""
    stages = [
        {"name": "first", "model": {"num_layers": 1}, "until": {"tokens": 400}},
        {"name": "second", "model": {"num_layers": 1}, "until": {"tokens": 400}, "seed": 3},
        {"name": "full", "model": {"num_layers": 2}, "until": {"tokens": 400}, "grow": {"operator": "stack"},
         "objective": {"name": "distillation", "teacher": teacher}},
    ]  # fmt: skip
    return make_schedule(text, stages=stages, seed=seed, baseline=None, training={"optimizer": {"lr": 1e-2}})


def train_all(text: Path, folder: str) -> None:
    for name in ("first", "second"):
        carry_out(schedule_of(text, name), f"{folder}/store")
    stages = make_plan(schedule_of(text, "first")).staged.stages
    copies = [f"{folder}/store/stages/{stages[0].key}", f"{folder}/copy"]
    Path(copies[1]).symlink_to(copies[0])
    for teacher in (["first", "second"], ["first", copies[1]]):
        carry_out(schedule_of(text, teacher), f"{folder}/store")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, text = tmp_path_factory.mktemp("taught"), tmp_path_factory.mktemp("text")
    run_workers(1, train_all, text, str(folder), folder=folder / "processes")
    return folder, text


def full(trained: tuple[Path, Path], teacher: object) -> StageRecord:
    folder, text = trained
    stage = make_plan(schedule_of(text, teacher)).staged.stages[-1]
    record = Store(open_folder(folder / "store")).record(stage.key)
    assert record.flops == stage.flops
    return record


def test_from_equal_teachers_it_learns_what_it_learns_from_one(trained: tuple[Path, Path]) -> None:
    one, two = full(trained, "first"), full(trained, ["first", str(trained[0] / "copy")])
    assert [point.loss for point in two.train] == pytest.approx([point.loss for point in one.train], rel=1e-5)
    assert two.eval_loss == pytest.approx(one.eval_loss, rel=1e-5)
    assert two.flops > one.flops


def test_from_other_teachers_it_learns_something_else(trained: tuple[Path, Path]) -> None:
    """Its training loss has the divergence from what both say together."""
    losses = {
        str(teacher): full(trained, teacher).train[-1].loss for teacher in ("first", "second", ["first", "second"])
    }
    assert len(set(losses.values())) == 3
