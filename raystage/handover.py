"""From one stage's shards into the next one's workers, and back onto the disk.

Entering a stage finds what there is to start from and fills this worker's partitions through a growth
map; leaving it writes them. Nothing here trains.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from deepspeed import comm

from raystage import checkpoint, zero
from raystage.checkpoint import Checkpoint, Manifest, ParameterEntry, Shard
from raystage.engine import StageEngine
from raystage.errors import CheckpointError
from raystage.growth.apply import Grown
from raystage.growth.learned import Fitted
from raystage.growth.maps import GrowthMap, growth_map, initial_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.plan import UNCHANGED, StagePlan
from raystage.record import Progress
from raystage.shape import parameters
from raystage.storage import Folder
from raystage.store import Store


@dataclass(frozen=True)
class Entry:
    """How a stage is entered: from which checkpoint, through which map. `resumed`: from its own."""

    rules: GrowthMap
    source: Checkpoint | None
    resumed: bool


def find_entry(stage: StagePlan, store: Store) -> Entry:
    """From the stage's own furthest checkpoint, else through the growth map from its parent's, else from nothing.

    Where another kind of optimizer wrote the parent's, its state is of no use: weights alone carry over.
    """
    own = shared(store.latest_checkpoint(stage.key))
    if own is not None:
        return Entry(growth_map(stage.shape, stage.shape, "identity", "grow"), Checkpoint(own), resumed=True)
    if stage.parent_key is None:
        return Entry(initial_map(stage.shape), None, resumed=False)
    source, growth = Checkpoint(store.finished_checkpoint(stage.parent_key)), stage.growth or UNCHANGED
    policy = growth.optimizer_state if source.has(stage.training.optimizer.moments) else "reset"
    if is_learned(growth.operator):
        return Entry(fitted_map(stage.shape), source, resumed=False)
    rules = growth_map(stage.parent_shape, stage.shape, growth.operator, policy, growth.options)
    return Entry(rules, source, resumed=False)


def fill(engine: StageEngine, entry: Entry, steps: dict[str, int], seed: int, fitted: Fitted | None = None) -> None:
    """Compute and set every slice this worker's optimizer holds, then bring the model's weights up to date.

    fitted: the model whose weights were fitted, where no rule tells them.
    """
    grown = fitted or Grown(entry.rules, entry.source.read if entry.source else _nothing_to_read, seed)
    for part in zero.partitions(engine.deepspeed):
        for state, held in part.tensors.items():
            held.copy_(torch.tensor(grown.slice(part.parameter, state, part.start, part.stop)))
    zero.set_steps(engine.deepspeed, steps)
    zero.refresh(engine.deepspeed)
    done = entry.source.manifest.step - engine.stage.start_steps if entry.resumed else 0
    engine.count_new_apart(done)
    engine.open_mask(done)


def write_own_shard(engine: StageEngine, folder: Folder) -> tuple[Shard, dict[str, int]]:
    """Write this worker's part of all state; returns its shard's entry and the step counts it knows."""
    pieces = []
    for part in zero.partitions(engine.deepspeed):
        first, last = part.saves
        if last > first:
            for state, held in part.tensors.items():
                pieces.append((part.parameter, state, part.start + first, held[first:last].cpu().numpy()))
    shard = checkpoint.write_shard(folder, checkpoint.shard_name(engine.rank, engine.world), pieces)
    return shard, zero.get_steps(engine.deepspeed)


def make_manifest(stage: StagePlan, shards: tuple[Shard, ...], steps: dict[str, int], progress: Progress) -> Manifest:
    """The manifest of a stage's checkpoint; `steps` are the optimizer steps of every parameter."""
    training = stage.training
    layout = {"num_workers": training.workers, "zero_stage": training.zero_stage, "precision": training.precision}
    return Manifest(
        model=stage.shape,
        parameters=tuple(
            ParameterEntry(parameter.name, parameter.shape, "float32", steps[parameter.name])
            for parameter in parameters(stage.shape)
        ),
        shards=shards,
        stage_key=stage.key,
        step=progress.steps,
        tokens=progress.tokens,
        data_cursor={"tokens": progress.tokens, "seed": stage.seed, "fingerprint": stage.data.fingerprint},
        rng={"seed": stage.seed, "scheme": "a seed for each step and worker"},
        optimizer={**training.optimizer.used(), **layout},
        progress=asdict(progress),
    )


def _nothing_to_read(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    raise CheckpointError(f"{state} of {parameter} has no source to be read from")


def shared(value: Any) -> Any:
    """The first worker's value, on every worker: what was found in the store must not differ between them."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Any) -> list:
    found: list = [None] * comm.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
