"""Counts of new elements on real workers (gloo processes, DeepSpeed): a stage's end changes nothing about them."""

from __future__ import annotations

from dataclasses import replace

import deepspeed
import pytest
from deepspeed.accelerator import get_accelerator

from distributed import run_workers
from raystage.config.schedule import Init, Schedule
from raystage.planning.build import make_plan
from raystage.plans.initial import find_init
from raystage.plans.stage import UNCHANGED, StagePlan
from raystage.train.entry import initial_entry
from wide_stages import WORKERS, Case, differences, entered, entered_by, furthest, opened, save, second_wider, train

pytestmark = pytest.mark.end_to_end

LATE_BETAS = (0.9, 0.999)
GONE_ON = {zero_stage: f"ZeRO {zero_stage}" for zero_stage in (0, 1, 2, 3)}


def grow_and_go_on(schedule: Schedule, store: str) -> None:
    """A wide stage of six steps, and one of five with another of one, in every ZeRO stage; and its further ways."""
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    narrow, wide = (with_late_betas(stage, 1) for stage in make_plan(schedule).staged.stages)
    engine = entered(replace(narrow, growth=None), None)
    train(engine, steps=8)
    save(engine, f"{store}/narrow")
    for zero_stage, name in GONE_ON.items():
        stage = with_late_betas(wide, zero_stage)
        for steps in (6, 5):
            engine = entered(stage, f"{store}/narrow")
            train(engine, steps)
            save(engine, f"{store}/{name}/{steps}")
        go_on(last_step(stage), f"{store}/{name}/5", f"{store}/{name}/5 and 1")
    go_on(last_step(with_late_betas(wide, 3)), f"{store}/ZeRO 0/5", f"{store}/from ZeRO 0 to 3")
    go_on(last_step(wide), f"{store}/ZeRO 1/5", f"{store}/lost", head_starts={})
    init = find_init(Init(**{"from": f"{store}/ZeRO 1/5"}))
    first = replace(last_step(wide), init=init, parent_key=None, growth=None)
    engine = entered_by(first, initial_entry(first, init))
    train(engine, steps=1)
    save(engine, f"{store}/as init")


def with_late_betas(stage: StagePlan, zero_stage: int) -> StagePlan:
    return Case(zero_stage, "fp32", "grow").of(stage, betas=LATE_BETAS)


def last_step(stage: StagePlan) -> StagePlan:
    """A stage of the same shape, after five steps of `stage`."""
    return replace(stage, growth=UNCHANGED, parent_shape=stage.shape, start_steps=stage.start_steps + 5)


def go_on(stage: StagePlan, source: str, place: str, **without: object) -> None:
    engine = entered(stage, source)
    for name, value in without.items():
        engine.count_new_apart(**{name: value})
    train(engine, steps=1)
    save(engine, place)


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return second_wider(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def gone_on(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gone-on")
    run_workers(WORKERS, grow_and_go_on, schedule, str(folder / "trained"), folder=folder)
    return str(folder / "trained")


@pytest.mark.parametrize("name", GONE_ON.values())
def test_a_stage_of_six_steps_and_two_of_five_and_one_give_the_same_bits(name: str, gone_on: str) -> None:
    assert differences(opened(gone_on, name, "6"), opened(gone_on, name, "5 and 1")) == []


def test_counts_of_new_elements_go_wherever_the_checkpoint_goes(gone_on: str) -> None:
    assert furthest(opened(gone_on, "ZeRO 0/6"), opened(gone_on, "from ZeRO 0 to 3")) < 2e-6
    assert furthest(opened(gone_on, "ZeRO 1/6"), opened(gone_on, "lost")) > 1e-4
    assert differences(opened(gone_on, "ZeRO 1", "6"), opened(gone_on, "as init")) == []
