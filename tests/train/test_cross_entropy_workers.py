"""Stages whose loss is computed some targets at a time, on workers: they learn what they learn with whole scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from staged_runs import carry_out_all, losses, records_of

WORKERS = 2
TIED = {"model": {"tied_embeddings": True}}
APART = {"data": {"window": {"mask": "document"}}}
ONE = {"stages": [{"name": "only", "model": {"num_layers": 2}, "until": {"tokens": 800}}], "baseline": None}
# By way the schedule's changes, those of its training, and how near its losses are to those with whole scores.
WAYS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], float]] = {
    "grown": ({}, {}, 1e-5),
    "ZeRO 2, tied": (TIED | ONE, {"zero_stage": 2}, 1e-5),
    "ZeRO 3, tied": (TIED | ONE, {"zero_stage": 3}, 1e-5),
    "ZeRO 3, bf16": (ONE, {"zero_stage": 3, "precision": "bf16"}, 2e-3),
    "ZeRO 0, bf16": (ONE, {"zero_stage": 0, "precision": "bf16"}, 2e-3),
    "documents apart, recomputed": (APART | ONE, {"activation_checkpointing": True}, 1e-5),
}
KINDS = ("whole", "chunked")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[StageRecord]]:
    folder = tmp_path_factory.mktemp("cross_entropy")
    (texts := folder / "texts").mkdir()
    schedules = {}
    for way, (changes, training, _) in WAYS.items():
        for kind in KINDS:
            section = {"workers": WORKERS, "micro_batch_size": 3, "evaluate": {"tokens": 100}, **training}
            section |= {"cross_entropy": kind}
            schedules[f"{way}, {kind}"] = make_schedule(texts, training=section, **changes)
    stores = dict.fromkeys(schedules, str(folder / "store"))
    run_workers(WORKERS, carry_out_all, schedules, stores, folder=folder / "workers")
    return {name: records_of(schedule, stores[name]) for name, schedule in schedules.items()}


@pytest.mark.end_to_end
@pytest.mark.parametrize("way", WAYS)
def test_a_stage_learns_what_it_learns_with_whole_scores(records: dict[str, list[StageRecord]], way: str) -> None:
    whole, chunked = (records[f"{way}, {kind}"] for kind in KINDS)
    assert losses(chunked) == [pytest.approx(one, rel=WAYS[way][2]) for one in losses(whole)]
    assert [one.key for one in whole] != [one.key for one in chunked]
    accuracies = [[point.accuracy for point in record.evaluations] for record in (*whole, *chunked)]
    assert all(accuracies)


TAUGHT = {"name": "distillation", "teacher": "small"}
REFUSED = {
    "objective: distillation": {
        "stages": [
            {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800}},
            {"name": "full", "model": {"num_layers": 4}, "until": {"tokens": 1200}, "objective": TAUGHT},
        ],
    },
    "objective: own": {"objective": {"name": "own", "function": "FOLDER/own.py:loss"}},
    "family: gemma2": {"model": {"family": "gemma2"}},
    "gpus_per_worker: 0": {"training": {"cross_entropy": "liger"}},
    "deterministic: true": {"training": {"cross_entropy": "liger", "gpus_per_worker": 1, "deterministic": True}},
}  # fmt: skip


def refused_schedule(folder: Path, what: str) -> Schedule:
    (folder / "own.py").write_text("def loss(model, batch):\n    raise NotImplementedError\n")
    changes = json.loads(json.dumps(REFUSED[what]).replace("FOLDER", str(folder)))
    training = {"cross_entropy": "chunked", **changes.pop("training", {})}
    return make_schedule(folder, training=training, **changes)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_computed_so_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    with pytest.raises(InputError, match=f"training.cross_entropy: found '(chunked|liger)' with {what}"):
        make_plan(refused_schedule(tmp_path, what))


def test_a_baseline_is_refused_as_a_stage_is(tmp_path: Path) -> None:
    baseline = {"budgets": [1000, 1500, 2000], "training": {"cross_entropy": "liger"}}
    with pytest.raises(InputError, match=r"baseline\.training\.cross_entropy: found 'liger' with gpus_per_worker: 0"):
        make_plan(make_schedule(tmp_path, baseline=baseline))
