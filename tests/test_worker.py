"""Stages on real workers (gloo processes, DeepSpeed), without Ray: layouts, batches, resuming.

All that needs processes runs once, in a few rounds; the tests look at what came out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import deepspeed
import deepspeed.ops
import numpy as np
import pytest
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from distributed import run_workers
from factories import make_schedule
from raystage import checkpoint, handover, worker
from raystage.checkpoint import Checkpoint
from raystage.data import Reader, open_streams
from raystage.engine import StageEngine
from raystage.errors import NonFiniteLoss
from raystage.growth.apply import grown_steps
from raystage.growth.maps import growth_map, initial_map
from raystage.handover import Entry, write_own_shard
from raystage.plan import StagePlan, make_plan
from raystage.record import Progress, StageRecord
from raystage.retention import loss_at, tokens_of
from raystage.schedule import Checkpointing, Optimizer, Schedule, Training
from raystage.shape import parameters
from raystage.storage import open_folder
from raystage.store import Store
from raystage.worker import Job, run_job

pytestmark = pytest.mark.end_to_end


@dataclass(frozen=True)
class Layout:
    workers: int
    zero_stage: int
    precision: str
    optimizer: str = "adamw"
    offload: str = "none"

    def __str__(self) -> str:
        offloaded = "" if self.offload == "none" else f" offloaded to {self.offload}"
        return f"{self.workers} workers, ZeRO {self.zero_stage}, {self.precision}, {self.optimizer}{offloaded}"

    @property
    def training(self) -> dict:
        return {
            "workers": self.workers,
            "zero_stage": self.zero_stage,
            "precision": self.precision,
            "optimizer": Optimizer(name=self.optimizer),
            "offload_optimizer": self.offload,
            "micro_batch_size": 2,
        }


# Three workers neither divide the batch nor any parameter evenly.
SAVED = [
    Layout(2, 0, "fp32"),
    Layout(2, 1, "fp32"),
    Layout(2, 2, "fp32"),
    Layout(2, 3, "fp32"),
    Layout(2, 0, "bf16"),
    Layout(2, 1, "bf16"),
    Layout(2, 3, "bf16"),
    Layout(2, 0, "fp32", "sgd"),
    Layout(2, 2, "fp32", "sgd"),
    Layout(2, 3, "bf16", "sgd"),
    Layout(2, 1, "fp32", offload="cpu"),
    Layout(2, 2, "bf16", offload="cpu"),
    Layout(2, 3, "fp32", offload="cpu"),
]
LOADED = [
    Layout(3, 0, "fp32"),
    Layout(3, 1, "fp32"),
    Layout(3, 2, "fp32"),
    Layout(3, 3, "fp32"),
    Layout(3, 1, "bf16"),
    Layout(3, 2, "bf16"),
    Layout(3, 1, "fp32", "sgd"),
    Layout(3, 3, "fp32", "sgd"),
    Layout(3, 1, "bf16", "sgd"),
    Layout(3, 1, "bf16", offload="cpu"),
    Layout(3, 2, "fp32", offload="cpu"),
    Layout(3, 3, "bf16", offload="cpu"),
    Layout(3, 2, "fp32", "sgd", offload="cpu"),
]
PAIRS = [(source, target) for target in LOADED for source in SAVED if source.optimizer == target.optimizer]
# What each optimizer's other layouts are compared with.
REFERENCES = {layout.optimizer: layout for layout in SAVED if (layout.zero_stage, layout.precision) == (0, "fp32")}
REFERENCE = REFERENCES["adamw"]
# Trained like SAVED, with something more in the schedule: it must change nothing.
VARIANTS = {
    "activation checkpointing": (Layout(2, 1, "fp32"), {"activation_checkpointing": True}),
    "activation checkpointing under ZeRO 3": (Layout(2, 3, "fp32"), {"activation_checkpointing": True}),
    "one sequence at a time": (Layout(2, 2, "fp32"), {"micro_batch_size": 1}),
    "options of DeepSpeed": (
        Layout(2, 3, "fp32"),
        {"deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0, "sub_group_size": 1000}}},
    ),
}


@dataclass(frozen=True)
class Trained:
    """What one worker saw: the loss of each step, the evaluation after them."""

    losses: list[float]
    eval_loss: float


def stage_in(schedule: Schedule, layout: Layout, changes: dict | None = None) -> StagePlan:
    """The schedule's first stage in another layout, under a key that says which."""
    stage = make_plan(schedule).staged.stages[0]
    training = stage.training.model_copy(update={**layout.training, **(changes or {})})
    return replace(stage, training=training, key=str(layout))


