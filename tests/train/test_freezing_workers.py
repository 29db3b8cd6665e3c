"""Frozen parameters on real workers (gloo processes, DeepSpeed): not a bit of them moves, and the rest trains as in a
plain loop that takes no gradient of them."""

from __future__ import annotations

from collections.abc import Iterable
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
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job
from staged_runs import carry_out, records_of

pytestmark = pytest.mark.end_to_end

WORKERS = 2
OLD = {"freeze": {"layers": "old", "embeddings": True}}
FIRST_HALF = {"freeze": {**OLD["freeze"], "for": {"tokens": 400}}}
# The last of four layers after one step, one more after each, and the embeddings after five.
THAWING = {"thaw": {"from": "top", "every": 100}}
SGD = {"optimizer": {"name": "sgd", "lr": 0.3}}
# Of each: what stands still, how the model grows, how it trains. The gradient is clipped in all of them. Without a
# growth the second stage has the two layers of the first.
CASES: dict[str, tuple[dict, dict | None, dict]] = {
    **{
        f"ZeRO {zero_stage}, {precision}": (
            OLD, {"operator": "identity"}, {"zero_stage": zero_stage, "precision": precision})
        for zero_stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")
    },
    **{
        f"ZeRO {zero_stage}, {precision}, sgd": (
            OLD, {"operator": "stack"}, {"zero_stage": zero_stage, "precision": precision, **SGD})
        for zero_stage, precision in ((0, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"))
    },
    "offloaded under ZeRO 1": (OLD, {"operator": "identity"}, {"offload_optimizer": "cpu"}),
    "offloaded under ZeRO 3": (OLD, {"operator": "identity"}, {"zero_stage": 3, "offload_optimizer": "cpu"}),
    "new layers": ({"freeze": {"layers": "new"}}, {"operator": "random"}, {}),
    "old layers of a stack, state reset": (OLD, {"operator": "stack", "optimizer_state": "reset"}, {"zero_stage": 2}),
    "old layers, the new ones warmed up": (
        {"freeze": {"layers": "old"}}, {"operator": "identity", "rewarm": {"tokens": 400}}, {"zero_stage": 3}),
    **{
        f"the first half under ZeRO {zero_stage}": (FIRST_HALF, {"operator": "identity"}, {"zero_stage": zero_stage})
        for zero_stage in (0, 1, 2, 3)
    },
    "the first half, offloaded, sgd": (FIRST_HALF, {"operator": "stack"}, {"offload_optimizer": "cpu", **SGD}),
    "named, activations computed again": (
        {"freeze": {"parameters": ["*.mlp.*", "*layernorm.weight"], "layers": {"below": 1}}}, None,
        {"zero_stage": 2, "activation_checkpointing": True}),
    **{
        f"thawed from the top under ZeRO {zero_stage}": (THAWING, {"operator": "stack"}, {"zero_stage": zero_stage})
        for zero_stage in (1, 3)
    },
    "thawed from the bottom, offloaded, bf16": (
        {"freeze": {"layers": [1, 2, 3]}, "thaw": {"from": "bottom", "every": 200}}, {"operator": "stack"},
        {"zero_stage": 2, "offload_optimizer": "cpu", "precision": "bf16"}),
    **{
        f"rates by depth under ZeRO {zero_stage}": (
            {}, {"operator": "identity", "rewarm": {"tokens": 300}},
            {"zero_stage": zero_stage, "optimizer": {"lr_by_depth": 0.6}})
        for zero_stage in (0, 3)
    },
    "rates by depth, thawed": (THAWING, None, {"optimizer": {**SGD["optimizer"], "lr_by_depth": 0.5}}),
}  # fmt: skip
THAWED = [name for name, (still, _, _) in CASES.items() if "thaw" in still or "for" in still.get("freeze", {})]
EVERY_TIME = (
    "ZeRO 0, fp32", "ZeRO 1, bf16", "ZeRO 3, fp32", "ZeRO 2, fp32, sgd", "offloaded under ZeRO 1", "new layers",
    "old layers, the new ones warmed up", "the first half under ZeRO 2", "named, activations computed again",
    "thawed from the top under ZeRO 3", "thawed from the bottom, offloaded, bf16", "rates by depth under ZeRO 0",
    "rates by depth, thawed",
)  # fmt: skip
FOR_GOOD = [name for name, (still, _, _) in CASES.items() if still and name not in THAWED]


def chosen(names: Iterable[str]) -> list:
    names = list(names)
    return drilled(names, but=[name for name in EVERY_TIME if name in names])


def schedule_of(text: Path, still: dict, grow: dict | None, training: dict, workers: int = WORKERS) -> Schedule:
    """2 layers, then 4, for 800 tokens each; the first stage is the same for all that share its optimizer."""
    optimizer = {key: value for key, value in training.get("optimizer", {}).items() if key != "lr_by_depth"}
    alike = {"workers": workers, "gradient_clipping": 0.3, "optimizer": {"lr": 5e-3}, "checkpoint": {"every": 200},
             "evaluate": {"tokens": 200}}  # fmt: skip
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 800},
         "training": {"optimizer": optimizer}},
        {"name": "full", "model": {"num_layers": 4 if grow else 2}, "until": {"tokens": 800},
         "grow": grow, "training": training, **still},
    ]  # fmt: skip
    return make_schedule(text, stages=stages, training=alike, baseline=None)


