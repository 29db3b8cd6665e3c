"""From one stage's shards into the next one's workers, and back onto the disk.

Entering a stage finds what there is to start from and fills this worker's partitions through a growth
map; leaving it writes them. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from deepspeed import comm

from raystage.errors import CheckpointError
from raystage.files.filesystem import Folder, open_folder
from raystage.growth.apply import Grown
from raystage.growth.counts import HeadStarts, as_runs, grown_head_starts, unsettled
from raystage.growth.learned import Fitted
from raystage.growth.rules import GrowthMap, growth_map, initial_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.models.hf_folder import open_model
from raystage.models.shape import parameters
from raystage.plan.initial import InitPlan, check_same
from raystage.plan.keys import key_at, trunk_key
from raystage.plan.plan import UNCHANGED, StagePlan
from raystage.results.record import Progress, StageRecord
from raystage.storage import checkpoint
from raystage.storage.checkpoint import FRAGMENT_NUMEL, Checkpoint, Manifest, ParameterEntry, Shard, Span
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store, tokens_of
from raystage.train import partitions
from raystage.train.collectives import broadcast_object
from raystage.train.engine import StageEngine
from raystage.train.partitions import Partition

# (parameter, state, start, into) -> nothing: sets `into`, flat float32, to the slice from `start` on.
ReadInto = Callable[[str, str, int, np.ndarray], None]


@dataclass(frozen=True)
class Entry:
    """How a stage is entered: from which checkpoint, through which map.

    resumed: from within the stage. prefix: then the stage that this one is a longer version of, if it is not its own.
    """

    rules: GrowthMap
    source: Checkpoint | FolderWeights | None
    resumed: bool
    prefix: StageRecord | None = None


def find_entry(stage: StagePlan, store: Store) -> Entry:
    """From the furthest checkpoint within the stage, its own or that of a shorter version of it; else through the
    growth map from its parent's, else from nothing.

    Where another kind of optimizer wrote the parent's, its state is of no use: weights alone carry over.
    """
    within, prefix = broadcast_object(_furthest(stage, store))
    if within is not None:
        same = growth_map(stage.shape, stage.shape, "identity", "grow")
        return Entry(same, Checkpoint(within.unmapped), resumed=True, prefix=prefix)
    if stage.init is not None:
        return initial_entry(stage, stage.init)
    if stage.parent_key is None:
        return Entry(initial_map(stage.shape), None, resumed=False)
    source, growth = Checkpoint(store.finished_checkpoint(stage.parent_key).unmapped), stage.growth or UNCHANGED
    policy = growth.optimizer_state if source.has(stage.training.optimizer.moments) else "reset"
    if is_learned(growth.operator):
        return Entry(fitted_map(stage.shape), source, resumed=False)
    rules = growth_map(stage.parent_shape, stage.shape, growth.operator, policy, growth.options)
    return Entry(rules, source, resumed=False)


def _furthest(stage: StagePlan, store: Store) -> tuple[Folder | None, StageRecord | None]:
    """The furthest checkpoint to go on from within the stage, and whose it is, if not the stage's own."""
    own = store.latest_checkpoint(stage.key)
    done = tokens_of(own.name) - stage.start_tokens if own else 0
    prefix = find_prefix(stage, store, stage.step_schedule.steps_for(done))
    if prefix is None:
        return own, None
    return store.stage_folder(prefix.key) / prefix.checkpoint, prefix


def find_prefix(stage: StagePlan, store: Store, beyond_steps: int = 0) -> StageRecord | None:
    """The longest finished stage that did what this one does, only less of it, and more than `beyond_steps`."""
    for steps, key in store.trunk(trunk_key(stage)):
        if beyond_steps < steps < stage.steps and key_at(stage, steps) == key:
            record = store.readable_record(key)
            if record is not None:
                return record
    return None


def initial_entry(stage: StagePlan, init: InitPlan) -> Entry:
    """From what the schedule's `init` names. Raises InputError where this worker does not find it as it was planned."""
    folder, growth = open_folder(check_same(init)), stage.growth or UNCHANGED
    source = Checkpoint(folder.unmapped) if init.is_checkpoint else FolderWeights(open_model(folder))
    keeps = init.keeps_optimizer_state and source.has(stage.training.optimizer.moments)
    policy = growth.optimizer_state if keeps else "reset"
    return Entry(growth_map(init.shape, stage.shape, growth.operator, policy, growth.options), source, resumed=False)


def fill(engine: StageEngine, entry: Entry, steps: dict[str, int], seed: int, fitted: Fitted | None = None) -> None:
    """Compute and set every slice this worker's optimizer holds, then bring the model's weights up to date.

    fitted: the model whose weights were fitted, where no rule tells them.
    """
    grown = fitted or Grown(entry.rules, entry.source.read if entry.source else _nothing_to_read, seed)
    read_into = entry.source.read_into if isinstance(entry.source, Checkpoint) and fitted is None else None
    fill_partitions(partitions.partitions(engine.deepspeed), grown, read_into)
    partitions.set_steps(engine.deepspeed, steps)
    partitions.refresh(engine.deepspeed)
    done = entry.source.manifest.step - engine.stage.start_steps if entry.resumed else 0
    engine.count_new_apart(_head_starts(engine, entry, steps, done))
    engine.open_mask(done)


