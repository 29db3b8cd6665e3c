"""Whole stages on real workers (gloo processes, DeepSpeed), without Ray: what they record, stopping, resuming.

All that needs processes runs once; the tests look at what came out. tests/test_layouts.py holds the layouts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import deepspeed.ops
import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.config.training import Checkpointing, Training
from raystage.errors import NonFiniteLoss
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store, loss_at, position_of
from raystage.train.ending.record import environment
from raystage.train.worker import Job, run_job

pytestmark = pytest.mark.end_to_end

STOPS = [("evaluated", 1), ("saved", 1), ("saved", 4), ("grown", 1), ("saved", 6)]


class Killed(BaseException):
    """Stands for the end of a process between two messages; real kills are in tests/end_to_end."""


def run_until(jobs: list[Job], kind: str | None = None, count: int = 0) -> None:
    """Run the jobs; stop dead at message number `count` of `kind`, where one is given."""
    said = []

    def send(what: str, key: str, content: object) -> None:
        said.append(what)
        if kind and said.count(kind) == count:
            raise Killed

    try:
        for job in jobs:
            run_job(job, send)
    except Killed:
        pass


def run_all(schedule: Schedule, store: str) -> str:
    """All that the tests below look at, in one worker process, each in a store of its own."""
    stages = plans(schedule)
    run_until([Job((stage,), f"{store}/calm") for stage in stages])
    for kind, count in STOPS:
        jobs = [Job((stage,), f"{store}/{kind}-{count}") for stage in stages]
        run_until(jobs, kind, count)
        run_until(jobs)
    first, second = halves(stages[0])
    run_until([Job((first, second), f"{store}/one-job")])
    run_until([Job((first,), f"{store}/two-jobs"), Job((second,), f"{store}/two-jobs")])
    run_until([Job((keeping(stages[0]),), f"{store}/keeping")])
    try:
        run_job(Job((exploding(stages[0]),), f"{store}/exploding"), lambda *message: None)
    except NonFiniteLoss as error:
        return str(error)
    return "it did not fail"


def plans(schedule: Schedule) -> tuple[StagePlan, ...]:
    return make_plan(schedule).staged.stages


def halves(whole: StagePlan) -> tuple[StagePlan, StagePlan]:
    """A stage cut after its third step."""
    first = replace(whole, key="first", steps=3)
    second = replace(
        whole,
        key="second",
        parent_key="first",
        parent_shape=whole.shape,
        steps=whole.steps - 3,
        start_steps=3,
        start=first.duration,
        start_flops=first.flops,
    )
    return first, second


def keeping(stage: StagePlan) -> StagePlan:
    """A stage that keeps its best two checkpoints."""
    training = stage.training.overlaid(Training(checkpoint=Checkpointing(keep_last=1, keep_best=2)))
    return replace(stage, key="keeping", training=training)


def exploding(stage: StagePlan) -> StagePlan:
    """A sound first half, then a rate that makes every weight NaN."""
    piece, half = stage.rate[0], stage.start + stage.duration // 2
    sound = replace(piece, start_lr=1e-3, end_lr=1e-3, end=half)
    mad = replace(piece, start_lr=math.nan, end_lr=math.nan, start=half, end=stage.end)
    return replace(stage, key="exploding", rate=(sound, mad))


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return make_schedule(tmp_path_factory.mktemp("text"), training={"gradient_clipping": 0.5})


@pytest.fixture(scope="module")
def stores(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(the folder of all stores, what the exploding stage said)."""
    folder = tmp_path_factory.mktemp("jobs")
    return str(folder), run_workers(1, run_all, schedule, str(folder), folder=folder / "processes")[0]


def records(schedule: Schedule, store: str) -> list[StageRecord]:
    return [Store(open_folder(store)).record(stage.key) for stage in plans(schedule)]


