"""A stage that ends with the average of its last checkpoints, on real workers (gloo processes, DeepSpeed).

All that needs processes runs once for each number of workers; the tests look at what came out.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.config.training import Training
from raystage.config.types import Workers
from raystage.files.filesystem import open_folder
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store, position_of
from raystage.storage.survey import survey
from raystage.train.worker import Job, run_job
from staged_runs import carry_out, records_of

pytestmark = pytest.mark.end_to_end

AVERAGE = {"last": 3, "every": 200}
# At this rate the weights swing about a minimum, and their average is the better model.
HIGH, LOW = 0.1, 1e-4
# Of the first stage with an average come the 3rd to the 5th checkpoint for it, and then the average itself.
STOPS = (1, 2, 3, 4)
# Layouts in which the average of the same checkpoints is computed.
LAYOUTS = ((1, 0, "fp32"), (1, 3, "bf16"), (2, 1, "fp32"), (2, 3, "fp32"), (3, 0, "bf16"), (3, 2, "fp32"))


def schedule_of(
    text: Path, average: dict | None = AVERAGE, tokens: int = 2000, lr: float = HIGH, until: dict | None = None
) -> Schedule:
    """A stage at a constant rate, then one that grows from it."""
    training = {
        "lr_schedule": {"kind": "constant", "warmup": 100}, "evaluate": {"tokens": 200, "every": 200},
        "optimizer": {"lr": lr}, "checkpoint": {"every": 5000, "keep_last": 1},
    }  # fmt: skip
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": tokens, **(until or {})},
         **({"average": average} if average else {})},
        {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 200}, "grow": {"operator": "identity"}},
    ]  # fmt: skip
    return make_schedule(text, stages=stages, training=training, baseline=None)


def small_of(schedule: Schedule) -> StagePlan:
    return make_plan(schedule).staged.stages[0]


def make_schedules(text: Path) -> dict[str, Schedule]:
    return {
        "uniform": schedule_of(text),
        "wsm": schedule_of(text, AVERAGE | {"weights": "wsm"}),
        "single": schedule_of(text, None),
        "refused": schedule_of(text, lr=LOW),  # every step makes the model better: the last checkpoint is the best
        "shorter": schedule_of(text, tokens=1800),
        "open": schedule_of(text, until={"eval_loss": 2.0}),
        "ended at once": schedule_of(text, until={"eval_loss": 9.0}),
    }


def lose(store: str, stage: StagePlan, *positions: int) -> None:
    """The checkpoints of a stage at some positions are gone."""
    folder = Path(store, "stages", stage.key, "checkpoints")
    for one in list(folder.iterdir()):
        if one.name[0].isdigit() and position_of(one.name) in positions:
            shutil.rmtree(one)


def train_all(schedules: dict[str, Schedule], folder: str) -> None:
    """Everything that one worker does, each case in a store of its own."""
    for name in ("uniform", "wsm", "single", "refused", "open", "ended at once"):
        carry_out(schedules[name], f"{folder}/{name}")
    whole, shorter = (small_of(schedules[name]) for name in ("uniform", "shorter"))
    for count in STOPS:
        carry_out(schedules["uniform"], f"{folder}/stopped-{count}", "saved", count)
        Path(folder, f"stopped-{count}", "stages", whole.key, "checkpoints", "average-dead").mkdir()
        carry_out(schedules["uniform"], f"{folder}/stopped-{count}")
    for store in ("continued", "members lost"):
        carry_out(schedules["shorter"], f"{folder}/{store}")
        if store == "members lost":
            lose(f"{folder}/{store}", shorter, 1600)
        carry_out(schedules["uniform"], f"{folder}/{store}")


def average_again(stage: StagePlan, stores: list[str]) -> None:
    for store in stores:
        run_job(Job((stage,), store), lambda *message: None)


def in_layout(stage: StagePlan, workers: int, zero_stage: int, precision: str) -> StagePlan:
    changes = Training(workers=Workers.exactly(workers), zero_stage=zero_stage, precision=precision)
    return replace(stage, training=stage.training.overlaid(changes))


def again_in_all_layouts(stage: StagePlan, folder: Path) -> None:
    """The end of the stage once more, from the checkpoints of one worker: its record and its average are gone."""
    for workers, zero_stage, precision in LAYOUTS:
        store = folder / f"{workers}-{zero_stage}-{precision}"
        shutil.copytree(folder / "uniform" / "stages" / stage.key, store / "stages" / stage.key)
        (store / "stages" / stage.key / "record.json").unlink()
        shutil.rmtree(next((store / "stages" / stage.key / "checkpoints").glob("average-*")))
        placed = in_layout(stage, workers, zero_stage, precision)
        run_workers(workers, average_again, placed, [str(store)], folder=folder / f"processes-{store.name}")


class Runs:
    def __init__(self, schedules: dict[str, Schedule], folder: Path) -> None:
        self.schedules, self.folder = schedules, folder

    def store(self, name: str) -> Store:
        return Store(open_folder(self.folder / name))

    def records(self, name: str, schedule: str = "") -> list[StageRecord]:
        return records_of(self.schedules[schedule or name], str(self.folder / name))

    def small(self, name: str, schedule: str = "uniform") -> StageRecord:
        return self.records(name, schedule)[0]

    def opened(self, name: str, key: str, place: str) -> Checkpoint:
        return Checkpoint(self.store(name).stage_folder(key) / place)

    def states(self, name: str, schedule: str = "uniform", place: str = "") -> dict[tuple[str, str], np.ndarray]:
        """All numbers of a checkpoint of the first stage: that which it delivers, unless another is named."""
        record = self.small(name, schedule)
        found = self.opened(name, record.key, place or record.checkpoint)
        return {
            (one.name, state): found.read(one.name, state, 0, one.numel)
            for one in parameters(record.shape)
            for state in found.states
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("averages"), tmp_path_factory.mktemp("text")
    schedules = make_schedules(text)
    run_workers(1, train_all, schedules, str(folder), folder=folder / "processes")
    again_in_all_layouts(small_of(schedules["uniform"]), folder)
    return Runs(schedules, folder)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key], err_msg=str(key))


@pytest.mark.parametrize(("name", "weights"), [("uniform", (1 / 3, 1 / 3, 1 / 3)), ("wsm", (0.25, 0.5, 0.25))])
def test_a_stage_delivers_the_average_of_its_last_checkpoints(runs: Runs, name: str, weights: tuple) -> None:
    """The weights are averaged in float64; moments and step counts are those of the last checkpoint."""
    average = runs.small(name, name).average
    assert average.is_kept
    assert average.positions == (1600, 1800, 2000)
    assert average.weights == pytest.approx(weights)
    delivered, last = runs.states(name, name), runs.states(name, name, average.single)
    members = [runs.states(name, name, place) for place in average.checkpoints]
    for (parameter, state), values in delivered.items():
        expected = last[parameter, state]
        if state == "fp32":
            summed = sum(w * one[parameter, state].astype(np.float64) for w, one in zip(weights, members, strict=True))
            np.testing.assert_allclose(values, summed, rtol=1e-6)
            assert not np.array_equal(values, expected)
        else:
            np.testing.assert_array_equal(values, expected)
    key = runs.small(name, name).key
    steps = [runs.opened(name, key, one).steps for one in (runs.small(name, name).checkpoint, average.single)]
    assert steps[0] == steps[1]


def test_the_record_is_that_of_the_average(runs: Runs) -> None:
    record, single = runs.small("uniform"), runs.small("single", "single")
    assert record.eval_loss == record.end.loss == record.average.eval_loss < record.average.single_eval_loss
    assert record.end.position == 2000
    assert record.average.single_eval_loss == single.eval_loss
    assert record.key != single.key
    assert [point.loss for point in record.train] == [point.loss for point in single.train]
    assert [point.loss for point in record.evaluations[:-1]] == [point.loss for point in single.evaluations[:-1]]


def test_the_next_stage_grows_from_the_average(runs: Runs) -> None:
    small, full = runs.records("uniform")
    assert full.growth.certificate.eval_loss_before == small.average.eval_loss
    assert full.growth.certificate.eval_loss_after == pytest.approx(small.average.eval_loss, rel=1e-5)
    assert full.growth.certificate.max_logit_difference < 1e-4


def test_an_average_that_is_worse_is_not_delivered(runs: Runs) -> None:
    small, full = runs.records("refused")
    average = small.average
    assert not average.is_kept
    assert average.eval_loss > average.single_eval_loss == small.eval_loss == small.end.loss
    assert small.checkpoint == average.single == average.checkpoints[-1]
    assert full.growth.certificate.eval_loss_before == small.eval_loss
    names = (runs.store("refused").stage_folder(small.key) / "checkpoints").names()
    assert {f"checkpoints/{name}" for name in names} == set(average.checkpoints)


def test_what_the_record_names_stays_and_nothing_else(runs: Runs) -> None:
    record = runs.small("uniform")
    names = (runs.store("uniform").stage_folder(record.key) / "checkpoints").names()
    assert {f"checkpoints/{name}" for name in names} == set(record.needed_checkpoints)
    assert len(names) == 4
    (stored,) = (one for one in survey(runs.store("uniform")).stages if one.key == record.key)
    assert set(stored.needed) == set(names)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_average_has_the_same_bits_in_every_layout(runs: Runs, layout: tuple) -> None:
    name = "-".join(map(str, layout))
    again, record = runs.small(name), runs.small("uniform")
    assert again.average.weights == record.average.weights
    assert_same(runs.states(name), runs.states("uniform"))


@pytest.mark.parametrize("count", STOPS)
def test_stopped_before_or_while_averaging_and_started_again_gives_the_same_bits(runs: Runs, count: int) -> None:
    """Stopped after each of three checkpoints, and after the average, which is then written a second time."""
    again, calm = runs.records(f"stopped-{count}", "uniform"), runs.records("uniform")
    for one, other in zip(again, calm, strict=True):
        assert [point.loss for point in one.evaluations] == [point.loss for point in other.evaluations]
        assert [point.loss for point in one.train] == [point.loss for point in other.train]
    assert_same(runs.states(f"stopped-{count}"), runs.states("uniform"))
    assert again[0].checkpoint != "checkpoints/average-dead"


def test_a_longer_stage_goes_on_from_the_last_checkpoint_and_averages_those_of_the_shorter(runs: Runs) -> None:
    shorter, longer = runs.small("continued", "shorter"), runs.small("continued")
    assert shorter.average.is_kept
    assert longer.prefix.key == shorter.key
    assert longer.average.positions == (1600, 1800, 2000)
    assert len(longer.average.checkpoints) == 1
    assert_same(runs.states("continued"), runs.states("uniform"))


def test_without_the_checkpoints_of_the_shorter_stage_the_longer_one_is_trained_from_its_start(runs: Runs) -> None:
    record = runs.small("members lost")
    assert record.prefix is None
    assert len(record.average.checkpoints) == 3
    assert_same(runs.states("members lost"), runs.states("uniform"))


def test_a_stage_that_may_end_at_any_time_averages_what_it_has(runs: Runs) -> None:
    record, (at_once, _) = runs.small("open", "open"), runs.records("ended at once")
    positions = record.average.positions
    assert positions[-1] == record.duration < 2000
    assert len(positions) == 3
    assert all(position % 200 == 0 for position in positions[:-1])
    assert at_once.average is None
    assert at_once.checkpoint.startswith("checkpoints/0")
