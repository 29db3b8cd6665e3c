"""The models that stages deliver, as folders that transformers opens."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import StageRejected
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.runs.driver import Driver
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.tools.deliver import DeliveredModels
from raystage.train.worker import Job, run_job


def schedule_of(text: Path, accept: dict | None = None) -> Schedule:
    """Two stages at a constant rate; the second one ends with a decay of its own."""
    gate = {"accept": accept} if accept else {}
    stages = [
        {"name": "small", "model": {"num_layers": 1}, "until": {"tokens": 400}, "deliver": {"decay": 200}},
        {"name": "full", "model": {"num_layers": 2}, "until": {"tokens": 400}, "grow": {"operator": "stack"},
         "training": {"lr_schedule": {"from": "current", "kind": "linear"}}, "deliver": True, **gate},
    ]  # fmt: skip
    training = {"optimizer": {"lr": 2e-2}, "evaluate": {"tokens": 400}, "lr_schedule": {"kind": "constant"}}
    return make_schedule(text, stages=stages, training=training, baseline=None)


def train(schedule: Schedule, store: str) -> None:
    for stage in make_plan(schedule).stages_by_key().values():
        run_job(Job((stage,), store), lambda *message: None)


class Delivered:
    """A run whose stages are trained, and what its driver delivers."""

    def __init__(self, folder: Path) -> None:
        self.text, self.store = folder / "text", Store(open_folder(folder / "store"))
        self.text.mkdir()
        self.schedule = schedule_of(self.text)
        run_workers(1, train, self.schedule, str(folder / "store"), folder=folder / "processes")
        self.folder = folder / "store/runs/tiny/delivered"

    def drive(self, schedule: Schedule | None = None) -> None:
        schedule = schedule or self.schedule
        plan = make_plan(schedule)
        Driver(plan, schedule, self.store, [DeliveredModels(plan, self.store)], draws=False).run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return Delivered(tmp_path_factory.mktemp("delivered"))


@pytest.fixture
def delivered(trained: Delivered) -> Delivered:
    open_folder(trained.folder).delete()
    return trained


def test_every_size_is_a_folder_with_the_weights_of_its_decayed_checkpoint(delivered: Delivered) -> None:
    delivered.drive()
    sizes = {"small": 1, "full": 2}
    assert sorted(path.name for path in delivered.folder.iterdir()) == ["full", "full.json", "small", "small.json"]
    for one in make_plan(delivered.schedule).deliveries:
        model = AutoModelForCausalLM.from_pretrained(delivered.folder / one.stage, trust_remote_code=False)
        assert model.config.num_hidden_layers == sizes[one.stage]
        record, weight = delivered.store.record(one.model.key), model.model.layers[0].self_attn.q_proj.weight
        with closing(Checkpoint(delivered.store.stage_folder(record.key) / record.checkpoint)) as checkpoint:
            trained = checkpoint.read("model.layers.0.self_attn.q_proj.weight", "fp32", 0, weight.numel())
        assert np.array_equal(weight.detach().numpy().ravel(), trained)
    assert json.loads((delivered.folder / "small.json").read_text())["num_params"] > 0


def test_what_is_there_is_left_alone_and_what_was_broken_off_is_written_again(delivered: Delivered) -> None:
    delivered.drive()
    (delivered.folder / "small" / "mine.txt").write_text("a note")
    (delivered.folder / "full.json").unlink()
    (delivered.folder / "full" / "config.json").unlink()
    delivered.drive()
    assert (delivered.folder / "small" / "mine.txt").read_text() == "a note"
    assert (delivered.folder / "full" / "config.json").exists()
    assert (delivered.folder / "full.json").exists()


def test_a_model_that_a_gate_does_not_accept_is_not_delivered(delivered: Delivered) -> None:
    with pytest.raises(StageRejected):
        delivered.drive(schedule_of(delivered.text, accept={"eval_loss_below": 1e-3}))
    assert sorted(path.name for path in delivered.folder.iterdir()) == ["small", "small.json"]