def test_no_compiler_is_needed_on_a_cpu() -> None:
    """raystage.train.engine turns off what DeepSpeed would compile, by a private name: is it still there?"""
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_where_a_stage_was_trained_is_told_in_plain_words() -> None:
    """The version of torch is of a type of torch: who reads a message that has it loads torch, which takes seconds."""
    assert {type(one) for one in environment().values()} == {str}


def test_a_job_counts_what_it_did(schedule: Schedule, stores: tuple[str, str]) -> None:
    calm = records(schedule, f"{stores[0]}/calm")
    for stage, record in zip(plans(schedule), calm, strict=True):
        assert (record.duration, record.steps, record.flops) == (stage.duration, stage.steps, stage.flops)
        assert record.train[-1].position == record.evaluations[-1].position == stage.end
        assert record.evaluations[0].position == stage.start
        assert record.eval_loss == record.evaluations[-1].loss < record.evaluations[0].loss
        assert record.peak_memory_bytes > 10**7
    certificate = calm[1].growth.certificate
    assert certificate.eval_loss_before == calm[0].eval_loss
    assert certificate.eval_loss_after == calm[1].evaluations[0].loss  # it is the same evaluation
    assert certificate.max_logit_difference > 0


@pytest.mark.parametrize("jobs", ["one-job", "two-jobs"])
def test_a_stage_cut_in_two_ends_with_the_bits_of_the_whole(
    schedule: Schedule, stores: tuple[str, str], jobs: str
) -> None:
    """That is what lets baselines share a trunk."""
    calm = records(schedule, f"{stores[0]}/calm")[0]
    assert Store(open_folder(f"{stores[0]}/{jobs}")).record("second").eval_loss == calm.eval_loss


@pytest.mark.parametrize(("kind", "count"), STOPS)
def test_stopped_dead_and_started_again_gives_the_same_bits(
    schedule: Schedule, stores: tuple[str, str], kind: str, count: int
) -> None:
    calm, again = (records(schedule, f"{stores[0]}/{name}") for name in ("calm", f"{kind}-{count}"))
    for one, other in zip(calm, again, strict=True):
        assert [point.loss for point in one.evaluations] == [point.loss for point in other.evaluations]
        assert [point.loss for point in one.train] == [point.loss for point in other.train]
        assert one.growth is None or one.growth.certificate == other.growth.certificate


def test_a_loss_that_is_not_finite_ends_the_stage_and_keeps_the_last_good_checkpoint(
    schedule: Schedule, stores: tuple[str, str]
) -> None:
    stage, store = plans(schedule)[0], Store(open_folder(f"{stores[0]}/exploding"))
    assert "stage small: the training loss is nan at step" in stores[1]
    assert store.record("exploding") is None
    assert store.latest_checkpoint("exploding").name.startswith(f"{stage.duration // 2:015}")


def test_a_stage_keeps_its_best_checkpoints_where_asked_and_its_bits(
    schedule: Schedule, stores: tuple[str, str]
) -> None:
    store = Store(open_folder(f"{stores[0]}/keeping"))
    record, calm = store.record("keeping"), records(schedule, f"{stores[0]}/calm")[0]
    assert record.eval_loss == calm.eval_loss
    names = (store.stage_folder("keeping") / "checkpoints").names()
    assert {f"checkpoints/{name}" for name in names} == {record.checkpoint, *record.best_checkpoints}
    losses = [loss_at(position_of(place.rpartition("/")[2]), record.evaluations) for place in record.best_checkpoints]
    assert len(losses) == 2
    assert losses == sorted(losses)
    for name in names:
        Checkpoint(store.stage_folder("keeping") / "checkpoints" / name).close()


def test_a_finished_stage_keeps_one_checkpoint(schedule: Schedule, stores: tuple[str, str]) -> None:
    for stage, record in zip(plans(schedule), records(schedule, f"{stores[0]}/saved-6"), strict=True):
        folder = Store(open_folder(f"{stores[0]}/saved-6")).stage_folder(stage.key)
        assert [f"checkpoints/{name}" for name in (folder / "checkpoints").names()] == [record.checkpoint]
