"""What a step costs under raystage: `raystage run`, against a bare loop of DeepSpeed on as many processes.

    python benchmarks/step_overhead.py [--workers 2] [--steps 300] [--repeats 3] [--hidden 128] [--layers 4] [--profile]

Both train the same model from the same weights on the same batches, with one evaluation before and one at the end, and
one checkpoint at the end. They take turns. A step's seconds are those of the steps after the first fifth, without
evaluation; the losses must agree, or this ends with an error. A third column is raystage's worker without Ray: what
lies between it and the first is the price of heartbeat, messages and Ray's processes. --profile shows where the
worker's own time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import statistics
import tempfile
import warnings
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch.multiprocessing as multiprocessing
from bare_loops import DEEPSPEED, run, task_of
from own_runs import records, step_seconds, train, write_schedule, write_text

from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord
from raystage.storage.jobs import Job

# The largest difference between two losses of one step: the sums differ in their order alone.
SAME_LOSS = 2e-3
_ROWS = 25


def written(folder: Path, workers: int, steps: int, hidden: int, layers: int) -> tuple[Path, StagePlan]:
    """A schedule of one stage, evaluated and saved at its end alone."""
    sequences, length = 8, 128
    every = {"every": steps * sequences * length}
    content = {
        "model": {"hidden_size": hidden, "num_heads": 4, "ffn_size": 3 * hidden, "context_length": length},
        "training": {
            "workers": workers, "zero_stage": 1, "global_batch_tokens": sequences * length, "micro_batch_size": 4,
            "lr_schedule": {"kind": "constant", "warmup": 0}, "optimizer": {"lr": 1e-3},
            "evaluate": {**every, "tokens": 16_384}, "checkpoint": every,
        },
        "stages": [{"name": "only", "model": {"num_layers": layers}, "until": {"steps": steps}}],
    }  # fmt: skip
    write_text(folder)
    path, (stage,) = write_schedule(folder, "overhead", content)
    return path, stage


def without_ray(stage: StagePlan, store: Path, profile: bool = False) -> StageRecord:
    workers = stage.training.workers.most
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, args=(workers, folder, Job((stage,), str(store)), profile), nprocs=workers)
    return records([stage], store)[0]


def _work(rank: int, workers: int, folder: str, job: Job, profile: bool) -> None:
    import torch

    from raystage.train.worker import run_job

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "LOCAL_SIZE": str(workers)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=workers)
    profiler = cProfile.Profile()
    if profile and rank == 0:
        profiler.enable()
    run_job(job, lambda *message: None)
    profiler.disable()
    if profile and rank == 0:
        shown = io.StringIO()
        pstats.Stats(profiler, stream=shown).sort_stats("tottime").print_stats(_ROWS)
        print(shown.getvalue(), flush=True)
    torch.distributed.barrier()
    os._exit(0)  # Python's own teardown would destroy threads of gloo that DeepSpeed's groups still hold


def check_same(stage: StagePlan, record: StageRecord, losses: list[float]) -> None:
    """The mean losses between two points of the curve must agree with those of the bare loop."""
    begins = 0
    for point in record.train:
        theirs = statistics.fmean(losses[begins : point.steps])
        if abs(point.loss - theirs) > SAME_LOSS:
            raise SystemExit(f"after {point.steps} steps the losses differ: {point.loss} and {theirs}")
        begins = point.steps


def measure(schedule: Path, stage: StagePlan, folder: Path, number: int) -> tuple[float, float, float]:
    """One turn of each: seconds of a step under `raystage run`, of the bare loop, and of the worker without Ray."""
    (ours,) = train(schedule, [stage], folder / f"ray-{number}")
    bare = run(DEEPSPEED, task_of(stage))
    alone = without_ray(stage, folder / f"alone-{number}")
    check_same(stage, ours, bare.losses)
    return step_seconds(ours.train, stage), bare.step_seconds, step_seconds(alone.train, stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schedule, stage = written(folder, asked.workers, asked.steps, asked.hidden, asked.layers)
        if asked.profile:
            without_ray(stage, folder / "profiled", profile=True)
            return
        load = os.getloadavg()[0]
        print(f"{stage.num_params:,} parameters, {asked.workers} workers, {asked.steps} steps; load {load:.1f}\n")
        print("| raystage run, ms | bare DeepSpeed, ms | worker without Ray, ms | run / bare | without Ray / bare |")
        print("|---|---|---|---|---|", flush=True)
        ratios = []
        for number in range(asked.repeats):
            ours, bare, alone = measure(schedule, stage, folder, number)
            ratios.append((ours / bare, alone / bare))
            cells = [f"{1000 * one:.2f}" for one in (ours, bare, alone)] + [f"{one:.3f}" for one in ratios[-1]]
            print(f"| {' | '.join(cells)} |", flush=True)
    medians = [statistics.median(one) for one in zip(*ratios, strict=True)]
    print(f"\nMedian ratios: {medians[0]:.3f} with Ray, {medians[1]:.3f} without.")


if __name__ == "__main__":
    main()
