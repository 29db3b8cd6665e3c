"""Where the time goes between the last step of one stage and the first of the next.

    python benchmarks/transitions.py [--workers 2]

Runs a staged schedule through the driver, the way `raystage run` does, with a stage after each kind of change:
growth, another ZeRO stage, bf16, another number of workers (which needs other processes). A transition is the time
from the last training step of a stage to the end of the first step of the next, so it has the held-out evaluation, the
checkpoint with its checksums and fsync, the record, the new engine, growth, its certificate and the first evaluation.
Prints a Markdown table; the start of the whole run, with cold processes, is its first line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "RAY_USAGE_STATS_ENABLED": "0"}

from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.runs.driver import Driver
from raystage.storage.store import Store

SCHEDULE = """
name: transitions
model: {{family: llama, hidden_size: 64, num_heads: 4, ffn_size: 192, context_length: 64}}
training:
  workers: {workers}
  global_batch_tokens: 4096
  evaluate: {{every: 100M, tokens: 16K}}
stages:
  - {{name: first, model: {{num_layers: 3}}, until: {{steps: 20}}}}
  - {{name: grown, model: {{num_layers: 6}}, until: {{steps: 20}}, grow: {{operator: stack}}}}
  - {{name: unchanged, model: {{num_layers: 6}}, until: {{steps: 20}}}}
  - {{name: zero-3, model: {{num_layers: 6}}, until: {{steps: 20}}, training: {{zero_stage: 3}}}}
  - {{name: bf16, model: {{num_layers: 6}}, until: {{steps: 20}}, training: {{precision: bf16}}}}
  - {{name: wider, model: {{num_layers: 6, ffn_size: 256}}, until: {{steps: 20}}, grow: {{operator: zero_pad}}}}
  - {{name: other-workers, model: {{num_layers: 6, ffn_size: 256}}, until: {{steps: 20}},
     training: {{workers: {others}}}}}
"""


class Clock:
    """A callback that notes when each stage's training points came."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def trained(self, run: RunPlan, stage: StagePlan, point: Any) -> None:
        self.first.setdefault(stage.name, time.monotonic())
        self.last[stage.name] = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return lambda *facts: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "transitions.yaml")
        file.write_text(SCHEDULE.format(workers=workers, others=workers + 1))
        schedule = load(file)
        plan = make_plan(schedule)
        load_average = os.getloadavg()[0]
        began = time.monotonic()
        Driver(plan, schedule, Store(open_folder(Path(folder, "store"))), [clock]).run()
    print(f"{workers} workers, load average {load_average:.1f}")
    print("| from | to | s |", "|---|---|---|", sep="\n")
    names = [stage.name for stage in plan.staged.stages]
    print(f"| nothing (cluster and processes started) | {names[0]} | {clock.first[names[0]] - began:.1f} |")
    for before, after in pairwise(names):
        print(f"| {before} | {after} | {clock.first[after] - clock.last[before]:.1f} |")


if __name__ == "__main__":
    main()
