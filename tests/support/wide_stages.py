"""A stage grown in width, entered and trained on real workers (gloo processes, DeepSpeed), a step at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.config.training import Optimizer
from raystage.config.types import Workers
from raystage.data.tokens import TokenWindows, open_streams
from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.rules import growth_map, initial_map
from raystage.plans.learning_rate import Rewarming
from raystage.plans.stage import Growth, StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.writing import placed
from raystage.train import collectives
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry, fill
from raystage.train.state.shards import make_manifest, write_own_shard

WORKERS = 2
WIDE = {"hidden_size": 16, "num_heads": 4, "ffn_size": 24}


def two_stages(text: Path, second: dict, training: dict | None = None) -> Schedule:
    """2 layers for 800 tokens, then what `second` says for 1,200."""
    stages = [
        {"name": "first", "model": {"num_layers": 2}, "until": {"tokens": 800}},
        {"name": "second", "until": {"tokens": 1200}, **second},
    ]
    return make_schedule(text, stages=stages, training=training or {}, baseline=None)


def second_wider(text: Path) -> Schedule:
    """The same with a second stage that is wider by `duplicate`."""
    return two_stages(text, {"model": {"num_layers": 2, **WIDE}, "grow": {"operator": "duplicate"}})


@dataclass(frozen=True)
class Case:
    """A grown stage in a layout, under a policy."""

    zero_stage: int
    precision: str
    optimizer_state: str
    optimizer: str = "adamw"
    rewarm: Rewarming | None = None

    def __str__(self) -> str:
        rewarm = ", rewarm" if self.rewarm else ""
        return f"ZeRO {self.zero_stage}, {self.precision}, {self.optimizer_state}, {self.optimizer}{rewarm}"

    def of(self, stage: StagePlan, **optimizer: object) -> StagePlan:
        update = {"zero_stage": self.zero_stage, "precision": self.precision, "workers": Workers.exactly(WORKERS),
                  "optimizer": Optimizer(name=self.optimizer, lr=1e-2, **optimizer)}  # fmt: skip
        growth = stage.growth and Growth("duplicate", self.optimizer_state, rewarm=self.rewarm)
        return replace(stage, training=stage.training.model_copy(update=update), growth=growth, key=str(self))


def entered(stage: StagePlan, source: str | None) -> StageEngine:
    if source is None:
        return entered_by(stage, Entry(initial_map(stage.shape), None, resumed=False))
    return entered_by(stage, Entry(rules_of(stage), opened(source), resumed=False))


def entered_by(stage: StagePlan, entry: Entry) -> StageEngine:
    steps = grown_steps(entry.rules, entry.source.steps if entry.source else {})
    engine = StageEngine(stage, steps)
    fill(engine, entry, steps, stage.seed)
    return engine


def rules_of(stage: StagePlan) -> tuple:
    return growth_map(stage.parent_shape, stage.shape, stage.growth.operator, stage.growth.optimizer_state)


def train(engine: StageEngine, steps: int) -> None:
    stage = engine.stage
    reader = TokenWindows(open_streams(stage.data, stage.shape.vocab_size).train, stage.shape.context_length, 0)
    for step in range(stage.start_steps, stage.start_steps + steps):
        engine.train_step(engine.batches(reader, 10 * step, 10, stage.shape.context_length), 1e-2, step)


def save(engine: StageEngine, place: str) -> None:
    shard, steps = write_own_shard(engine, open_folder(place))
    shards, all_steps = collectives.all_gather_objects(shard), collectives.all_gather_objects(steps)
    if engine.rank == 0:
        merged = {key: step for one in all_steps for key, step in one.items()}
        progress, starts = Progress.at_start(engine.stage), engine.head_starts
        manifest = make_manifest(engine.stage, placed(shards), merged, progress, starts)
        checkpoint.commit(open_folder(place), manifest)
    engine.destroy()
    collectives.all_gather_objects(None)


def opened(*place: str) -> Checkpoint:
    return Checkpoint(open_folder("/".join(place)))


def furthest(one: Checkpoint, two: Checkpoint) -> float:
    """How far two trained models are from each other at most."""
    differences = [
        one.read(entry.name, "fp32", 0, math.prod(entry.shape))
        - two.read(entry.name, "fp32", 0, math.prod(entry.shape))
        for entry in one.manifest.parameters
    ]
    return max(float(np.abs(difference).max()) for difference in differences)


def differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """The states of parameters that are not the same bits; and "counts" where those differ."""
    counts = [] if one.manifest.parameters == other.manifest.parameters else ["counts"]
    return counts + [
        f"{state} of {entry.name}"
        for entry in one.manifest.parameters
        for state in one.states
        if (one.read(entry.name, state, 0, math.prod(entry.shape))
            != other.read(entry.name, state, 0, math.prod(entry.shape))).any()
    ]  # fmt: skip
