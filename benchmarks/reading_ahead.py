"""How long a step waits for its data: read ahead in a thread, against read when the step asks for it.

    python benchmarks/reading_ahead.py [--steps 200] [--repeats 3]

One worker without Ray, on a CPU. `text` is windows of tokens, which are memory-mapped and cheap; `images` are noised
images, each with as many draws as pixels. The two ways take turns; their losses must be equal to the last bit, or this
ends with an error.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import numpy as np
import torch
from own_runs import records, step_seconds, write_schedule, write_text

from raystage.plans.stage import StagePlan
from raystage.storage.jobs import Job
from raystage.train import stage_runner
from raystage.train.reading.ahead import ReadAhead
from raystage.train.reading.micro_batches import MicroBatch, StepBatches
from raystage.train.worker import run_job

TEXT = {"family": "llama", "hidden_size": 128, "num_heads": 4, "ffn_size": 384, "num_layers": 4, "context_length": 128}
IMAGES = {"family": "vit", "patch_size": 4, "hidden_size": 64, "num_heads": 4, "ffn_size": 128,
          "num_layers": 2}  # fmt: skip


class ReadAtOnce:
    """In place of `ReadAhead`: everything is read when it is asked for."""

    def __init__(self, steps: Iterable[StepBatches]) -> None:
        self.waited_seconds, self._steps = 0.0, iter(steps)

    def next_step(self) -> StepBatches:
        step = self._timed(self._steps)
        return StepBatches(step.amount, step.targets, step.number, self._each(iter(step.micro_batches), step.number))

    def __enter__(self) -> ReadAtOnce:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def _each(self, micro_batches: Iterator[MicroBatch], number: int) -> Iterator[MicroBatch]:
        for _ in range(number):
            yield self._timed(micro_batches)

    def _timed(self, source: Iterator[Any]) -> Any:
        began = time.monotonic()
        found = next(source)
        self.waited_seconds += time.monotonic() - began
        return found


def write_images(folder: Path) -> Path:
    drawn = np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    np.savez(folder / "images.npz", images=drawn)
    return folder / "images.npz"


def stages_of(folder: Path, steps: int) -> dict[str, StagePlan]:
    write_text(folder)
    usual = {"workers": 1, "zero_stage": 1, "optimizer": {"lr": 1e-3}, "lr_schedule": {"kind": "constant", "warmup": 0}}
    only = {"name": "only", "until": {"steps": steps}}
    every = {"every": steps * 1024}
    text = {
        "model": TEXT, "stages": [only],
        "training": {**usual, "global_batch_tokens": 1024, "micro_batch_size": 4, "checkpoint": every,
                     "evaluate": {**every, "tokens": 4096}},
    }  # fmt: skip
    every = {"every": steps * 32}
    images = {
        "model": IMAGES, "stages": [only], "objective": {"name": "denoising", "noise": 0.3},
        "data": {"source": "arrays", "path": str(write_images(folder))},
        "training": {**usual, "global_batch_samples": 32, "micro_batch_size": 16, "checkpoint": every,
                     "evaluate": {**every, "samples": 64}},
    }  # fmt: skip
    return {name: write_schedule(folder, name, content)[1][0] for name, content in (("text", text), ("images", images))}


def one_run(stage: StagePlan, store: Path, way: type) -> tuple[float, float, list[float]]:
    """Seconds of a step, seconds that it waited for data, and the losses of the curve."""
    made: list[Any] = []
    stage_runner.ReadAhead = lambda steps: made.append(way(steps)) or made[-1]
    try:
        run_job(Job((stage,), str(store)), lambda *message: None)
    finally:
        stage_runner.ReadAhead = ReadAhead
    (record,) = records([stage], store)
    return step_seconds(record.train, stage), made[0].waited_seconds / stage.steps, [one.loss for one in record.train]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        print(f"{asked.steps} steps; load average {os.getloadavg()[0]:.1f}\n")
        print("| data | step at once, ms | of it waiting | step ahead, ms | of it waiting | ahead / at once |")
        print("|---|---|---|---|---|---|", flush=True)
        for what, stage in stages_of(folder, asked.steps).items():
            pairs = []
            for number in range(asked.repeats):
                at_once = one_run(stage, folder / f"{what}-{number}-at-once", ReadAtOnce)
                ahead = one_run(stage, folder / f"{what}-{number}-ahead", ReadAhead)
                if at_once[2] != ahead[2]:
                    raise SystemExit(f"{what}: the losses differ")
                pairs.append((*at_once[:2], *ahead[:2], ahead[0] / at_once[0]))
            *seconds, ratio = (statistics.median(column) for column in zip(*pairs, strict=True))
            cells = [f"{1000 * one:.2f}" for one in seconds]
            print(f"| {what} | {' | '.join(cells)} | {ratio:.3f} |", flush=True)
        os._exit(0)  # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold


if __name__ == "__main__":
    main()
