"""Writes down every sequence that real workers train on, as the model gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from raystage.config.schedule import Schedule
from raystage.data.tokens import MixedWindows, TokenWindows
from raystage.planning.build import make_plan
from raystage.train.engine import StageEngine
from raystage.train.worker import Job, run_job


def read_by(schedule: Schedule, store: str, names: list[str]) -> list[list[list[list[int]]]]:
    """On one of the workers: the stages of these names are trained. Returns, for each stage and each step, the
    sequences that this worker trained on, as the model got them."""
    steps: list[list[list[int]]] = []
    shares, train_step = StageEngine.shares, StageEngine.train_step

    def logged_shares(engine: StageEngine, reader: Any, *place: Any) -> Iterator[Any]:
        for batch, weight in shares(engine, reader, *place):
            if weight and isinstance(reader, MixedWindows | TokenWindows):
                steps[-1].extend(batch["tokens"].tolist())
            yield batch, weight

    def logged_step(*arguments: Any) -> Any:
        steps.append([])
        return train_step(*arguments)

    StageEngine.shares, StageEngine.train_step = logged_shares, logged_step
    found = []
    try:
        for stage in make_plan(schedule).staged.stages:
            if stage.name in names:
                steps = []
                run_job(Job((stage,), store), lambda *message: None)
                found.append(steps)
    finally:
        StageEngine.shares, StageEngine.train_step = shares, train_step
    return found


def place_of(sequence: list[int], stream: np.ndarray) -> int | None:
    """Where a sequence stands in a stream of tokens; None where it does not."""
    found = np.asarray(stream).astype("<u2").tobytes().find(np.array(sequence, dtype="<u2").tobytes())
    return None if found < 0 else found // 2
