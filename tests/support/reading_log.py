"""Writes down every sequence that real workers train on, as the model gets them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from raystage.config.schedule import Schedule
from raystage.planning.build import make_plan
from raystage.train.engine import StageEngine
from raystage.train.reading.micro_batches import MicroBatch, StepBatches
from raystage.train.worker import Job, run_job


def read_by(schedule: Schedule, store: str, names: list[str]) -> list[list[list[list[int]]]]:
    """On one of the workers: the stages of these names are trained. Returns, for each stage and each step, the
    sequences that this worker trained on, as the model got them."""
    steps: list[list[list[int]]] = []
    train_step = StageEngine.train_step

    def logged(micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        for batch, weight in micro_batches:
            if weight:
                steps[-1].extend(batch["tokens"].tolist())
            yield batch, weight

    def logged_step(engine: StageEngine, batches: StepBatches, *arguments: Any) -> Any:
        steps.append([])
        return train_step(engine, replace(batches, micro_batches=logged(batches.micro_batches)), *arguments)

    StageEngine.train_step = logged_step
    found = []
    try:
        for stage in make_plan(schedule).staged.stages:
            if stage.name in names:
                steps = []
                run_job(Job((stage,), store), lambda *message: None)
                found.append(steps)
    finally:
        StageEngine.train_step = train_step
    return found


def place_of(sequence: list[int], stream: np.ndarray) -> int | None:
    """Where a sequence stands in a stream of tokens; None where it does not."""
    found = np.asarray(stream).astype("<u2").tobytes().find(np.array(sequence, dtype="<u2").tobytes())
    return None if found < 0 else found // 2