def _head_starts(engine: StageEngine, entry: Entry, steps: dict[str, int], done: int) -> dict[str, HeadStarts]:
    """Of what growth made new among the old, now or earlier.

    A checkpoint from within a stage has none where they make no difference any more, and where it was written by a
    version that did not keep them: then those of the stage's own growth, `done` steps ago, follow from it.
    """
    if not isinstance(entry.source, Checkpoint):
        return {}
    found = grown_head_starts(entry.rules, entry.source.head_starts, entry.source.steps)
    if entry.resumed and not found:
        for rule in engine.growth:
            found |= grown_head_starts((rule,), {}, dict.fromkeys(rule.sources, steps[rule.target] - done))
    return found


def fill_partitions(parts: Iterable[Partition], grown: Grown | Fitted, read_into: ReadInto | None = None) -> None:
    """Set every slice that the partitions hold, in place. Beside them a worker holds a fragment's worth at a time.

    read_into: reads what is a copy of the source straight to its place; then `grown` is no `Fitted`.
    """
    for part in parts:
        for state, held in part.tensors.items():
            source = grown.copy_of(part.parameter, state) if read_into and held.device.type == "cpu" else None
            for first, last in _pieces(0, part.stop - part.start):
                if source is not None:
                    read_into(source, state, part.start + first, held[first:last].detach().numpy())
                    continue
                values = grown.slice(part.parameter, state, part.start + first, part.start + last)
                held[first:last].copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])))


@dataclass(frozen=True)
class Held:
    """A fragment to be written: the slice `span` of a state, and its flat float32 values, live or a copy of them."""

    span: Span
    values: torch.Tensor


def held_by(parts: Iterable[Partition]) -> list[Held]:
    """What this worker saves of its partitions, cut into fragments: live views."""
    return [
        Held((part.parameter, state, part.start + first, part.start + last), part.tensors[state][first:last])
        for part in parts
        for state in part.tensors
        for first, last in _pieces(*part.saves)
    ]


def write_own_shard(engine: StageEngine, folder: Folder) -> tuple[Shard, dict[str, int]]:
    """Write this worker's part of all state; returns its shard's entry and the step counts it knows."""
    name = checkpoint.shard_name(engine.rank, engine.world)
    shard = write_partitions(partitions.partitions(engine.deepspeed), folder, name)
    return shard, partitions.get_steps(engine.deepspeed)


def write_partitions(parts: Iterable[Partition], folder: Folder, name: str) -> Shard:
    """Write what this worker saves of its partitions."""
    return write_held(held_by(parts), folder, name)


def write_held(held: list[Held], folder: Folder, name: str) -> Shard:
    """Write a shard. Of what is on a GPU one fragment at a time comes to the host."""
    return checkpoint.stream_shard(folder, name, [one.span for one in held], (one.values.cpu().numpy() for one in held))


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces as long as a fragment may be."""
    for first in range(start, stop, FRAGMENT_NUMEL):
        yield first, min(first + FRAGMENT_NUMEL, stop)


def make_manifest(
    stage: StagePlan,
    shards: tuple[Shard, ...],
    steps: dict[str, int],
    progress: Progress,
    head_starts: Mapping[str, HeadStarts] = MappingProxyType({}),
) -> Manifest:
    """The manifest of a stage's checkpoint; `steps` are the optimizer steps of every parameter, `head_starts` those
    of the elements that came later."""
    training = stage.training
    runs = {name: as_runs(_kept(found, stage, steps[name], progress.tokens)) for name, found in head_starts.items()}
    layout = {"num_workers": comm.get_world_size(), "zero_stage": training.zero_stage, "precision": training.precision}
    return Manifest(
        model=stage.shape,
        parameters=tuple(
            ParameterEntry(one.name, one.shape, "float32", steps[one.name], runs.get(one.name, ()))
            for one in parameters(stage.shape)
        ),
        shards=shards,
        stage_key=stage.key,
        step=progress.steps,
        tokens=progress.tokens,
        data_cursor={
            "tokens": progress.tokens,
            "seed": stage.seed,
            "fingerprint": stage.data.fingerprint,
            "tokenizer": stage.data.tokenizer,
            "tokenizer_fingerprint": stage.data.tokenizer_fingerprint,
            **({"end_token": stage.data.end_token} if stage.data.end_token else {}),
            "trained_on": stage.trained_on.to_json(),
        },
        rng={"seed": stage.seed, "scheme": "a seed for each step and worker"},
        optimizer={**training.optimizer.used(), **layout},
        progress=progress.to_json(),
    )


def _kept(starts: HeadStarts, stage: StagePlan, step: int, tokens: int) -> HeadStarts:
    """Of a parameter's head starts those that whoever goes on needs: all as long as what is new has another rate."""
    rewarm, betas = stage.growth and stage.growth.rewarm, stage.training.optimizer.used().get("betas", ())
    if betas and rewarm and not rewarm.is_over(tokens - stage.start_tokens):
        return starts
    return unsettled(starts, step, betas)


def _nothing_to_read(parameter: str, state: str, start: int, stop: int) -> np.ndarray:
    raise CheckpointError(f"{state} of {parameter} has no source to be read from")
