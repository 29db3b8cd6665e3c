"""Killed writers (see `killed_writer`) that save in the background: raystage's own Saver on gloo process groups.

A writer begins a checkpoint and goes on to the next; who is killed dies in the middle of what its thread does.
"""

from __future__ import annotations

import datetime
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch

import killed_writer
from factories import make_schedule
from killed_writer import KEPT, KEY, NUMEL, PARAMETER, SHAPE, STATES, values
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import Progress
from raystage.storage.checkpoint import read_manifest
from raystage.storage.store import Store
from raystage.train.partitions import Partition
from raystage.train.saving import Counts, Saver

PATIENCE = datetime.timedelta(seconds=30)


def make_stage() -> StagePlan:
    with tempfile.TemporaryDirectory() as folder:
        stage = make_plan(make_schedule(Path(folder), training={"checkpoint": {"keep_last": KEPT}})).staged.stages[0]
    return replace(stage, key=KEY, shape=SHAPE)


STAGE = make_stage()


def save_checkpoints(store: Store, rank: int, request: dict[str, Any], peer: socket.socket | None) -> Iterator[int]:
    """Go on from the furthest whole checkpoint; yields 0 when it begins, and the tokens of each when it
    is known to be finished."""
    deepspeed.init_distributed(
        "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=PATIENCE,
        init_method=f"file://{store.folder.path}-{request['attempt']}",
        rank=rank,
        world_size=request["writers"],
    )
    said: list[str] = []
    with Saver(store, request["attempt"], lambda kind, key, name: said.append(name), in_background=True) as saver:
        yield 0
        latest = store.latest_checkpoint(KEY)
        done = read_manifest(latest).tokens if latest else 0
        for tokens in range(done + 1, done + 1 + request["checkpoints"]):
            saver.wait()  # as `begin` does first: here, so that it is said before the next one can be finished
            yield from _numbers(said)
            saver.begin(STAGE, [_part(tokens, rank, request["writers"])], Counts(_steps(tokens), {}), _standing(tokens))
        saver.wait()
        yield from _numbers(said)


def _part(tokens: int, rank: int, writers: int) -> Partition:
    start, stop = (NUMEL * edge // writers for edge in (rank, rank + 1))
    tensors = {state: torch.from_numpy(values(tokens, state)[start:stop]) for state in STATES}
    return Partition(PARAMETER, start, stop, tensors, (0, stop - start), tensors["fp32"])


def _steps(tokens: int) -> dict[str, int]:
    return {one.name: tokens for one in parameters(SHAPE)}


def _standing(tokens: int) -> Any:
    return lambda: Progress(tokens, tokens, 0)


def _numbers(said: list[str]) -> Iterator[int]:
    while said:
        yield int(said.pop(0).partition("-")[0])


if __name__ == "__main__":
    killed_writer.main(save_checkpoints)
