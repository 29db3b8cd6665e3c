"""Runs of raystage that benchmarks time: a schedule trained by its own command, and the speed of its steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from bare_loops import WARM_UP_SHARE

from raystage.config.schedule import load
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import StageRecord, TrainPoint
from raystage.storage.store import Store

# The command, also where only the package is there and nothing is installed.
COMMAND = [sys.executable, "-c", "from raystage.cli.main import main; main()"]


def write_text(folder: Path, copies: int = 1) -> None:
    """Text of this Python's own library, in `folder`/text."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for source in sorted(Path(os.__file__).parent.glob("*.py"))[:120]:
        (text / f"{source.stem}.txt").write_text(source.read_text(errors="replace") * copies)


def write_schedule(folder: Path, name: str, content: dict[str, Any]) -> tuple[Path, tuple[StagePlan, ...]]:
    """A schedule over that text, and its stages as planned."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "data": {"source": "text", "path": "text"}, **content}))
    return path, make_plan(load(path)).staged.stages


def train(
    schedule: Path, stages: Sequence[StagePlan], store: Path, seconds: float | None = None, *options: str
) -> list[StageRecord]:
    """The records of the stages after `raystage run`. Raises SystemExit with what it said if it fails."""
    command = [*COMMAND, "run", str(schedule), "--store", str(store), "--wandb", "disabled", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return records(stages, store)


def records(stages: Sequence[StagePlan], store: Path) -> list[StageRecord]:
    opened = Store(open_folder(str(store)))
    return [opened.record(stage.key) for stage in stages]


def step_seconds(curve: Sequence[TrainPoint], stage: StagePlan) -> float:
    """The mean of the steps after the warm-up; the seconds of a curve are without evaluations."""
    warm = stage.start_steps + stage.steps * WARM_UP_SHARE
    first = next(point for point in curve if point.steps >= warm)
    return (curve[-1].seconds - first.seconds) / (curve[-1].steps - first.steps)


def losses_of(record: StageRecord) -> list[float]:
    """In training and on held-out data."""
    return [point.loss for point in (*record.train, *record.evaluations)]


def checksums_of(store: Path, record: StageRecord) -> Any:
    """Of the shards of the checkpoint that a stage ended with."""
    folder = open_folder(str(store / "stages" / record.key / record.checkpoint))
    return json.loads(folder.read("manifest.json"))["shards"]