def train_and_save(schedule: Schedule, layouts: list, store: str) -> list[Trained]:
    """Two steps from the same start in each layout; the state after them saved under the layout's key."""
    _connect()
    results = []
    for layout, changes in layouts:
        stage = stage_in(schedule, layout, changes)
        entry = Entry(initial_map(stage.shape), None, resumed=False)
        engine = _entered(stage, entry)
        reader = Reader(open_streams(stage.data, stage.shape.vocab_size).train, stage.shape.context_length, 0)
        count = stage.training.global_batch_tokens // stage.shape.context_length
        losses = [
            engine.sum_over_workers(engine.train_step(reader.sequences(step * count, count), 1e-2, step))
            / stage.training.global_batch_tokens
            for step in range(2)
        ]
        results.append(Trained(losses, engine.evaluate(worker.evaluation_set(stage)).loss))
        if not changes:
            _save(engine, stage, store)
        engine.destroy()
    return results


def load_and_save(schedule: Schedule, pairs: list[tuple[Layout, Layout]], store: str) -> list[float]:
    """Every source layout's checkpoint loaded into its target layouts and saved again from there."""
    _connect()
    losses = []
    for source, target in pairs:
        stage = stage_in(schedule, target)
        opened = Checkpoint(open_folder(store) / str(source))
        rules = growth_map(stage.shape, stage.shape, "identity", "grow")
        engine = _entered(stage, Entry(rules, opened, resumed=False))
        losses.append(engine.evaluate(worker.evaluation_set(stage)).loss)
        _save(engine, stage, store, f"{source} -> {target}")
        engine.destroy()
    return losses


def _connect() -> None:
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)


def _entered(stage: StagePlan, entry: Entry) -> StageEngine:
    steps = grown_steps(entry.rules, entry.source.steps if entry.source else {})
    engine = StageEngine(stage, steps)
    handover.fill(engine, entry, steps, stage.seed)
    return engine


def _save(engine: StageEngine, stage: StagePlan, store: str, name: str | None = None) -> None:
    folder = open_folder(store) / (name or stage.key)
    shard, steps = write_own_shard(engine, folder)
    shards, all_steps = handover.gathered(shard), handover.gathered(steps)
    if engine.rank == 0:
        merged = {key: step for one in all_steps for key, step in one.items()}
        manifest = handover.make_manifest(stage, tuple(shards), merged, Progress.at_start(stage))
        checkpoint.commit(folder, manifest)
    comm.barrier()


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return make_schedule(tmp_path_factory.mktemp("text"), training={"gradient_clipping": 0.5})


