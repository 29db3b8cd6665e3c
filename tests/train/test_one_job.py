"""Several stages in the same worker processes, one after the other, whatever changes between them but the layout."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.jobs import jobs
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job

pytestmark = pytest.mark.end_to_end

STAGES = [
    {"name": "small", "model": {"num_layers": 1}, "until": {"steps": 4}},
    {"name": "other-zero", "model": {"num_layers": 2}, "until": {"steps": 4}, "grow": {"operator": "stack"},
     "training": {"zero_stage": 3}},
    {"name": "other-precision", "model": {"num_layers": 2}, "until": {"steps": 4},
     "training": {"zero_stage": 2, "precision": "bf16"}},
    {"name": "wider", "model": {"num_layers": 2, "ffn_size": 48}, "until": {"steps": 4},
     "grow": {"operator": "zero_pad"}, "training": {"zero_stage": 0}},
    {"name": "other-optimizer", "model": {"num_layers": 2, "ffn_size": 48}, "until": {"steps": 4},
     "training": {"optimizer": {"name": "sgd", "lr": 1e-2}}},
]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """engines: how many were there after each job, on each worker."""

    stages: tuple[StagePlan, ...]
    together: Store
    apart: Store
    engines: list[list[int]]

    def records(self, store: Store) -> list[StageRecord]:
        return [store.record(stage.key) for stage in self.stages]


def train_both_ways(stages: tuple[StagePlan, ...], folder: str) -> list[int]:
    """Jobs one after the other in the same processes, as workers that stay have them."""
    engines = []
    for job in (Job(stages, f"{folder}/together"), *(Job((stage,), f"{folder}/apart") for stage in stages)):
        run_job(job, lambda *message: None)
        engines.append(sum(type(one).__name__ == "DeepSpeedEngine" for one in gc.get_objects()))
    return engines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, text = tmp_path_factory.mktemp("one-job"), tmp_path_factory.mktemp("text")
    stages = make_plan(make_schedule(text, stages=STAGES, training={"workers": 2})).staged.stages
    engines = run_workers(2, train_both_ways, stages, str(folder), folder=folder / "processes")
    return Trained(stages, *(Store(open_folder(folder / name)) for name in ("together", "apart")), engines)


def test_all_of_it_is_one_job(trained: Trained) -> None:
    assert jobs(trained.stages) == (trained.stages,)


def test_the_same_losses_as_in_jobs_of_their_own(trained: Trained) -> None:
    for together, apart in zip(trained.records(trained.together), trained.records(trained.apart), strict=True):
        assert [point.loss for point in together.train] == [point.loss for point in apart.train]
        assert [point.loss for point in together.evaluations] == [point.loss for point in apart.evaluations]
        assert together.growth is None or together.growth.certificate == apart.growth.certificate


def test_the_same_bits_in_every_checkpoint(trained: Trained) -> None:
    for stage in trained.stages:
        one, other = (Checkpoint(store.finished_checkpoint(stage.key)) for store in (trained.together, trained.apart))
        assert one.states == other.states
        assert [shard.checksum for shard in one.manifest.shards] == [shard.checksum for shard in other.manifest.shards]


def test_no_job_leaves_its_engine_in_the_way_of_the_next(trained: Trained) -> None:
    assert trained.engines == [[0] * (1 + len(STAGES))] * 2
