"""A worker's peak memory while it enters a stage and saves it, as Linux counts resident memory."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import torch
import xxhash
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.files.filesystem import open_folder
from raystage.growth.apply import grown_steps
from raystage.growth.rules import growth_map, initial_map
from raystage.models import build as model
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.shards.writing import placed
from raystage.train import collectives, partitions
from raystage.train.engine import StageEngine
from raystage.train.entry import Entry
from raystage.train.entry import fill as fill_engine
from raystage.train.state.shards import make_manifest, write_own_shard


@dataclass(frozen=True)
class Peaks:
    """Bytes of resident memory on one worker, above what it held before each.

    weights: the checksum of the model's weights where a worker holds them whole; empty where the worker's own part of
    them is not what its optimizer holds.
    """

    build: int
    fill: int
    save: int
    weights: str


class Watch:
    """The peak of resident memory above what there was when the watch began."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")

    def peak(self) -> int:
        return _resident("VmHWM") - self._before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def watched(first: StagePlan, targets: list[tuple[StagePlan, str, int]], store: str) -> list[Peaks]:
    """On one worker: `first` built from nothing and saved, then loaded into each target.

    targets: a stage, the operator that grows `first` into it, and the ZeRO stage. What the first round brings with it,
    code and allocators' pools, would count as memory of the stage; so there is a round before that nobody counts, of
    the last target under the first one's ZeRO stage.
    """
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    warm_up = (*targets[-1][:2], targets[0][2])
    _round(_under(first, warm_up[2]), Entry(initial_map(first.shape), None, resumed=False), f"{store}/first")
    opened = open_folder(f"{store}/first").unmapped
    peaks = []
    for number, (stage, operator, zero_stage) in enumerate([warm_up, *targets]):
        rules = growth_map(first.shape, stage.shape, operator, "grow")
        entry = Entry(rules, Checkpoint(opened), resumed=False)
        peaks.append(_round(_under(stage, zero_stage), entry, f"{store}/grown-{number}"))
    return peaks[1:]


def built(warm_up: StagePlan, stage: StagePlan) -> tuple[int, int]:
    """On one worker: bytes at the peak of building `stage`'s engine, and of building its whole model by itself.

    `warm_up` is built before, uncounted: what the first engine brings with it would count as memory of the stage.
    """
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    peaks = []
    for one in (warm_up, stage):
        watch = Watch()
        engine = StageEngine(one, grown_steps(initial_map(one.shape), {}))
        peaks.append(watch.peak())
        engine.destroy()
        del engine
    watch = Watch()
    whole = model.build(stage.shape)
    peaks.append(watch.peak())
    del whole
    return peaks[1], peaks[2]


def _under(stage: StagePlan, zero_stage: int) -> StagePlan:
    return replace(stage, training=stage.training.model_copy(update={"zero_stage": zero_stage}), growth=None)


def _round(stage: StagePlan, entry: Entry, folder: str) -> Peaks:
    steps = grown_steps(entry.rules, entry.source.steps if entry.source else {})
    watch = Watch()
    engine = StageEngine(stage, steps)
    build = watch.peak()
    watch = Watch()
    fill_engine(engine, entry, steps, stage.seed)
    fill = watch.peak()
    weights = "" if stage.training.zero_stage == 3 else _checksum(engine)
    watch = Watch()
    shard, known = write_own_shard(engine, open_folder(folder))
    save = watch.peak()
    shards, merged = collectives.all_gather_objects(shard), {}
    for one in collectives.all_gather_objects(known):
        merged |= one
    if comm.get_rank() == 0:
        checkpoint.commit(open_folder(folder), make_manifest(stage, placed(shards), merged, Progress.at_start(stage)))
    comm.barrier()
    if entry.source:
        entry.source.close()
    engine.destroy()
    return Peaks(build, fill, save, weights)


def _checksum(engine: StageEngine) -> str:
    """Of the weights that the model computes with, in fp32."""
    weights = {name: one.detach().view(-1) for name, one in engine.deepspeed.module.named_parameters()}
    for part in partitions.partitions(engine.deepspeed):
        if not torch.equal(weights[part.parameter][part.start : part.stop], part.tensors["fp32"]):
            return ""
    whole = xxhash.xxh3_128()
    for values in weights.values():
        whole.update(values.numpy())
    return whole.hexdigest()
