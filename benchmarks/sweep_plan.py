"""Seconds to plan a sweep of ten thousand trials: python benchmarks/sweep_plan.py [--trials 10000]

The quickstart's three stages, of random lengths, operators, rates and weight decays, so that nearly every trial has
stages of its own; under wsd, where they share their starts, and under cosine, where they share nothing. And the same
stages at a constant rate, with a fourth one in which it falls: trials that differ in this last stage alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from raystage.config.yaml_file import read_mapping
from raystage.sweeps.config import load
from raystage.sweeps.trials import plan_sweep

SCHEDULE = Path(__file__).parents[1] / "jobs/schedules/quickstart.yaml"
SPACE = {
    "stages[0].until.tokens": {"integer": ["100K", "1M"]},
    "stages[1].until.tokens": {"integer": ["100K", "1M"]},
    "stages[1].grow.operator": {"choice": ["stack", "interleave", "identity"]},
    "training.optimizer.lr": {"choice": ["1e-3", "2e-3", "4e-3"]},
    "stages[2].training.optimizer.weight_decay": {"uniform": [0, 0.2]},
}
ENDINGS = {
    "stages.end.until.tokens": {"integer": ["30K", "300K"]},
    "stages.end.training.lr_schedule.kind": {"choice": ["linear", "1-sqrt", "cosine"]},
    "stages.end.training.optimizer.weight_decay": {"uniform": [0, 0.2]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    trials = parser.parse_args().trials
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| rate | trials | different stages | sharing factor | seconds | of CPU |")
    print("|---|---|---|---|---|---|")
    for kind in ("wsd", "cosine"):
        print(row(kind, with_rate(kind), SPACE, trials))
    print(row("endings", with_end(), ENDINGS, trials))


def with_rate(kind: str) -> dict[str, Any]:
    schedule = read_mapping(SCHEDULE)
    schedule["training"]["lr_schedule"]["kind"] = kind
    return schedule


def with_end() -> dict[str, Any]:
    schedule = with_rate("constant")
    rate = {"from": "current", "kind": "linear"}
    end = {"name": "end", "model": {"num_layers": 12}, "until": {"tokens": "60K"}, "training": {"lr_schedule": rate}}
    return {**schedule, "stages": [*schedule["stages"], end]}


def row(name: str, schedule: dict[str, Any], space: dict[str, Any], trials: int) -> str:
    """A line of the table: what was planned, and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep.yaml")
        Path(folder, "schedule.yaml").write_text(yaml.safe_dump(schedule))
        search = {"algorithm": "random", "num_trials": trials}
        sweep.write_text(yaml.safe_dump({"name": name, "schedule": "schedule.yaml", "space": space, "search": search}))
        began, began_cpu = time.perf_counter(), time.process_time()
        tree = plan_sweep(load(sweep)).tree
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return f"| {name} | {tree.trials} | {len(tree.nodes)} | {tree.sharing_factor:.2f} | {seconds:.1f} | {cpu:.1f} |"


if __name__ == "__main__":
    main()
