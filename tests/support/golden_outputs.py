"""What a refactoring must not change, beside the keys of `golden_schedules`: growth maps, the numbers of a training to
the bit, the manifest of its checkpoint, the report of a run and of a sweep, the keys of the shipped sweeps' trials.

`PYTHONPATH=tests/support python tests/support/golden_outputs.py` writes `tests/golden/*.json` anew. Do so only where a
change is meant to change one of them, and look at what else the difference shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import growths
import staged_runs
from factories import make_curves, write_documents
from golden_schedules import FILE, JOBS, TEXTS
from raystage.config.schedule import parse
from raystage.files.filesystem import open_folder
from raystage.files.typed_json import to_json
from raystage.planning.build import make_plan
from raystage.runs.driver import Driver
from raystage.storage.store import Store
from raystage.sweeps.config import load
from raystage.sweeps.trials import plan_sweep
from sweep_results import finished, swept
from sweeps import make_sweep

GOLDEN = FILE.parent
# What differs from run to run, or from machine to machine.
PASSING = {"seconds", "worker_seconds", "gpu_seconds", "evaluation_seconds", "time_saved", "tokens_per_second", "mfu",
           "environment", "started_at", "finished_at", "updated_at", "command", "attempt", "peak_memory_bytes",
           "raystage", "energy_joules", "created_at", "hosts", "device", "repeated_share"}  # fmt: skip
STEPS = 20


def growth_maps() -> dict[str, str]:
    """Of every growth that the laws are tried on, the digest of its map's values."""
    return {str(case): _digest(_plain(case.map())) for case in growths.GROWTHS}


def one_map_per_operator() -> dict[str, Any]:
    """The whole map of the first growth of every operator, to be read where a digest has changed."""
    first: dict[str, growths.GrowthCase] = {}
    for case in growths.GROWTHS:
        first.setdefault(case.operator, case)
    return {str(case): _plain(case.map()) for case in first.values()}


def sweep_keys() -> dict[str, list[list[str]]]:
    """Of every shipped sweep over one text, by trial, the first 16 digits of its stages' keys, on the text of the
    tests."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder))
        for path in sorted((JOBS / "sweeps").glob("*.yaml")):
            sweep = load(path)
            if "mixture" in sweep.base["data"]:
                continue
            sweep.base["data"] = {"source": "text", "path": folder, "validation_fraction": 0.5}
            trials = plan_sweep(sweep).trials
            found[path.name] = [[stage.key[:16] for stage in trial.plan.staged.stages] for trial in trials]
    return found


def report() -> dict[str, Any]:
    """Of the quickstart, as of runs whose curves are made up."""
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder))
        schedule = parse(_quickstart(folder))
        plan, store = make_plan(schedule), Store(open_folder(f"{folder}/store"))
        for record in make_curves(plan).values():
            store.commit_record(record)
        return _lasting(json.loads(json.dumps(to_json(Driver(plan, schedule, store, []).run())).replace(folder, TEXTS)))


def sweep_report() -> dict[str, Any]:
    """Of a small sweep with two objectives, as of trials whose losses are made up."""
    space = "stages[0].until.tokens: {grid: [400, 800]}\nstages[1].grow.operator: {grid: [stack, interleave]}"
    objective = [{"metric": "eval_loss"}, {"metric": "flops_to_loss", "target": 1.8}]
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_sweep(make_sweep(Path(folder), space, objective=objective))
        ends = finished(plan, 2.0, 1.7, 1.9, 1.8, flops_to_loss=[None, 4e7, math.inf, 5e7])
        ends[0] = replace(ends[0], is_stopped=True, objectives={})
        return json.loads(json.dumps(to_json(swept(plan, ends, {1: 0.25}))).replace(folder, TEXTS))


def training() -> dict[str, Any]:
    """20 steps of the quickstart's first stage and 5 of its second on two workers, and the last checkpoint's manifest.

    processor: what the bits depend on besides the code."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        write_text(texts)
        content = _quickstart(str(texts))
        content["stages"] = [
            stage | {"until": {"steps": steps}, "training": {"evaluate": {"tokens": 512}}}
            for stage, steps in zip(content["stages"], (STEPS, 5), strict=False)
        ]
        content.pop("baseline")
        content["training"]["lr_schedule"]["warmup"] = 1280
        schedule, store = parse(content), Path(folder) / "store"
        records = staged_runs.train(schedule, store)
        last = records[-1]
        manifest = json.loads((store / "stages" / last.key / last.checkpoint / "manifest.json").read_text())
        manifest.pop("checksum")  # of all of it, times included
    return {
        "processor": [torch.backends.cpu.get_cpu_capability(), torch.__version__],
        "losses": [[point.loss for point in record.train] for record in records],
        "evaluations": [[point.loss for point in record.evaluations] for record in records],
        "manifest": _lasting(manifest),
    }


def write_text(folder: Path) -> None:
    """Documents of words drawn by a generator: the library's text differs with the version of Python."""
    folder.mkdir()
    rng = random.Random(3)
    words = ["".join(rng.choice("abcdefghij") for _ in range(rng.randrange(2, 8))) for _ in range(200)]
    for number in range(8):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(words) for _ in range(400)))


def _quickstart(texts: str) -> dict[str, Any]:
    content = yaml.safe_load((JOBS / "schedules/quickstart.yaml").read_text())
    return content | {"data": {"source": "text", "path": texts, "validation_fraction": 0.5}}


def _plain(value: Any) -> Any:
    """Values without the names of classes and fields, which may change."""
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [_plain(one) for name, one in found.items() if name != "offset" or one]  # newer than the golden maps
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(one) for key, one in value.items() if key not in PASSING}
    return [_lasting(one) for one in value] if isinstance(value, list) else value


MADE = {
    "maps": growth_maps,
    "maps_in_full": one_map_per_operator,
    "sweeps": sweep_keys,
    "report": report,
    "sweep_report": sweep_report,
    "training": training,
}

if __name__ == "__main__":
    for name, make in MADE.items():
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in make().items()]
        (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
