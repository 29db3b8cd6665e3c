"""Where the time goes between the last step of one stage and the first of the next.

    python benchmarks/transitions.py [--workers 2] [--kinds all|workers] [--steps 20]

Runs a staged schedule through the driver, the way `raystage run` does, with a stage after each kind of change:
growth, another ZeRO stage, bf16, another number of workers (which needs other processes). `--kinds workers` has changes
of the number of workers alone, up and down. A transition is the time from the last training step of a stage to the end
of the first step of the next, so it has the held-out evaluation, the checkpoint with its checksums and fsync, the
record, the new engine, growth, its certificate and the first evaluation. Prints a Markdown table; the start of the
whole run, with cold processes, is its first line. The last line is the whole run: workers that are started ahead slow
down the steps that are trained meanwhile, where there are fewer cores than processes. All is run twice: the next
workers are started once the present ones have left, and then while they train.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "RAY_USAGE_STATS_ENABLED": "0"}

from raystage.cluster import launch
from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.runs.driver import Driver
from raystage.storage.store import Store

HEAD = """
name: transitions
model: {{family: llama, hidden_size: 64, num_heads: 4, ffn_size: 192, context_length: 64}}
training:
  workers: {workers}
  global_batch_tokens: 4096
  evaluate: {{every: 100M, tokens: 16K}}
stages:
"""
KINDS = {
    "all": """
  - {{name: first, model: {{num_layers: 3}}, until: {{steps: {steps}}}}}
  - {{name: grown, model: {{num_layers: 6}}, until: {{steps: {steps}}}, grow: {{operator: stack}}}}
  - {{name: unchanged, model: {{num_layers: 6}}, until: {{steps: {steps}}}}}
  - {{name: zero-3, model: {{num_layers: 6}}, until: {{steps: {steps}}}, training: {{zero_stage: 3}}}}
  - {{name: bf16, model: {{num_layers: 6}}, until: {{steps: {steps}}}, training: {{precision: bf16}}}}
  - {{name: wider, model: {{num_layers: 6, ffn_size: 256}}, until: {{steps: {steps}}}, grow: {{operator: zero_pad}}}}
  - {{name: other-workers, model: {{num_layers: 6, ffn_size: 256}}, until: {{steps: {steps}}},
     training: {{workers: {others}}}}}
""",
    "workers": """
  - {{name: few, model: {{num_layers: 6}}, until: {{steps: {steps}}}}}
  - {{name: more, model: {{num_layers: 6}}, until: {{steps: {steps}}}, training: {{workers: {others}}}}}
  - {{name: few-again, model: {{num_layers: 6}}, until: {{steps: {steps}}}}}
""",
}


class Clock:
    """A callback that notes when each stage's training points came, and of how many steps of the stage each is."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def trained(self, run: RunPlan, stage: StagePlan, point: Any) -> None:
        done = point.steps - stage.start_steps
        self.points.setdefault(stage.name, []).append((done, time.monotonic()))

    def __getattr__(self, name: str) -> Any:
        return lambda *facts: None

    def first(self, stage: str) -> float:
        """When the stage's first step ended. A point may come after several steps: those after the first are taken to
        have had the stage's median speed."""
        points = self.points[stage]
        steps, came = points[0]
        each = [(end - start) / (more - less) for (less, start), (more, end) in pairwise(points)]
        return came - (steps - 1) * (statistics.median(each) if each else 0.0)

    def last(self, stage: str) -> float:
        return self.points[stage][-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", choices=KINDS, default="all")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(f"{options.workers} workers, load average {os.getloadavg()[0]:.1f}")
    found = [_measure(options, starts_ahead) for starts_ahead in (False, True)]
    print("| from | to | s | s, next workers started ahead |", "|---|---|---|---|", sep="\n")
    for (before, after, plain), (_, _, ahead) in zip(*found, strict=True):
        print(f"| {before} | {after} | {plain:.1f} | {ahead:.1f} |")


def _measure(options: argparse.Namespace, starts_ahead: bool) -> list[tuple[str, str, float]]:
    """(from, to, seconds) of each transition, after the start of the first stage and before the whole run."""
    clock, workers = Clock(), options.workers
    content = HEAD + KINDS[options.kinds].lstrip("\n")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "transitions.yaml")
        file.write_text(content.format(workers=workers, others=workers + 1, steps=options.steps))
        schedule = load(file)
        plan = make_plan(schedule)
        store = Store(open_folder(Path(folder, "store")))
        driver = Driver(plan, schedule, store, [clock], is_connected=True, starts_ahead=starts_ahead)
        began = time.monotonic()
        with launch.cluster(None, 2 * workers + 1, 0):  # room for the workers of two stages, whatever the machine has
            driver.run()
        ended = time.monotonic()
    names = [stage.name for stage in plan.staged.stages]
    start = ("nothing (cluster and processes started)", names[0], clock.first(names[0]) - began)
    between = [(before, after, clock.first(after) - clock.last(before)) for before, after in pairwise(names)]
    return [start, *between, ("the whole run", "", ended - began)]


if __name__ == "__main__":
    main()
