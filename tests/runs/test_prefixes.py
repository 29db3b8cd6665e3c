"""A stage goes on from a finished one that did the same, only less of it: trained once, the bits of a whole one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.entry import find_prefix
from raystage.train.worker import Job, run_job

pytestmark = pytest.mark.end_to_end

BATCH = 100
WARM = {"operator": "zero_pad", "rewarm": {"factor": 1.3, "tokens": 300}}


def schedule(text: Path, first: int, second: int, kind: str = "wsd", lr: float = 2e-3) -> Schedule:
    """Two stages of so many steps; the second grows in width, what is new warming up over its first six steps."""
    return make_schedule(
        text,
        training={"lr_schedule": {"kind": kind, "warmup": 200}, "optimizer": {"lr": lr}, "evaluate": {"every": 500}},
        stages=[
            {"name": "small", "model": {"num_layers": 1}, "until": {"steps": first}},
            {"name": "wide", "model": {"num_layers": 1, "ffn_size": 24}, "until": {"steps": second}, "grow": WARM,
             "training": {"lr_schedule": {"kind": "constant", "warmup": 0}}},
        ],
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    text: Path
    folder: Path

    @property
    def store(self) -> Store:
        return Store(open_folder(self.folder / "store"))

    def alone(self, lengths: tuple[int, int]) -> Store:
        """Where nothing else was trained."""
        return Store(open_folder(self.folder / f"alone-{lengths[0]}"))

    def stages(self, *lengths: int, **options: object) -> tuple[StagePlan, ...]:
        return make_plan(schedule(self.text, *lengths, **options)).staged.stages

    def record(self, stage: StagePlan, store: Store | None = None) -> StageRecord:
        return (store or self.store).record(stage.key)


def train_all(text: str, folder: str) -> None:
    """A short run, then longer ones in the same store; the longer ones also in a store of their own."""
    for lengths, stores in [((8, 7), ["store"]), ((8, 12), ["store", "alone-8"]), ((12, 7), ["store", "alone-12"])]:
        stages = make_plan(schedule(Path(text), *lengths)).staged.stages
        for store in stores:
            run_job(Job(stages, f"{folder}/{store}"), lambda *message: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, text = tmp_path_factory.mktemp("prefixes"), tmp_path_factory.mktemp("text")
    make_schedule(text)
    run_workers(1, train_all, str(text), str(folder), folder=folder / "processes")
    return Trained(text, folder)


@pytest.mark.parametrize(("lengths", "index"), [((8, 12), 1), ((12, 7), 0)], ids=["grown stage", "first stage"])
def test_a_longer_stage_takes_over_what_a_shorter_one_trained(
    trained: Trained, lengths: tuple[int, int], index: int
) -> None:
    stage, short = trained.stages(*lengths)[index], trained.stages(8, 7)[index]
    record, prefix = trained.record(stage), trained.record(short)
    assert record.prefix is not None
    assert (record.prefix.key, record.prefix.flops, record.prefix.duration) == (
        short.key,
        prefix.flops,
        prefix.duration,
    )
    assert record.flops == stage.flops
    assert record.flops_spent == stage.flops - short.flops


@pytest.mark.parametrize(("lengths", "index"), [((8, 12), 1), ((12, 7), 0)], ids=["grown stage", "first stage"])
def test_it_ends_with_the_bits_of_one_that_was_trained_whole(
    trained: Trained, lengths: tuple[int, int], index: int
) -> None:
    stage = trained.stages(*lengths)[index]
    shared, alone = trained.record(stage), trained.record(stage, trained.alone(lengths))
    assert alone.prefix is None
    assert shared.eval_loss == alone.eval_loss
    sums = [
        [shard.checksum for shard in Checkpoint(store.finished_checkpoint(stage.key)).manifest.shards]
        for store in (trained.store, trained.alone(lengths))
    ]
    assert sums[0] == sums[1]


def test_the_growth_it_began_with_is_told_as_it_was(trained: Trained) -> None:
    short, long = (trained.record(trained.stages(8, steps)[1]) for steps in (7, 12))
    assert long.growth == short.growth


def test_other_rates_up_to_there_share_nothing(trained: Trained) -> None:
    """Under a cosine the rate depends on the run's length from its first token on; another peak is another run."""
    for options in ({"kind": "cosine"}, {"lr": 1e-3}):
        assert find_prefix(trained.stages(12, 7, **options)[0], trained.store) is None
    assert find_prefix(trained.stages(12, 7)[0], trained.store).steps == 8


def test_the_longest_one_is_taken_and_none_that_is_as_long(trained: Trained) -> None:
    first = trained.stages(20, 7)[0]
    assert find_prefix(first, trained.store).steps == 12
    assert find_prefix(first, trained.store, beyond_steps=12) is None
    assert find_prefix(trained.stages(8, 7)[0], trained.store) is None


def test_one_that_was_removed_is_none(trained: Trained) -> None:
    """Its note among its trunk stays behind, and means nothing without the record."""
    stage = trained.stages(8, 12)[1]
    path = Path(trained.store.stage_folder(trained.stages(8, 7)[1].key).path, "record.json")
    path.rename(path.with_name("gone"))
    try:
        assert find_prefix(stage, trained.store) is None
    finally:
        path.with_name("gone").rename(path)
