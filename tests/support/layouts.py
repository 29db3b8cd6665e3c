"""Small models trained, saved and loaded in any layout, on one worker among others.

Models: `plain`; `tied` embeddings; `tiny`, of which most parameters have fewer elements than there may be workers;
`grown`, whose old layers have seen other numbers of optimizer steps than its new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.config.training import Optimizer
from raystage.data.tokens import TokenWindows, open_streams
from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.rules import growth_map, initial_map
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.writing import placed
from raystage.train import collectives
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill
from raystage.train.state.shards import make_manifest, write_own_shard
from raystage.train.texts import evaluation_set

MODELS: dict[str, dict] = {
    "plain": {},
    "tied": {"tied_embeddings": True},
    "tiny": {"family": "gpt2", "hidden_size": 2, "num_heads": 1, "ffn_size": 3},
    "grown": {},
}
LR = 1e-2


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


@dataclass(frozen=True)
class Run:
    """A model to be trained in a layout; `variant` names something more in the schedule that must change nothing."""

    model: str
    layout: Layout
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.model}, {self.layout}" + (f", {self.variant}" if self.variant else "")


@dataclass(frozen=True)
class Pair:
    """A model whose checkpoint from one layout is loaded into another."""

    model: str
    source: Layout
    target: Layout

    def __str__(self) -> str:
        return f"{self.model}, {self.source} -> {self.target}"

    @property
    def before(self) -> Run:
        return Run(self.model, self.source)


@dataclass(frozen=True)
class Trained:
    """What one worker saw: the loss of each step, the evaluation after them."""

    losses: list[float]
    eval_loss: float


def make_schedules(folder: Path) -> dict[str, Schedule]:
    training = {"gradient_clipping": 0.5, "evaluate": {"tokens": 200}}
    return {
        name: make_schedule(folder, model=model, training=training, stages=[SMALL, DEEPER], baseline=None)
        for name, model in MODELS.items()
    }


SMALL = {"name": "small", "model": {"num_layers": 2}, "until": {"steps": 2}}
DEEPER = {"name": "full", "model": {"num_layers": 3}, "until": {"tokens": 1200}, "grow": {"operator": "identity"}}


def last_stage(schedules: dict[str, Schedule], model: str) -> StagePlan:
    """The stage that `model` is trained in; of `grown`, the second, as if nothing grew at its beginning."""
    stages = make_plan(schedules[model]).staged.stages
    return replace(stages[1], growth=None) if model == "grown" else stages[0]


def train_and_load(
    schedules: dict[str, Schedule], runs: list[tuple[Run, dict]], pairs: list[Pair], store: str
) -> tuple[list[Trained], list[float]]:
    """Every run trained from the same start and saved; then every pair's checkpoint loaded and saved again.

    Returns what each run saw, and the evaluation right after each pair's load.
    """
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    return (
        [_train(schedules, run, changes, store) for run, changes in runs],
        [_load(schedules, pair, store) for pair in pairs],
    )


def _train(schedules: dict[str, Schedule], run: Run, changes: dict, store: str) -> Trained:
    """Two steps, then saved under the run's name. Of `grown`, two more after a layer was added: in the first of them
    what stands before a zero has no gradient yet."""
    first = _in_layout(make_plan(schedules[run.model]).staged.stages[0], run.layout, changes)
    trained = _stepped(first, Entry(initial_map(first.shape), None, resumed=False), range(2), store, str(run))
    if run.model != "grown":
        return trained
    grown = _in_layout(last_stage(schedules, run.model), run.layout, changes)
    entry = Entry(
        growth_map(first.shape, grown.shape, "identity", "grow"), Checkpoint(open_folder(store) / str(run)), False
    )
    return _stepped(grown, entry, range(2, 4), f"{store}/grown", str(run))


def _load(schedules: dict[str, Schedule], pair: Pair, store: str) -> float:
    stage = _in_layout(last_stage(schedules, pair.model), pair.target, {})
    rules = growth_map(stage.shape, stage.shape, "identity", "grow")
    entry = Entry(rules, Checkpoint(place_of(pair.before, store)), resumed=False)
    return _stepped(stage, entry, range(0), store, str(pair)).eval_loss


def place_of(run: Run, store: str) -> checkpoint.Folder:
    """Where a run's checkpoint lies."""
    return open_folder(f"{store}/grown" if run.model == "grown" else store) / str(run)


def _in_layout(stage: StagePlan, layout: Layout, changes: dict) -> StagePlan:
    return replace(stage, training=stage.training.model_copy(update={**layout.training, **changes}))


def _stepped(stage: StagePlan, entry: Entry, steps: range, store: str, name: str) -> Trained:
    """A stage entered, stepped, evaluated and saved."""
    counts = grown_steps(entry.rules, entry.source.steps if entry.source else {})
    engine = StageEngine(stage, counts)
    fill(engine, entry, counts, stage.seed)
    reader = TokenWindows(open_streams(stage.data, stage.shape.vocab_size).train, stage.shape.context_length, 0)
    tokens = stage.training.global_batch_tokens
    count = tokens // stage.shape.context_length
    length = stage.shape.context_length
    losses = []
    for step in steps:
        batches = engine.batches(reader, step * count, count, length)
        losses.append(engine.sum_over_workers(engine.train_step(batches, LR, step)) / tokens)
    eval_loss = engine.evaluate(evaluation_set(stage)).loss
    _save(engine, stage, f"{store}/{name}")
    engine.destroy()
    return Trained(losses, eval_loss)


def _save(engine: StageEngine, stage: StagePlan, path: str) -> None:
    folder = open_folder(path)
    shard, steps = write_own_shard(engine, folder)
    shards, all_steps = collectives.all_gather_objects(shard), collectives.all_gather_objects(steps)
    if engine.rank == 0:
        merged = {key: step for one in all_steps for key, step in one.items()}
        manifest = make_manifest(stage, placed(shards), merged, Progress.at_start(stage))
        checkpoint.commit(folder, manifest)
    comm.barrier()