@pytest.fixture(scope="module")
def rounds(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two rounds of worker processes: 2 workers train and save; 3 train too, then load each layout into each."""
    folder = tmp_path_factory.mktemp("rounds")
    store = str(folder / "store")
    found: dict = {"store": store, "trained": {}}
    for world in (2, 3):
        named = {layout: (layout, None) for layout in SAVED + LOADED} | VARIANTS
        mine = {name: layout for name, layout in named.items() if layout[0].workers == world}
        results = run_workers(world, train_and_save, schedule, list(mine.values()), store, folder=folder)[0]
        found["trained"] |= dict(zip(mine, results, strict=True))
    losses = run_workers(3, load_and_save, schedule, PAIRS, store, folder=folder)[0]
    return found | dict(zip(PAIRS, losses, strict=True))


def states_of(store: str, name: str, schedule: Schedule) -> dict[tuple[str, str], np.ndarray]:
    opened = Checkpoint(open_folder(store) / name)
    shape = make_plan(schedule).staged.stages[0].shape
    return {
        (p.name, state): opened.read(p.name, state, 0, p.numel) for p in parameters(shape) for state in opened.states
    }


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_any_layout_loads_into_any_other_bit_for_bit(
    rounds: dict, schedule: Schedule, source: Layout, target: Layout
) -> None:
    before = states_of(rounds["store"], str(source), schedule)
    after = states_of(rounds["store"], f"{source} -> {target}", schedule)
    moments = {"adamw": {"exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}[source.optimizer]
    assert {state for _, state in before} == {"fp32", *moments}
    assert all(values.any() for (_, state), values in before.items() if state in moments)
    for key, values in before.items():
        np.testing.assert_array_equal(after[key], values, err_msg=str(key))
    steps = [Checkpoint(open_folder(rounds["store"]) / name).steps for name in (str(source), f"{source} -> {target}")]
    assert steps[0] == steps[1] == dict.fromkeys(steps[0], 2)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_the_loaded_model_computes_what_the_saved_one_did(rounds: dict, source: Layout, target: Layout) -> None:
    """Weights the model computes with follow from the loaded ones: the small kept-whole ones of ZeRO 3 too."""
    tolerance = 1e-6 if source.precision == target.precision == "fp32" else 2e-3
    assert rounds[source, target] == pytest.approx(rounds["trained"][source].eval_loss, rel=tolerance)


@pytest.mark.parametrize("layout", [layout for layout in SAVED + LOADED if layout.precision == "fp32"], ids=str)
def test_every_layout_trains_alike(rounds: dict, layout: Layout) -> None:
    """10 sequences over 2 or 3 workers, in micro batches of 2: the same losses, the same model."""
    reference, found = rounds["trained"][REFERENCES[layout.optimizer]], rounds["trained"][layout]
    assert found.losses == pytest.approx(reference.losses, rel=1e-6)
    assert found.eval_loss == pytest.approx(reference.eval_loss, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_saves_memory_or_time_changes_nothing(rounds: dict, variant: str) -> None:
    reference, found = rounds["trained"][REFERENCE], rounds["trained"][variant]
    assert found.losses == pytest.approx(reference.losses, rel=1e-6)
    assert found.eval_loss == pytest.approx(reference.eval_loss, rel=1e-6)


@pytest.mark.parametrize("layout", [layout for layout in SAVED + LOADED if layout.precision == "bf16"], ids=str)
def test_bf16_trains_close_to_fp32(rounds: dict, layout: Layout) -> None:
    reference, found = rounds["trained"][REFERENCES[layout.optimizer]], rounds["trained"][layout]
    assert found.losses == pytest.approx(reference.losses, rel=5e-3)
    assert found.losses[1] < found.losses[0]


def test_no_compiler_is_needed_on_a_cpu() -> None:
    """raystage.engine turns off what DeepSpeed would compile, by a private name: is it still there?"""
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


# --- whole jobs -----------------------------------------------------------------------------------

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
        start_tokens=first.tokens,
        start_flops=first.flops,
    )
    return first, second


def keeping(stage: StagePlan) -> StagePlan:
    """A stage that keeps its best two checkpoints."""
    training = stage.training.overlaid(Training(checkpoint=Checkpointing(keep_last=1, keep_best=2)))
    return replace(stage, key="keeping", training=training)


def exploding(stage: StagePlan) -> StagePlan:
    """A sound first half, then a rate that makes every weight NaN."""
    piece, half = stage.rate[0], stage.start_tokens + stage.tokens // 2
    sound = replace(piece, start_lr=1e-3, end_lr=1e-3, end_tokens=half)
    mad = replace(piece, start_lr=math.nan, end_lr=math.nan, start_tokens=half, end_tokens=stage.end_tokens)
    return replace(stage, key="exploding", rate=(sound, mad))


@pytest.fixture(scope="module")
def stores(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(the folder of all stores, what the exploding stage said)."""
    folder = tmp_path_factory.mktemp("jobs")
    return str(folder), run_workers(1, run_all, schedule, str(folder), folder=folder / "processes")[0]


def records(schedule: Schedule, store: str) -> list[StageRecord]:
    return [Store(open_folder(store)).record(stage.key) for stage in plans(schedule)]


def test_a_job_counts_what_it_did(schedule: Schedule, stores: tuple[str, str]) -> None:
    calm = records(schedule, f"{stores[0]}/calm")
    for stage, record in zip(plans(schedule), calm, strict=True):
        assert (record.tokens, record.steps, record.flops) == (stage.tokens, stage.steps, stage.flops)
        assert record.train[-1].tokens == record.evaluations[-1].tokens == stage.end_tokens
        assert record.evaluations[0].tokens == stage.start_tokens
        assert record.eval_loss == record.evaluations[-1].loss < record.evaluations[0].loss
        assert record.peak_memory_bytes > 10**7
    certificate = calm[1].growth.certificate
    assert certificate.eval_loss_before == calm[0].eval_loss
    assert certificate.eval_loss_after == pytest.approx(calm[1].evaluations[0].loss)
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
    assert store.latest_checkpoint("exploding").name.startswith(f"{stage.tokens // 2:015}")


def test_a_stage_keeps_its_best_checkpoints_where_asked_and_its_bits(
    schedule: Schedule, stores: tuple[str, str]
) -> None:
    store = Store(open_folder(f"{stores[0]}/keeping"))
    record, calm = store.record("keeping"), records(schedule, f"{stores[0]}/calm")[0]
    assert record.eval_loss == calm.eval_loss
    names = (store.stage_folder("keeping") / "checkpoints").names()
    assert {f"checkpoints/{name}" for name in names} == {record.checkpoint, *record.best_checkpoints}
    losses = [loss_at(tokens_of(place.rpartition("/")[2]), record.evaluations) for place in record.best_checkpoints]
    assert len(losses) == 2
    assert losses == sorted(losses)
    for name in names:
        Checkpoint(store.stage_folder("keeping") / "checkpoints" / name).close()


def test_a_finished_stage_keeps_one_checkpoint(schedule: Schedule, stores: tuple[str, str]) -> None:
    for stage, record in zip(plans(schedule), records(schedule, f"{stores[0]}/saved-6"), strict=True):
        folder = Store(open_folder(f"{stores[0]}/saved-6")).stage_folder(stage.key)
        assert [f"checkpoints/{name}" for name in (folder / "checkpoints").names()] == [record.checkpoint]