def train_all(plans: dict[str, tuple[StagePlan, ...]], store: str) -> None:
    for stages in plans.values():
        run_job(Job(stages, store), lambda *message: None)


@dataclass(frozen=True)
class Runs:
    plans: dict[str, tuple[StagePlan, ...]]
    store: Store

    def stage(self, name: str) -> StagePlan:
        return self.plans[name][1]

    def end(self, name: str, index: int = 1) -> Checkpoint:
        return Checkpoint(self.store.finished_checkpoint(self.plans[name][index].key))

    def start(self, name: str) -> GrownStart:
        return GrownStart(self.stage(name), self.end(name, 0))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("frozen"), tmp_path_factory.mktemp("text")
    names = selected(request, "name", CASES)
    plans = {name: make_plan(schedule_of(text, *CASES[name])).staged.stages for name in names}
    run_workers(WORKERS, train_all, plans, str(folder / "store"), folder=folder / "processes")
    return Runs(plans, Store(open_folder(folder / "store")))


@pytest.mark.parametrize("name", chosen(FOR_GOOD))
def test_not_a_bit_of_what_is_frozen_moves(runs: Runs, name: str) -> None:
    """Weights, moments and step counts; of the rest every tensor moves."""
    stage, before, after = runs.stage(name), runs.start(name), runs.end(name)
    frozen = stage.freezing.names(stage.shape)
    assert 0 < len(frozen) < len(parameters(stage.shape))
    for one in parameters(stage.shape):
        for state in ("fp32", *stage.training.optimizer.moments):
            found, held = (source.read(one.name, state, 0, one.numel) for source in (before, after))
            assert np.array_equal(found, held) is (one.name in frozen), f"{state} of {one.name}"
        assert after.steps[one.name] - before.steps[one.name] == (0 if one.name in frozen else stage.steps)


@pytest.mark.parametrize("name", chosen(CASES))
def test_the_rest_trains_as_if_it_were_constant(runs: Runs, name: str) -> None:
    """As a loop trains that takes no gradient of it, clipping by the norm of the rest; once thawed, all of it."""
    stage = runs.stage(name)
    # Adam's first steps are as long for a gradient that is all but zero, whose sign bf16 may turn.
    weights, loss = (0.5, 5e-3) if stage.training.precision == "bf16" else (1e-3, 1e-5)
    plain, found = trained(stage, runs.start(name)), runs.end(name)
    for one in parameters(stage.shape):
        expected = plain.get_parameter(one.name).detach().numpy().ravel()
        moved = expected - runs.start(name).read(one.name, "fp32", 0, one.numel)
        left = found.read(one.name, "fp32", 0, one.numel) - expected
        assert np.linalg.norm(left) <= weights * np.linalg.norm(moved), one.name
    assert runs.store.record(stage.key).eval_loss == pytest.approx(evaluated(plain, stage), rel=loss)


@pytest.mark.parametrize("name", chosen(THAWED))
def test_what_is_thawed_goes_on_with_its_own_steps(runs: Runs, name: str) -> None:
    stage, before, after = runs.stage(name), runs.start(name), runs.end(name)
    assert 0 < min(stage.frozen_steps.values()) <= max(stage.frozen_steps.values()) < stage.steps == 8
    trained_steps = {one: after.steps[one] - before.steps[one] for one in after.steps}
    assert trained_steps == {one: 8 - stage.frozen_steps.get(one, 0) for one in after.steps}


# --- started again ------------------------------------------------------------------------------

# Checkpoints come every 200 tokens, after four of the first stage: still frozen, just thawed, thawed for longer.
STOPS = (5, 6, 7)
STOPPED = (
    "the first half under ZeRO 1", "the first half under ZeRO 3", "the first half, offloaded, sgd",
    "thawed from the top under ZeRO 3", "rates by depth, thawed",
)  # fmt: skip


def stop_and_go_on(schedules: dict[str, Schedule], folder: str) -> None:
    for name, schedule in schedules.items():
        carry_out(schedule, f"{folder}/calm")
        for stop in STOPS:
            carry_out(schedule, f"{folder}/{name}-{stop}", "saved", stop)
            carry_out(schedule, f"{folder}/{name}-{stop}")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Schedule], Path]:
    folder, text = tmp_path_factory.mktemp("stopped"), tmp_path_factory.mktemp("stopped-text")
    schedules = {name: schedule_of(text, *CASES[name], workers=1) for name in STOPPED}
    run_workers(1, stop_and_go_on, schedules, str(folder), folder=folder / "processes")
    return schedules, folder


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", STOPPED)
def test_stopped_while_frozen_or_after_it_and_started_again_gives_the_same_bits(
    stopped: tuple[dict[str, Schedule], Path], name: str, stop: int
) -> None:
    schedules, folder = stopped
    calm, again = (records_of(schedules[name], f"{folder}/{store}")[1] for store in ("calm", f"{name}-{stop}"))
    assert [point.loss for point in calm.train] == [point.loss for point in again.train]
    assert [point.gradient_norm for point in calm.train] == [point.gradient_norm for point in again.train]
    assert [point.loss for point in calm.evaluations] == [point.loss for point in again.evaluations]
