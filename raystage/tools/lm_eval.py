"""Downstream tasks on a finished stage, by lm-eval, which only this command needs.

The stage is exported to a temporary Hugging Face folder, and lm-eval runs its tasks on that. The results are kept
beside the run, in `runs/<name>/evaluations/<stage>.json`, and every report of the run shows them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from raystage.errors import InputError, RaystageError
from raystage.files.filesystem import open_folder
from raystage.growth.explain import head_in_words
from raystage.models.families import family_of
from raystage.results.report import StageTasks, TaskFigure, TaskResult
from raystage.storage.evaluations import find_stage, keep, tasks_before
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import Source, open_source

_PACKAGE = "lm_eval"
_NO_FILTER = "none"


@dataclass(frozen=True)
class Asked:
    """tasks: as lm-eval names them. limit: examples of each; None are all. include_path: a folder of further tasks."""

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1
    device: str = "cpu"
    include_path: Path | None = None


def evaluate(store: Store, run: str, stage: str | None, asked: Asked) -> StageTasks:
    """Run the tasks on a stage (the run's last unless named; a baseline by its run's name), keep what came of it.

    Tasks that were run before on the same stage stay beside the new ones.
    Raises InputError, RaystageError where lm-eval fails.
    """
    harness = _lm_eval()
    found_stage = find_stage(store, run, stage)
    manager = _tasks(harness, asked)
    began = time.monotonic()
    source = open_source(found_stage.key, store)
    check_language_model(source, found_stage.name)
    with tempfile.TemporaryDirectory() as folder:
        target = open_folder(f"{folder}/model")
        export(source, target, ExportOptions())
        found = _carry_out(harness, manager, target.path, asked)
    made = StageTasks(
        stage=found_stage.name,
        key=found_stage.key,
        seconds=time.monotonic() - began,
        lm_eval=harness.__version__,
        tasks={**tasks_before(store, found_stage), **tasks_of(found, asked)},
    )
    keep(store, found_stage.run, made)
    return made


def check_language_model(source: Source, stage: str) -> None:
    """Refuse a model with another head: transformers would draw a language head at random. Raises InputError."""
    if source.shape.head:
        problem = f"found {stage!r}, a model for {head_in_words(source.shape)}; expected a language model"
        raise InputError(problem, key="--stage")
    if family_of(source.shape.family).module:
        problem = f"found {stage!r}, a {source.shape.family}, which lm-eval cannot load"
        raise InputError(f"{problem}; expected a model of transformers", key="--stage")


# --- lm-eval ----------------------------------------------------------------------------------


def _lm_eval() -> ModuleType:
    """lm-eval, where it is installed with what its Hugging Face models need. Raises InputError."""
    if missing := [name for name in (_PACKAGE, "accelerate") if importlib.util.find_spec(name) is None]:
        problem = f"{' and '.join(missing)} not installed; pip install 'raystage[lm-eval]'"
        raise InputError(problem, key="--tasks")
    importlib.import_module(f"{_PACKAGE}.tasks")
    return importlib.import_module(_PACKAGE)


def _tasks(harness: ModuleType, asked: Asked) -> Any:
    """lm-eval's manager of tasks, which knows all that are asked for. Raises InputError."""
    if asked.include_path is not None and not asked.include_path.is_dir():
        raise InputError(f"no folder {asked.include_path}; expected one of lm-eval's task files", key="--include-path")
    manager = harness.tasks.TaskManager(include_path=asked.include_path and str(asked.include_path))
    for task in asked.tasks:
        if not manager.match_tasks([task]):
            close = difflib.get_close_matches(task, manager.all_tasks, 1)
            hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists what there is"
            raise InputError(f"lm-eval has no task {task!r}; {hint}", key="--tasks")
    return manager


def _carry_out(harness: ModuleType, manager: Any, model: str, asked: Asked) -> dict[str, Any]:
    try:
        return harness.simple_evaluate(
            model="hf",
            model_args={"pretrained": model, "dtype": "float32", "trust_remote_code": False},
            tasks=list(asked.tasks),
            num_fewshot=asked.num_fewshot,
            batch_size=asked.batch_size,
            device=asked.device,
            limit=asked.limit,
            log_samples=False,
            task_manager=manager,
        )
    # Tasks load data sets and run code of their own, so any error can occur: of connections, files, keys.
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise RaystageError(f"lm-eval failed on {', '.join(asked.tasks)} ({said}); is their data there?") from error


def tasks_of(found: Mapping[str, Any], asked: Asked) -> dict[str, TaskResult]:
    """By task its metrics, each a value and its standard error, and how many examples these are of."""
    tasks = {}
    for task, results in found["results"].items():
        metrics = {
            _metric_name(key): TaskFigure(value, _number(results.get(_stderr_key(key))))
            for key, value in results.items()
            if _number(value) is not None and "," in key and not _is_stderr(key)
        }
        samples = found.get("n-samples", {}).get(task, {})
        tasks[task] = TaskResult(metrics, samples.get("effective"), asked.num_fewshot)
    return tasks


def _metric_name(key: str) -> str:
    """'acc' of 'acc,none', 'exact_match (strict)' of 'exact_match,strict'."""
    name, _, chosen = key.partition(",")
    return name if chosen == _NO_FILTER else f"{name} ({chosen})"


def _stderr_key(key: str) -> str:
    name, _, chosen = key.partition(",")
    return f"{name}_stderr,{chosen}"


def _is_stderr(key: str) -> bool:
    return key.partition(",")[0].endswith("_stderr")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def downstream_lines(made: StageTasks, tasks: Sequence[str]) -> list[str]:
    """What came of some tasks, a line for each metric."""
    return [
        f"{task}: {name} {metric.value:.4g}"
        + (f" ± {metric.stderr:.2g}" if metric.stderr is not None else "")
        + f", {made.tasks[task].num_examples} examples"
        for task in tasks
        if task in made.tasks
        for name, metric in made.tasks[task].metrics.items()
    ]
