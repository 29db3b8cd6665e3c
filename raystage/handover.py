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
from raystage.growth.apply import STATES, grown_slice
from raystage.growth.operator import GrowthMap, growth_map, initial_map
from raystage.plan import UNCHANGED, StagePlan
from raystage.record import Progress
from raystage.shape import FAMILIES, parameters
from raystage.storage import Folder
from raystage.store import Store


@dataclass(frozen=True)
class Entry:
    """How a stage is entered: from which checkpoint, through which map. `resumed`: from its own."""

    rules: GrowthMap
    source: Checkpoint | None
    resumed: bool


def find_entry(stage: StagePlan, store: Store) -> Entry:
    """From the stage's own furthest checkpoint, else through the growth map from its parent's, else from nothing."""
    own = shared(store.latest_checkpoint(stage.key))
    if own is not None:
        return Entry(growth_map(stage.shape, stage.shape, "identity", "grow"), Checkpoint(own), resumed=True)
    if stage.parent_key is None:
        return Entry(initial_map(stage.shape, FAMILIES[stage.shape.family].init_std), None, resumed=False)
    growth = stage.growth or UNCHANGED
    rules = growth_map(stage.parent_shape, stage.shape, growth.operator, growth.optimizer_state, growth.options)
    return Entry(rules, Checkpoint(store.finished_checkpoint(stage.parent_key)), resumed=False)


def fill(engine: StageEngine, entry: Entry, steps: dict[str, int], seed: int) -> None:
    """Compute and set every slice this worker's optimizer holds, then bring the model's weights up to date."""
    rules = {rule.target: rule for rule in entry.rules}
    read = entry.source.read if entry.source else _nothing_to_read
    for part in zero.partitions(engine.deepspeed):
        for state in STATES:
            values = grown_slice(rules[part.parameter], state, part.start, part.stop, read, seed)
            part.tensors[state].copy_(torch.tensor(values))
    zero.set_steps(engine.deepspeed, steps)
    zero.refresh(engine.deepspeed)


def write_own_shard(engine: StageEngine, folder: Folder) -> tuple[Shard, dict[str, int]]:
    """Write this worker's part of all state; returns its shard's entry and the step counts it knows."""
    pieces = []
    for part in zero.partitions(engine.deepspeed):
        first, last = part.saves
        if last > first:
            for state in STATES:
                values = part.tensors[state][first:last].cpu().numpy()
                pieces.append((part.parameter, state, part.start + first, values))
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
        optimizer={**training.optimizer.model_dump(), **layout},
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
