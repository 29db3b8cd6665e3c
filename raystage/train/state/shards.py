"""What a checkpoint is made of: each worker's shard, cut into fragments, and the manifest of all shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from deepspeed import comm

from raystage.files.filesystem import Folder
from raystage.growth.counts import HeadStarts, as_runs, unsettled
from raystage.models.shape import stored
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.contents import Shards, Span
from raystage.storage.shards.writing import FRAGMENT_NUMEL, WrittenShard, shard_name, stream_shard
from raystage.train import partitions
from raystage.train.engine import StageEngine
from raystage.train.partitions import Partition


@dataclass(frozen=True)
class Fragment:
    """Something to be written: the slice `span` of a state. values: flat float32, live or a copy."""

    span: Span
    values: torch.Tensor


def fragments_of(parts: Iterable[Partition]) -> list[Fragment]:
    """What this worker saves of its partitions, in pieces and in the order of a shard. The values are live views."""
    found = [
        Fragment((part.parameter, state, part.start + first, part.start + last), part.tensors[state][first:last])
        for part in parts
        for state in part.tensors
        for first, last in in_pieces(*part.saves)
    ]
    return sorted(found, key=lambda one: one.span)


def in_pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in pieces of at most the length of a fragment."""
    for first in range(start, stop, FRAGMENT_NUMEL):
        yield first, min(first + FRAGMENT_NUMEL, stop)


def write_fragments(fragments: list[Fragment], folder: Folder, name: str) -> WrittenShard:
    """Write a shard. Values on a GPU are copied to the host one fragment at a time."""
    return stream_shard(
        folder, name, (one.span for one in fragments), lambda: (one.values.cpu().numpy() for one in fragments)
    )


def write_own_shard(engine: StageEngine, folder: Folder) -> tuple[WrittenShard, dict[str, int]]:
    """Write this worker's part of all state. Returns its shard and the step counts it knows."""
    name = shard_name(engine.rank, engine.world)
    parts = [*partitions.partitions(engine.deepspeed), *engine.buffers.partitions()]
    shard = write_fragments(fragments_of(parts), folder, name)
    return shard, partitions.get_steps(engine.deepspeed)


def held_shapes(stage: StagePlan, is_delivered: bool = False) -> dict[str, tuple[int, ...]]:
    """The parameters of a stage's checkpoint, with their shapes. is_delivered: as of `make_manifest`."""
    if stage.adapter and not is_delivered:
        return dict(stage.adapter.trained(stage.shape))
    return {one.name: one.shape for one in stored(stage.shape)}


def make_manifest(
    stage: StagePlan,
    shards: Shards,
    steps: dict[str, int],
    progress: Progress,
    head_starts: Mapping[str, HeadStarts] = MappingProxyType({}),
    is_delivered: bool = False,
) -> Manifest:
    """The manifest of a stage's checkpoint.

    steps: the optimizer steps of every parameter. head_starts: of the elements that growth made later. is_delivered:
    whether it is a model made at the end of the stage. Others of a stage with an adapter hold only what is trained.
    """
    training = stage.training
    adapter = None if is_delivered else stage.adapter
    held = held_shapes(stage, is_delivered)
    # The first window that is not begun yet.
    window = max(-(-progress.position // stage.window), stage.reading.first if stage.reading else 0)
    runs = {name: as_runs(_needed(found, stage, steps[name], progress.position)) for name, found in head_starts.items()}
    layout = {"num_workers": comm.get_world_size(), "zero_stage": training.zero_stage, "precision": training.precision}
    return Manifest(
        model=stage.shape,
        parameters=tuple(
            ParameterEntry(name, shape, "float32", steps.get(name, 0), runs.get(name, ()))
            for name, shape in held.items()
        ),
        shards=shards,
        stage_key=stage.key,
        step=progress.steps,
        tokens=progress.position,
        data_cursor={
            stage.unit: progress.position,
            "seed": stage.seed,
            "fingerprint": stage.data.fingerprint,
            "tokenizer": stage.data.tokenizer,
            "tokenizer_fingerprint": stage.data.tokenizer_fingerprint,
            **({"end_token": stage.data.end_token} if stage.data.end_token else {}),
            **({"chat_template": stage.data.chat_template} if stage.data.chat_template else {}),
            **_classes(stage),
            **({"sources": stage.reading.cursors_at(window)} if stage.reading else {}),
            "trained_on": stage.trained_on.to_json(),
        },
        rng={"seed": stage.seed, "scheme": "a seed for each step and worker"},
        optimizer={**training.optimizer.used(), **layout},
        progress=progress.to_json(),
        adapter=adapter.facts() if adapter else None,
    )


def _classes(stage: StagePlan) -> dict[str, object]:
    """The names of the classes that the model tells apart."""
    samples = stage.data.samples if stage.shape.head == "classes" else None
    return {"classes": list(samples.classes)} if samples else {}


def _needed(starts: HeadStarts, stage: StagePlan, step: int, position: int) -> HeadStarts:
    """The head starts of a parameter that training from this checkpoint needs: all of them while new elements have a
    learning rate of their own."""
    rewarm, betas = stage.growth and stage.growth.rewarm, stage.training.optimizer.used().get("betas", ())
    if betas and rewarm and not rewarm.is_over(position - stage.start):
        return starts
    return unsettled(starts, step, betas)
