"""A constant rate with an average of the last checkpoints, against the last checkpoint alone and against a decay.

    python benchmarks/averages.py [--budgets 200K 400K 800K] [--rates 1e-3 2e-3 4e-3] [--seeds 2] [--last 4]

One model is trained for every budget, rate and seed: at a constant rate, whose last 4 checkpoints, 20K tokens apart,
are averaged, with the same weights for all (uniform) and with those of a linear decay (wsm); and with a rate that
decays over the last fifth (decayed). All runs of a budget have the same FLOPs: averaging trains nothing. Held-out
losses are means over the seeds, each way at its own best rate. Before that the sharing factor of
jobs/sweeps/average_budgets.yaml as it is, and with decays in place of averages. All of it runs in one process, without
Ray.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch

from raystage.config.schedule import parse
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.jobs import Job
from raystage.storage.store import Store
from raystage.sweeps.config import load
from raystage.sweeps.trials import plan_sweep
from raystage.train.worker import run_job
from raystage.units import format_count, parse_count

SWEEP = Path(__file__).parents[1] / "jobs/sweeps/average_budgets.yaml"
EVERY = "20K"
CONSTANT, DECAYED = {"kind": "constant", "warmup": "20K"}, {"kind": "wsd", "warmup": "20K", "decay": 0.2}
WAYS = {
    "uniform": (CONSTANT, {"every": EVERY, "weights": "uniform"}),
    "wsm": (CONSTANT, {"every": EVERY, "weights": "wsm"}),
    "decayed": (DECAYED, None),
}


def schedule_of(way: str, budget: int, lr: float, seed: int, last: int) -> dict:
    rate, average = WAYS[way]
    averaged = {"average": {**average, "last": last}} if average else {}
    return {
        "name": "averages",
        "seed": seed,
        "data": {"source": "python-stdlib", "tokenizer": "bytes"},
        "model": {"hidden_size": 64, "num_heads": 4, "ffn_size": 192, "context_length": 64, "num_layers": 4},
        "training": {
            "global_batch_tokens": 1024, "evaluate": {"tokens": "64K", "every": 10**9}, "optimizer": {"lr": lr},
            "lr_schedule": rate, "checkpoint": {"every": 10**9},
        },
        "stages": [{"name": "whole", "until": {"tokens": budget}, **averaged}],
    }  # fmt: skip


def train(way: str, budget: int, lr: float, seed: int, last: int, store: str) -> StageRecord:
    """At a constant rate a longer budget goes on from the shorter one."""
    (stage,) = make_plan(parse(schedule_of(way, budget, lr, seed, last))).staged.stages
    run_job(Job((stage,), store), lambda *message: None)
    return Store(open_folder(store)).record(stage.key)


def losses(
    budgets: list[int], rates: list[float], seeds: int, last: int, store: str
) -> dict[tuple[str, int], dict[float, list]]:
    """By way and budget, for each rate the losses of the seeds. "last": the last checkpoint under a constant rate."""
    found: dict[tuple[str, int], dict[float, list]] = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        for lr in rates:
            for way in WAYS:
                for budget in budgets:
                    record = train(way, budget, lr, seed, last, store)
                    average = record.average
                    found[way, budget][lr].append(average.eval_loss if average else record.eval_loss)
                    if way == "uniform":
                        found["last", budget][lr].append(average.single_eval_loss)
                    prefix = format_count(record.prefix.duration) if record.prefix else "-"
                    print(f"  seed {seed} lr {lr:g} {way:8} {format_count(budget):>5}: {found[way, budget][lr][-1]:.4f}"
                          f"  (continued from {prefix})", flush=True)  # fmt: skip
    return found


def table(found: Mapping[tuple[str, int], Mapping[float, list]], budgets: list[int]) -> Iterator[str]:
    """Of every way at every budget the best mean over the seeds, with its rate."""
    yield "budget   " + "".join(f"{way:>20}" for way in ("last", "uniform", "wsm", "decayed"))
    for budget in budgets:
        cells = []
        for way in ("last", "uniform", "wsm", "decayed"):
            means = {lr: statistics.mean(ones) for lr, ones in found[way, budget].items()}
            lr = min(means, key=means.__getitem__)
            cells.append(f"{means[lr]:.4f} (lr {lr:g})".rjust(20))
        yield f"{format_count(budget):9}" + "".join(cells)


def sharing() -> Iterator[str]:
    with_averages, decayed = load(SWEEP), load(SWEEP)
    decayed.base["training"]["lr_schedule"] = DECAYED
    decayed.base["stages"][1].pop("average")
    for name, one in (("averages", with_averages), ("decays", decayed)):
        tree = plan_sweep(one).tree
        yield f"sharing factor of {SWEEP.name} with {name}: {tree.sharing_factor:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", type=parse_count, default=[200_000, 400_000, 800_000])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--last", type=int, default=4, help="checkpoints to average, 20K tokens apart")
    asked = parser.parse_args()
    for line in sharing():
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        found = losses(sorted(asked.budgets), asked.rates, asked.seeds, asked.last, f"{folder}/store")
        print("\n".join(table(found, sorted(asked.budgets))), flush=True)
        os._exit(0)  # Python's own teardown would end threads of gloo that DeepSpeed's groups still hold


if __name__ == "__main__":
    main()
