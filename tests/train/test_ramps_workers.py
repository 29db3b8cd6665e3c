"""Ramps on real workers (gloo processes, DeepSpeed): a ramp has the bits of stages with the values of its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed import run_workers
from factories import make_schedule
from grids import drilled, selected
from plain_training import GrownStart, evaluated, trained
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.results.record import TrainPoint
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job
from staged_runs import carry_out, records_of

pytestmark = pytest.mark.end_to_end

WORKERS = 2
# In all three the values double twice in 800 of 1,600 tokens; two workers share 5 sequences, or 20, in twos.
RAMPS: dict[str, tuple[dict, list[dict]]] = {
    "batch": (
        {"global_batch_tokens": {"from": 100, "over": {"tokens": 800}}},
        [{"training": {"global_batch_tokens": 100}}, {"training": {"global_batch_tokens": 200}}, {}]),
    "context": (
        {"context_length": {"from": 5, "over": {"tokens": 800}}},
        [{"model": {"context_length": 5}}, {"model": {"context_length": 10}}, {}]),
    "batch and context": (
        {"global_batch_tokens": {"from": 100, "over": {"tokens": 800}},
         "context_length": {"from": 5, "over": {"tokens": 800}}},
        [{"model": {"context_length": 5}, "training": {"global_batch_tokens": 100}},
         {"model": {"context_length": 10}, "training": {"global_batch_tokens": 200}}, {}]),
}  # fmt: skip
TRAININGS = {
    **{f"ZeRO {zero_stage}": {"zero_stage": zero_stage} for zero_stage in (0, 1, 2, 3)},
    "ZeRO 0, bf16": {"zero_stage": 0, "precision": "bf16"},
    "ZeRO 1, bf16": {"precision": "bf16"},
    "ZeRO 3, bf16": {"zero_stage": 3, "precision": "bf16"},
    "offloaded under ZeRO 1": {"offload_optimizer": "cpu"},
    "offloaded under ZeRO 2": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "offloaded under ZeRO 3": {"zero_stage": 3, "offload_optimizer": "cpu"},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.1}},
}
# The batch, which changes the number of micro steps, under all; the context under a few.
CASES = [("batch", name) for name in TRAININGS] + [
    (ramp, name) for ramp in ("context", "batch and context") for name in ("ZeRO 1", "ZeRO 3")
]
EVERY_TIME = [("batch", name) for name in ("ZeRO 0", "ZeRO 1, bf16", "ZeRO 3", "offloaded under ZeRO 2")] + [
    ("context", "ZeRO 1"), ("batch and context", "ZeRO 3"),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", drilled(CASES, but=EVERY_TIME), ids=", ".join)


def schedule_of(text: Path, stages: list[dict], training: dict, workers: int = WORKERS) -> Schedule:
    """In steps of 400 tokens and a context of 20, if nothing else is said."""
    alike = {"workers": workers, "global_batch_tokens": 400, "micro_batch_size": 2, "gradient_clipping": 0.3,
             "checkpoint": {"every": 200}, "evaluate": {"every": 400, "tokens": 200}}  # fmt: skip
    model = {"num_layers": 2, "context_length": 20}
    return make_schedule(text, stages=stages, model=model, training=alike | training, baseline=None)


def in_one(ramp: dict, **more: object) -> dict:
    return {"name": "whole", "until": {"tokens": 1600}, "training": {"ramp": ramp}, **more}


def in_parts(parts: list[dict]) -> list[dict]:
    lengths = (400, 400, 800)
    return [
        {"name": f"part-{number}", "until": {"tokens": tokens}, **part}
        for number, (part, tokens) in enumerate(zip(parts, lengths, strict=True))
    ]


def train_all(plans: dict, store: str) -> None:
    for pair in plans.values():
        for stages in pair:
            run_job(Job(stages, store), lambda *message: None)


@dataclass(frozen=True)
class Runs:
    """By case, the stages with the ramp and those of its pieces."""

    plans: dict[tuple[str, str], tuple[tuple[StagePlan, ...], tuple[StagePlan, ...]]]
    store: Store

    def end(self, stage: StagePlan) -> Checkpoint:
        return Checkpoint(self.store.finished_checkpoint(stage.key))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("ramps"), tmp_path_factory.mktemp("text")
    plans = {
        (ramp, name): tuple(
            make_plan(schedule_of(text, stages, TRAININGS[name])).staged.stages
            for stages in ([in_one(RAMPS[ramp][0])], in_parts(RAMPS[ramp][1]))
        )
        for ramp, name in selected(request, "case", CASES)
    }
    run_workers(WORKERS, train_all, plans, str(folder / "store"), folder=folder / "processes")
    return Runs(plans, Store(open_folder(folder / "store")))


@each_case
def test_a_ramp_has_the_bits_of_a_stage_for_each_piece(runs: Runs, case: tuple[str, str]) -> None:
    (whole,), parts = runs.plans[case]
    one, other = runs.end(whole), runs.end(parts[-1])
    assert one.states == other.states
    for parameter in parameters(whole.shape):
        for state in one.states:
            found, held = (end.read(parameter.name, state, 0, parameter.numel) for end in (one, other))
            np.testing.assert_array_equal(found, held, err_msg=f"{state} of {parameter.name}")
    assert one.steps == other.steps


@each_case
def test_and_the_same_curve_in_tokens_steps_and_flops(runs: Runs, case: tuple[str, str]) -> None:
    (whole,), parts = runs.plans[case]
    record, last = runs.store.record(whole.key), runs.store.record(parts[-1].key)
    assert (record.duration, record.steps, record.flops) == (whole.duration, whole.steps, whole.flops)
    assert record.end.position == last.end.position == 1600
    assert (record.end.steps, record.end.flops) == (last.end.steps, last.end.flops)
    assert record.eval_loss == last.eval_loss
    of_parts = [runs.store.record(part.key) for part in parts]
    assert [told(point) for point in record.train] == [told(point) for part in of_parts for point in part.train]
    assert len(record.train) == whole.steps


def told(point: TrainPoint) -> tuple:
    """All of a point but the time it took."""
    return point.position, point.steps, point.flops, point.loss, point.lr, point.gradient_norm


# --- with what else counts tokens, and started again ---------------------------------------------

RAMP = RAMPS["batch and context"][0] | {"scale_lr": "sqrt"}
# A grown stage with a ramp: the new layers warm up over 400 tokens, and the old ones stand still for 500.
GROWN = {
    "model": {"num_layers": 4},
    "grow": {"operator": "identity", "rewarm": {"tokens": 400}},
    "freeze": {"layers": "old", "for": {"tokens": 500}},
}
# Within each of the pieces: after 200, 400, 600, 800 and 1,200 tokens.
STOPS = (3, 4, 5, 6, 7)


def stop_and_go_on(schedule: Schedule, folder: str) -> None:
    carry_out(schedule, f"{folder}/calm")
    for stop in STOPS:
        carry_out(schedule, f"{folder}/{stop}", "saved", stop)
        carry_out(schedule, f"{folder}/{stop}")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Schedule, Path]:
    folder, text = tmp_path_factory.mktemp("grown"), tmp_path_factory.mktemp("grown-text")
    first = {"name": "first", "until": {"tokens": 800}}
    schedule = schedule_of(text, [first, in_one(RAMP, **GROWN)], {"zero_stage": 2}, workers=1)
    run_workers(1, stop_and_go_on, schedule, str(folder), folder=folder / "processes")
    return schedule, folder


def test_it_trains_as_a_plain_loop_does(grown: tuple[Schedule, Path]) -> None:
    schedule, folder = grown
    first, second = make_plan(schedule).staged.stages
    store = Store(open_folder(folder / "calm"))
    assert (second.steps, set(second.frozen_steps.values())) == (8, {5})
    plain = trained(second, GrownStart(second, Checkpoint(store.finished_checkpoint(first.key))))
    record = store.record(second.key)
    assert record.eval_loss == pytest.approx(evaluated(plain, second), rel=1e-5)
    assert abs(record.evaluations[0].loss - record.eval_loss) > 1e-3


@pytest.mark.parametrize("stop", STOPS)
def test_stopped_on_the_way_and_started_again_gives_the_same_bits(grown: tuple[Schedule, Path], stop: int) -> None:
    schedule, folder = grown
    calm, again = (records_of(schedule, f"{folder}/{store}")[1] for store in ("calm", stop))
    assert [told(point) for point in calm.train] == [told(point) for point in again.train]
    assert [point.loss for point in calm.evaluations] == [point.loss for point in again.evaluations]
