"""Broken schedules, sweeps, stores and models: each gets an answer, and none a traceback.

`FUZZ=3000 make drills ARGS="-k fuzz"` for more; a case alone: `tests/support/fuzzing.py`, as its docstring says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fuzzing
from factories import make_curves, make_schedule
from folders import make
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.runs.driver import Driver
from raystage.runs.log import Invocation
from raystage.runs.status import RunStatus
from raystage.storage.store import Store
from small_checkpoints import flat_cuts, write

RICH = {
    "seed": 3,
    "training": {
        "workers": {"min": 1, "max": 2},
        "global_batch_tokens": 200,
        "max_failures": 2,
        "ramp": {"global_batch_tokens": {"from": 100, "over": {"tokens": 400}}},
        "optimizer": {"name": "adamw", "lr": "2e-3", "betas": [0.9, 0.95], "weight_decay": 0.1},
        "lr_schedule": {"kind": "wsd", "warmup": 100, "decay": 0.2},
        "evaluate": {"every": 400, "tokens": 100},
        "checkpoint": {"every": 400, "keep_last": 2, "keep_best": 1},
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 500000}},
    },
    "stages": [
        {"name": "small", "model": {"num_layers": 2}, "until": {"any": [{"tokens": 800}, {"eval_loss": 3.0}]},
         "accept": {"eval_loss_below": 5.0},
         "on_reject": {"retry": {"times": 2, "set": {"training.optimizer.lr": "*0.5"}}}},
        {"name": "full", "model": {"num_layers": 4, "hidden_size": 16, "num_heads": 4}, "until": {"tokens": "1.2K"},
         "grow": {"operator": {"depth": "stack", "width": "zero_pad"}, "rewarm": {"factor": 1.3, "tokens": 100},
                  "require": {"loss_increase_below": 0.5}},
         "freeze": {"layers": "old", "for": {"tokens": 200}}},
    ],
    "baseline": {"budgets": [1000, 1600]},
    "costs": {"price_per_hour": 2.5, "currency": "USD", "grid_intensity": 0.4},
}  # fmt: skip
SWEEP = {
    "name": "search",
    "schedule": "plain.yaml",
    "space": {
        "stages[0].until.tokens": {"grid": [400, 800]},
        "stages[1].grow.operator": {"choice": ["stack", "interleave"]},
        "stages[1]": {"choice": ["present", "absent"]},
    },
    "objective": {"metric": "eval_loss", "mode": "min"},
    "constraints": {"equal_flops": True},
}
ASHA = {
    "name": "asha",
    "schedule": "plain.yaml",
    "space": {"training.optimizer.lr": {"loguniform": [1e-4, 1e-2]}, "seed": {"integer": [0, 9], "when": {}}},
    "search": {"algorithm": "random", "num_trials": 3, "max_concurrent": 2, "seed": 1},
    "scheduler": {"name": "asha", "grace": "400", "reduction_factor": 2},
    "objective": [{"metric": "flops_to_loss", "target": 1.5}],
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with schedules, sweeps, a Hugging Face model, and a store with two runs and their checkpoints."""
    folder = tmp_path_factory.mktemp("fuzz") / "template"
    (folder / "texts").mkdir(parents=True)
    schedule = make_schedule(folder / "texts")
    content = schedule.content()
    content["data"]["path"] = ["texts"]
    for name, one in (
        ("plain", content), ("rich", {**content, **RICH}), ("sweep", SWEEP), ("asha-sweep", ASHA)
    ):  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(one, sort_keys=False))
    make("llama", folder / "hf")
    store = Store(open_folder(folder / "store"))
    for name in ("mine", "other"):
        run = make_schedule(folder / "texts", name=name)
        plan = make_plan(run)
        for record in make_curves(plan).values():
            target = store.checkpoint_folder(record.key, record.duration, "attempt")
            write(target, flat_cuts(2), tokens=record.duration)
            store.commit_record(type(record)(**{**vars(record), "checkpoint": f"checkpoints/{target.name}"}))
        Driver(plan, run, store, []).run()
        invocation = Invocation(name, f"raystage run {name}.yaml", store.run_folder(name), store.folder)
        status = RunStatus(plan, invocation)
        status.ended(None)
    return folder


def fuzz(template: Path, seed: int, count: int) -> list[dict]:
    arguments = [sys.executable, fuzzing.__file__, str(template), str(seed), str(count)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # DeepSpeed prints, too


def test_the_template_is_whole(template: Path) -> None:
    """Every command that is given broken files does its work on whole ones."""
    commands = {command for target in fuzzing.targets(template) for command in target.commands}
    assert len(commands) > 15
    assert not [found for command in sorted(commands) for found in fuzzing._in_a_fork(template, with_store(command))]


def with_store(command: tuple[str, ...]) -> list[str]:
    is_of_store = command[0] in ("store", "report", "status", "grow") and "hf" not in command
    return [*command, *(["--store", "store"] if is_of_store else [])]


def test_some_broken_files(template: Path) -> None:
    found = fuzz(template, seed=7, count=25)
    assert not found, "\n".join(json.dumps(one) for one in found)


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_thousands_of_broken_files(template: Path) -> None:
    found = fuzz(template, seed=int(os.environ.get("SEED", "1")), count=int(os.environ.get("FUZZ", "3000")))
    assert not found, "\n".join(json.dumps(one) for one in found)
