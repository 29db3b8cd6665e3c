"""What growing saves over the length of training: one run of raystage for each length and arm, all in one store.

    python benchmarks/saving_over_length/run.py --store .raystage/saving_over_length
    python benchmarks/saving_over_length/run.py --lengths 1.5,5 --arms one --set model.hidden_size=48

Lengths are in training tokens per parameter of the grown model. Each run has the baseline's budgets from 0.44 tokens per
parameter up to the first one beyond its own length, a factor of 1.41 apart; budgets, rates and seeds that another run
has trained are reused. A script that was stopped continues where it was. At the end it writes the figures (--json),
from which `picture.py` makes the picture. README.md says what was fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.report import RunReport
from raystage.storage.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEDULE = ROOT / "jobs/schedules/saving_over_length.yaml"
LENGTHS = (1.5, 5.0, 10.0, 20.0, 40.0)
LONGEST = 40.0
# The layers of the stage in the middle: as many as before, so that there is one growth; between; as many as after.
ARMS = {"one": 1, "two": 3, "early": 6}
# Of the staged run's tokens: the first two stages. The last one has what is left.
SHARES = (0.35, 0.35)


@dataclass(frozen=True)
class Point:
    """A length and an arm. compute_saved: the mean over the seeds, with the 95 % interval from `low` to `high`;
    at_most: what the straight line between the budgets would give. None where there is no figure; `verdict` says why.
    saved: of each seed on its own is not kept by the report, so `values` are the chosen rates: of the staged run, and
    of the baseline by budget in tokens."""

    arm: str
    tokens_per_parameter: float
    compute_saved: float | None
    low: float | None
    high: float | None
    at_most: float | None
    eval_loss: float | None
    flops: int
    flops_baseline: float | None
    staged_values: dict
    baseline_values: dict[str, dict]
    is_at_edge: tuple[bool, bool]
    seeds: int
    verdict: str


def budgets(length: float) -> tuple[float, ...]:
    """The baseline's budgets in tokens per parameter for a run of `length`: 5 * 2 ** (k / 2), from 0.44 up to the first
    one beyond the length, or up to the longest length."""
    grid = [5 * 2 ** (k / 2) for k in range(-7, 7)]
    beyond = next((one for one in grid if one > length * 1.01), grid[-1])
    return tuple(one for one in grid if one <= beyond)


def overrides(length: float, arm: str, num_params: int) -> list[str]:
    """The settings of a run on the schedule."""
    total = round(length * num_params)
    stages = [round(total * share) for share in SHARES]
    stages.append(total - sum(stages))
    found = [f"stages[{index}].until.tokens={tokens}" for index, tokens in enumerate(stages)]
    found.append(f"stages[1].model.num_layers={ARMS[arm]}")
    found.append(f"baseline.budgets={json.dumps([round(one * num_params) for one in budgets(length)])}")
    return found


def parameters(settings: Sequence[str]) -> int:
    return make_plan(load(SCHEDULE, tuple(settings))).staged.stages[-1].num_params


def run_name(length: float, arm: str) -> str:
    return f"saving-{length:g}-{arm}"


def train(length: float, arm: str, settings: Sequence[str], store: str, name: str) -> None:
    given = [*overrides(length, arm, parameters(settings)), *settings]
    command = [sys.executable, str(ROOT / "jobs/run.py"), str(SCHEDULE), "--name", name, "--store", store]
    options = [part for one in given for part in ("--set", one)]
    subprocess.run([*command, "--wandb", "disabled", *options], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=".raystage/saving_over_length")
    parser.add_argument("--lengths", default=",".join(f"{one:g}" for one in LENGTHS), help="tokens per parameter")
    parser.add_argument("--arms", default="one,two", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="KEY=VALUE of the schedule")
    parser.add_argument("--name", default="", help="what to add to the names of the runs")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    arguments = parser.parse_args()
    lengths = [float(one) for one in arguments.lengths.split(",")]
    for length in lengths:
        for arm in arguments.arms.split(","):
            train(length, arm, arguments.settings, arguments.store, run_name(length, arm) + arguments.name)


if __name__ == "__main__":
    main()
