"""Documents in the order of their loss under the stage before, against shuffled text at equal FLOPs.

    python benchmarks/loss_order.py [--store URI] [--seeds 2]

The text is about a million bytes (a few packages of Python's library, in pieces of 2,000 bytes), of which the grown
stage reads two fifths. Shuffled text is read for as many tokens, and for as many FLOPs with those of scoring. Every run
is a `raystage run` of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.storage.store import Store

HERE = Path(__file__).parent
SCHEDULE = HERE / "loss_order.yaml"
PACKAGES = ("asyncio", "email", "http", "logging")
BY_LOSS = "stages[1].data.curriculum={by: {loss: small}, from: %s, start: 0.2, over: 0.5}"
SHUFFLED, EQUAL = "shuffled, equal tokens", "shuffled, equal FLOPs"
ORDERS = {"easy first": (BY_LOSS % "easy",), "hard first": (BY_LOSS % "hard",), SHUFFLED: ()}


def settings(order: str, seed: int) -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    path = json.dumps([str(folder / package) for package in PACKAGES])
    return [f"data.path={path}", "data.files='*.py'", f"seed={seed}", *ORDERS[order]]


def with_equal_flops(seed: int) -> list[str]:
    """Shuffled text for as many more steps as scoring costs."""
    scored, plain = (plan_of(settings(order, seed)).staged.stages[-1] for order in ("easy first", SHUFFLED))
    steps = plain.step_costs.steps_for(scored.flops)
    return [*settings(SHUFFLED, seed), f"stages[1].until={{steps: {steps}}}"]


def plan_of(overrides: list[str]) -> Plan:
    return make_plan(load(SCHEDULE, overrides))


def run(overrides: list[str], name: str, store: str) -> None:
    given = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, str(HERE.parent / "jobs/run.py"), str(SCHEDULE), *given]
    subprocess.run([*command, "--name", name, "--store", store, "--wandb", "disabled"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=".raystage/loss-order")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        runs = {order: settings(order, seed) for order in ORDERS} | {EQUAL: with_equal_flops(seed)}
        for order, overrides in runs.items():
            run(overrides, f"{order.replace(', ', '-').replace(' ', '-')}-{seed}", arguments.store)
            plan = plan_of(overrides)
            record = Store(open_folder(arguments.store)).record(plan.staged.stages[-1].key)
            rows.append(
                f"| {seed} | {order} | {record.duration:,} | {plan.staged.flops:.3g} | {record.eval_loss:.4f} |"
            )
    print("\n".join(["| seed | order | tokens of `full` | FLOPs | held-out loss |", "|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
