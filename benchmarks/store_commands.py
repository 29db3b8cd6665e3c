"""How long the commands take that look through a whole store: python benchmarks/store_commands.py [--runs 1000]

A store of `--runs` runs with ten stages each: three that grow, as in the quickstart, and seven baselines. Records have
curves of 20 points; records, reports and states are what raystage writes. A stage's checkpoint has a real manifest and
two small shards. Every command is a process of its own, with an empty cache at first; "imports" is what `raystage
--help` takes, which is in every figure. CPU seconds say more than seconds where the machine is busy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raystage.config.schedule import load, parse
from raystage.files.filesystem import open_folder
from raystage.files.sealed_json import sealed
from raystage.files.typed_json import to_json
from raystage.models.shape import ModelShape, parameters
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.reports.build import build_report
from raystage.results.record import Evaluation, StageRecord, TrainPoint
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.writing import placed, shard_name, write_shard

SCHEDULE = Path(__file__).parents[1] / "jobs/schedules/quickstart.yaml"
BUDGETS = [160_000, 220_000, 260_000, 300_000]
POINTS = 20
SMALL = ModelShape("llama", 1, 8, 2, 2, 4, 16, 11, 10)
CHECKPOINT = "000000000064000-1f3a9c22"
_PRUNE = "`store prune --yes`, a tenth of the runs gone"
_RUN = "run-number"
_NAME = re.compile(rf"[0-9a-f]{{64}}|{_RUN}")


# --- the store ----------------------------------------------------------------------------------


def make_store(folder: Path, runs: int) -> int:
    """Write the store without waiting for the disk; returns the number of its stages. The keys of a run are those of
    one plan, hashed with the number of the run."""
    schedule = parse({**load(SCHEDULE).content(), "baseline": {"budgets": BUDGETS}})
    plan = make_plan(schedule)
    records = {key: _record(stage) for key, stage in plan.stages_by_key().items()}
    report = to_json(build_report(plan, records, dict.fromkeys(records, "FINISHED")))
    files = _checkpoint()
    texts = {Path("stages", key, "record.json"): _text(record.to_json()) for key, record in records.items()}
    run = Path("runs", _RUN)
    texts |= {
        run / "report.json": _text(report | {"name": _RUN, "state": "FINISHED"}),
        run / "run.json": _text(_state(plan, schedule.content())),
        run / "status.json": _text(_status(plan)),
    }
    for number in range(runs):
        names = {key: hashlib.sha256(f"{number}/{key}".encode()).hexdigest() for key in records}
        names[_RUN] = f"run-{number:05}"
        renamed = partial(_NAME.sub, lambda found, names=names: names.get(found[0], found[0]))
        for path, text in texts.items():
            _put(folder / renamed(str(path)), sealed(renamed(text).encode()) + b"\n")
        for key in records:
            for name, content in files.items():
                _put(folder / "stages" / names[key] / "checkpoints" / CHECKPOINT / name, content)
    return runs * len(records)


def _record(stage: StagePlan) -> StageRecord:
    """With curves, but without growth."""
    ends = [stage.start + stage.duration * (place + 1) // POINTS for place in range(POINTS)]
    evaluations = tuple(Evaluation(end, end // 100, end * 10**6, 1.5, 2.0, 0.4, {}, 2.01, 1.99) for end in ends)
    train = tuple(TrainPoint(end, end // 100, end * 10**6, 1.5, 2.1, 0.003, 0.5, 43_210.5) for end in ends)
    return StageRecord(
        key=stage.key, parent_key=stage.parent_key, name=stage.name, shape=stage.shape, num_params=stage.num_params,
        num_workers=2, zero_stage=1, duration=stage.duration, steps=stage.steps, flops=stage.flops, seconds=12.5,
        evaluation_seconds=1.5, evaluation_flops=10**9, peak_memory_bytes=2**29, eval_loss=2.0,
        checkpoint=f"checkpoints/{CHECKPOINT}", train=train, evaluations=evaluations, trained_for="staged",
    )  # fmt: skip


def _checkpoint() -> Mapping[str, bytes]:
    """By name the files of a checkpoint of a very small model."""
    with tempfile.TemporaryDirectory() as path:
        folder, table = open_folder(path), parameters(SMALL)
        own = [(one.name, "fp32", 0, np.zeros(one.numel, np.float32)) for one in table]
        written = [write_shard(folder, shard_name(rank, 2), own[rank::2]) for rank in range(2)]
        entries = tuple(ParameterEntry(one.name, one.shape, "float32", 1) for one in table)
        checkpoint.commit(folder, Manifest(SMALL, entries, placed(written), "", 1, 1, {}, {}, {}, {}))
        return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def _state(plan: Plan, schedule: Mapping[str, Any]) -> dict[str, Any]:
    """What is in run.json."""
    keys = [stage.key for run in plan.runs() for stage in run.stages]
    return {"name": _RUN, "state": "FINISHED", "started_at": 1.7e9, "updated_at": 1.7e9, "wandb_run_ids": {},
            "written_keys": keys, "discarded_keys": [], "schedule_as_set": schedule, "stages": _rows(plan)}  # fmt: skip


def _status(plan: Plan) -> dict[str, Any]:
    """What is in status.json."""
    return {"name": _RUN, "state": "FINISHED", "updated_at": 1.7e9, "started_at": 1.7e9, "stages": _rows(plan)}


def _rows(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"run": run.name, "name": stage.name, "key": stage.key, "state": "FINISHED"}
        for run in plan.runs()
        for stage in run.stages
    ]


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1.7e9, 1.7e9))


# --- the commands -------------------------------------------------------------------------------


def measured(cache: Path, *arguments: str) -> str:
    """A row of the table: seconds, and CPU seconds of the process and its children."""
    command = [str(Path(sys.executable).with_name("raystage")), *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    before, began = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds, used = time.perf_counter() - began, _cpu_seconds() - before
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return f"{seconds:.1f} | {used:.1f}"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commands(store: Path) -> dict[str, tuple[str, ...]]:
    at = ("--store", str(store))
    return {
        "imports (`raystage --help`)": ("--help",),
        "`store list`, first": ("store", "list", *at),
        "`store list`, again": ("store", "list", *at),
        "`status`": ("status", *at),
        "`report run-00000`": ("report", "run-00000", *at),
        "`store prune`": ("store", "prune", *at),
        _PRUNE: ("store", "prune", "--yes", *at),
    }


def remove_a_tenth(runs: Path) -> None:
    """So that prune has stages to remove."""
    names = sorted(runs.iterdir())
    for run in names[: len(names) // 10]:
        shutil.rmtree(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", help="the commands whose names have this in them")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        store, cache = Path(path, "store"), Path(path, "cache")
        stages = make_store(store, asked.runs)
        print(f"{asked.runs:,} runs, {stages:,} stages; "
              f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")  # fmt: skip
        print("| command | s | CPU s |\n|---|---|---|", flush=True)
        for name, arguments in commands(store).items():
            if not asked.only or asked.only in name:
                if name == _PRUNE:
                    remove_a_tenth(store / "runs")
                print(f"| {name} | {measured(cache, *arguments)} |", flush=True)


if __name__ == "__main__":
    main()
