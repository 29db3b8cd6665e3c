"""The losses that the text of a stage is sorted by: kept beside the stage whose model gives them, else computed.

Scoring is done before the engine of the stage is built, so that the model that scores has the memory for itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from raystage.data.order.curriculum import LOSS_KEY, digest_of_scores, text_of
from raystage.data.order.losses import parts_of
from raystage.data.plan import DataPlan
from raystage.data.tokens import Streams, open_streams
from raystage.errors import CheckpointError, InputError
from raystage.plans.initial import TeacherPlan, scoring_flops
from raystage.plans.stage import StagePlan
from raystage.results.scoring import ScoringRecord, check_same_order
from raystage.storage.scores import KeptScores, ScoredPart
from raystage.storage.store import Store
from raystage.train.collectives import all_gather_objects, broadcast_object
from raystage.train.devices import EnergyCount, open_meter
from raystage.train.heartbeat import Heartbeat
from raystage.train.scoring.documents import document_losses
from raystage.train.state.opening import finished_checkpoint, opened_by_all
from raystage.train.teacher import frozen_model
from raystage.train.texts import sources_read
from raystage.train.timing.together import done_together


@dataclass(frozen=True)
class Losses:
    """by_name: by its name in `Reading` the loss of each document of a text. record: None where no text is sorted by
    losses."""

    by_name: Mapping[str, np.ndarray] = field(default_factory=dict)
    record: ScoringRecord | None = None


def find_losses(stage: StagePlan, store: Store, heartbeat: Heartbeat) -> Losses:
    """Of all texts of the stage that are sorted by losses. Collective: workers score what is missing together.

    Raises InputError where the model gives a loss that is no number, CheckpointError where its weights are not whole or
    where workers read other losses than each other.
    """
    wanted = {
        name: (data, stage.paces[name][0].curriculum.scorer)
        for name, data in (sources_read(stage) if stage.scorers else {}).items()
        if name in stage.paces and stage.paces[name][0].curriculum.scorer
    }
    if not wanted:
        return Losses()
    models = {one.key: one for one in stage.scorers}
    found = {name: _losses(models[scorer.key], data, store, heartbeat) for name, (data, scorer) in wanted.items()}
    digests = {name: digest_of_scores(one.losses) for name, one in found.items()}
    if any(others != digests for others in all_gather_objects(digests)):
        problem = "workers read other losses of documents than each other, which another run writes at this time"
        raise CheckpointError(f"{store.folder.uri}: {problem}; expected to find the same when this run starts again")
    own, names = {part.data.content for part in stage.scored}, [name for name, _ in stage.reading.shares]
    scored = [found[name] for name in names if text_of(name) in own]
    before = store.record(stage.parent_key).scoring if stage.parent_key else None
    check_same_order(before, ScoringRecord(digests=digests), f"the stage before {stage.name}")
    digests = {**(before.digests if before else {}), **digests}
    record = _record(stage.scorer, scored, digests) if scored else ScoringRecord(digests=digests)
    return Losses({name: one.losses for name, one in found.items()}, record)


@dataclass(frozen=True)
class _Scored:
    """energy_joules: None where not all of it was measured now."""

    losses: np.ndarray
    tokens: int
    seconds: float
    energy_joules: float | None


def _record(model: TeacherPlan, scored: list[_Scored], digests: dict[str, str]) -> ScoringRecord:
    joules, tokens = [one.energy_joules for one in scored], sum(one.tokens for one in scored)
    return ScoringRecord(
        model=model.name,
        documents=sum(len(one.losses) for one in scored),
        tokens=tokens,
        flops=scoring_flops(model, tokens),
        seconds=sum(one.seconds for one in scored),
        energy_joules=None if None in joules else sum(joules),
        digests=digests,
    )


def _losses(model: TeacherPlan, data: DataPlan, store: Store, heartbeat: Heartbeat) -> _Scored:
    """Of the documents of a text, with what it takes to compute them, whoever has done that."""
    heartbeat.does("scoring documents")
    streams, energy = done_together(lambda: _open(model, data), heartbeat), _energy()
    parts = parts_of(streams.train_documents)
    kept = KeptScores(store, model.key, data.content, [last - first for first, last in parts])
    looked_up = kept.missing() if comm.get_rank() == 0 else None
    missing = broadcast_object(looked_up)
    if missing:
        _score(model, streams, kept, parts, missing, store, heartbeat)
        comm.barrier()
    joules = energy.since_last()
    found = [kept.read(place) for place in range(len(parts))]
    if None in found:
        raise CheckpointError(f"{kept.folder.uri}: the losses of documents were removed while they were read")
    return _Scored(
        losses=np.concatenate([one.losses for one in found]),
        tokens=int(streams.train_documents.begins[-1]),
        seconds=sum(one.seconds for one in found) / comm.get_world_size(),
        energy_joules=joules if len(missing) == len(parts) else None,
    )


def _open(model: TeacherPlan, data: DataPlan) -> Streams:
    try:
        return open_streams(data, model.shape.vocab_size)
    except InputError as error:
        if error.key != "model.vocab_size":  # the text is not as planned
            raise
        raise InputError(f"{model.name!r}, its vocabulary: {error.problem}", key=LOSS_KEY) from None


def _score(
    model: TeacherPlan,
    streams: Streams,
    kept: KeptScores,
    parts: list[tuple[int, int]],
    missing: list[int],
    store: Store,
    heartbeat: Heartbeat,
) -> None:
    """Score this worker's share of the missing parts, and keep each."""
    device = torch.device(get_accelerator().current_device_name())
    with closing(opened_by_all(finished_checkpoint(store, model.key))) as source:
        network = frozen_model(model.shape, source, torch.float32).to(device)
    for place in missing[comm.get_rank() :: comm.get_world_size()]:
        began = time.monotonic()
        losses = document_losses(
            network, model.shape, streams.train, streams.train_documents, parts[place], device, heartbeat.goes_on
        )
        if not np.isfinite(losses).all():
            problem = f"found {model.name!r}, which gives a document the loss {losses[~np.isfinite(losses)][0]}"
            raise InputError(f"{problem}; expected a model whose loss is a number", key=LOSS_KEY)
        kept.write(place, ScoredPart(losses, time.monotonic() - began))
    del network
    get_accelerator().empty_cache()  # for the model that is trained


def _energy() -> EnergyCount:
    meter, device = open_meter(), torch.device(get_accelerator().current_device_name())

    def total(own: float) -> float:
        value = torch.tensor(own, dtype=torch.float64, device=device)
        comm.all_reduce(value)
        return value.item()

    return EnergyCount(meter, all_gather_objects(meter and meter.name), comm.get_rank(), total)
