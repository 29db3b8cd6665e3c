"""Width growth on real workers (gloo processes, DeepSpeed): its optimizer state, and what it makes new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import numpy as np
import pytest
from deepspeed.accelerator import get_accelerator

from distributed import run_workers
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.growth.apply import Grown, grown_steps, is_new
from raystage.planning.build import make_plan
from raystage.plans.learning_rate import Rewarming
from raystage.plans.stage import StagePlan
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job
from wide_stages import (
    WIDE,
    WORKERS,
    Case,
    differences,
    entered,
    furthest,
    opened,
    rules_of,
    save,
    second_wider,
    train,
    two_stages,
)

pytestmark = pytest.mark.end_to_end

REWARM = Rewarming(1.3, 400)


ENTERED = [
    Case(zero_stage, precision, policy)
    for zero_stage, precision in ((1, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16"))
    for policy in ("grow", "reset", "keep")
] + [Case(3, "fp32", "grow", "sgd")]
# Each next one trains like the first of its row.
ALIKE = {
    optimizer: [Case(zero_stage, "fp32", policy, optimizer, REWARM) for zero_stage in (0, 1, 2, 3)]
    for optimizer, policy in (("adamw", "grow"), ("sgd", "grow"), ("adam", "reset"))
}
ONE_STEP = {
    zero_stage: [Case(zero_stage, "fp32", "grow", rewarm=rewarm) for rewarm in (None, REWARM)] for zero_stage in (1, 3)
}
# As the first of their row, but without what ALIKE is to show.
UNLIKE = {
    "without a rewarm": Case(0, "fp32", "grow"),
    "with a count in common": Case(0, "fp32", "grow", rewarm=REWARM),
}


def enter_and_train(schedule: Schedule, store: str) -> None:
    """A narrow stage of each optimizer, trained; then every case entered from it and saved, some of them trained."""
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    narrow, wide = make_plan(schedule).staged.stages
    for optimizer in ("adamw", "adam", "sgd"):
        engine = entered(Case(1, "fp32", "grow", optimizer).of(narrow), None)
        train(engine, steps=4)
        save(engine, f"{store}/{optimizer}")
    for case in ENTERED:
        save(entered(case.of(wide), f"{store}/{case.optimizer}"), f"{store}/{case}")
    for case in (case for cases in ALIKE.values() for case in cases):
        engine = entered(case.of(wide), f"{store}/{case.optimizer}")
        train(engine, steps=3)
        save(engine, f"{store}/trained/{case}")
    for case in (case for cases in ONE_STEP.values() for case in cases):
        engine = entered(case.of(wide), f"{store}/adamw")
        train(engine, steps=1)
        save(engine, f"{store}/once/{case}")
    for name, case in UNLIKE.items():
        engine = entered(case.of(wide), f"{store}/adamw")
        if name == "with a count in common":
            engine._new_elements.forget()
        train(engine, steps=3)
        save(engine, f"{store}/trained/{name}")


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return second_wider(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def store(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("entered")
    run_workers(WORKERS, enter_and_train, schedule, str(folder / "store"), folder=folder)
    return str(folder / "store")


@pytest.mark.parametrize("case", ENTERED, ids=str)
def test_a_grown_stages_state_is_the_map_applied_whole(case: Case, schedule: Schedule, store: str) -> None:
    """Every state, bit for bit, whatever slices the workers asked for."""
    stage = case.of(make_plan(schedule).staged.stages[1])
    source, found, rules = opened(store, case.optimizer), opened(store, str(case)), rules_of(stage)
    grown = Grown(rules, source.read, stage.seed)
    assert found.states == ("fp32", *stage.training.optimizer.moments)
    for rule in rules:
        for state in found.states:
            whole, held = (take(rule.target, state, 0, rule.numel) for take in (grown.slice, found.read))
            np.testing.assert_array_equal(held, whole, err_msg=f"{state} of {rule.target}")
            assert state == "fp32" or held.any() == (rule.moments == "copy")
    assert found.steps == grown_steps(rules, source.steps)
    assert {rule.moments for rule in rules} == ({"copy"} if case.optimizer_state == "grow" else {"zeros"})


@pytest.mark.parametrize("case", [case for cases in ALIKE.values() for case in cases[1:]], ids=str)
def test_new_elements_are_found_in_every_layout(case: Case, store: str) -> None:
    """Their own count and rate lead to one model, whole, partitioned or cut."""
    reference = replace(case, zero_stage=0)
    assert furthest(opened(store, "trained", str(case)), opened(store, "trained", str(reference))) < 2e-6


@pytest.mark.parametrize("name", UNLIKE)
def test_they_do_make_a_difference(name: str, store: str) -> None:
    assert furthest(opened(store, "trained", name), opened(store, "trained", str(ALIKE["adamw"][0]))) > 1e-3


@pytest.mark.parametrize("zero_stage", ONE_STEP)
def test_old_elements_see_the_plain_rate(zero_stage: int, schedule: Schedule, store: str) -> None:
    """After one step, for which all gradients were the same."""
    plain, rewarmed = (opened(store, "once", str(case)) for case in ONE_STEP[zero_stage])
    rules = rules_of(ONE_STEP[zero_stage][0].of(make_plan(schedule).staged.stages[1]))
    for rule in rules:
        new = is_new(rule, 0, rule.numel)
        one, other = (checkpoint.read(rule.target, "fp32", 0, rule.numel) for checkpoint in (plain, rewarmed))
        np.testing.assert_array_equal(one[~new], other[~new], err_msg=rule.target)
        assert (one[new] != other[new]).mean() > 0.5, rule.target


# --- whole jobs -----------------------------------------------------------------------------------

REWARMED = {"rewarm": {"tokens": 400}}
# Growths, and the training that they grow in.
GROWN = {
    "in width": ({"operator": "duplicate", **REWARMED}, WIDE, {}),
    "in width, with no state": ({"operator": "rms", "optimizer_state": "reset", **REWARMED}, WIDE, {"zero_stage": 3}),
    "in depth": ({"operator": "identity", **REWARMED}, {"num_layers": 4}, {"zero_stage": 3}),
    "with momentum": ({"operator": "rms", **REWARMED}, WIDE, {"optimizer": {"name": "sgd", "lr": 2e-3}}),
}
# 300 and 600 tokens into the second stage: the rate of the new rises, and falls.
STOPS = (5, 6)


class Killed(BaseException):
    """Stands for the end of a process between two messages."""


def run_all(jobs: dict[str, tuple[Job, ...]], stops: dict[str, int]) -> None:
    """Every job in one worker process; those with a stop twice, the first time up to that many messages "saved"."""
    for name, parts in jobs.items():
        for stop in [stops[name], None] if name in stops else [None]:
            run_until(parts, stop)


def run_until(jobs: tuple[Job, ...], stop: int | None) -> None:
    said = []

    def send(what: str, key: str, content: object) -> None:
        said.append(what)
        if said.count("saved") == stop:
            raise Killed

    try:
        for job in jobs:
            run_job(job, send)
    except Killed:
        pass


@dataclass(frozen=True)
class Jobs:
    """What ran, by name, and the folder of all stores."""

    stages: dict[str, tuple[StagePlan, ...]]
    folder: Path

    def checkpoint(self, store: str, key: str) -> Checkpoint:
        return Checkpoint(Store(open_folder(self.folder / store)).finished_checkpoint(key))

    def losses(self, name: str, store: str) -> list[float]:
        """Of all points and evaluations of all stages."""
        records = [Store(open_folder(self.folder / store)).record(stage.key) for stage in self.stages[name]]
        return [point.loss for record in records for point in (*record.train, *record.evaluations)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder, text = tmp_path_factory.mktemp("jobs"), tmp_path_factory.mktemp("job-text")
    stages = {
        name: make_plan(two_stages(text, {"model": {"num_layers": 2, **model}, "grow": grow}, training)).staged.stages
        for name, (grow, model, training) in GROWN.items()
    }
    stages["halves"] = (stages["in width"][0], *halves(stages["in width"][1]))
    stages["whole"] = (stages["in width"][0], without_rewarm(stages["in width"][1]))
    other = {"model": {"num_layers": 2}, "training": {"optimizer": {"name": "sgd", "lr": 1e-2}}}
    stages["another optimizer"] = make_plan(two_stages(text, other)).staged.stages
    jobs: dict[str, tuple[Job, ...]] = {}
    for name, chain in stages.items():
        for stop in (0, *STOPS) if name in GROWN else (0,):
            store = f"{folder}/{name}-{stop}"
            jobs[f"{name}-{stop}"] = tuple(Job((stage,), store) for stage in chain)
    first, *rest = stages["halves"]
    jobs["together"] = (Job((first,), f"{folder}/together"), Job(tuple(rest), f"{folder}/together"))
    stops = {f"{name}-{stop}": stop for name in GROWN for stop in STOPS}
    run_workers(1, run_all, jobs, stops, folder=folder / "processes")
    return Jobs(stages, folder)


def without_rewarm(stage: StagePlan) -> StagePlan:
    return replace(stage, key="whole", growth=replace(stage.growth, rewarm=None))


def halves(whole: StagePlan) -> tuple[StagePlan, StagePlan]:
    """A grown stage without re-warming, cut after its third step; a worker may go on with the second at once."""
    plain = without_rewarm(whole)
    first = replace(plain, key="first half", steps=3)
    second = replace(
        plain, key="second half", parent_key=first.key, parent_shape=whole.shape, growth=None, steps=whole.steps - 3,
        start_steps=first.start_steps + 3, start=first.end, start_flops=first.end_flops,
    )  # fmt: skip
    return first, second


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", GROWN)
def test_stopped_while_what_is_new_warms_up_and_started_again_gives_the_same_bits(
    ran: Jobs, name: str, stop: int
) -> None:
    assert ran.losses(name, f"{name}-{stop}") == ran.losses(name, f"{name}-0")


def test_what_is_new_goes_on_counting_in_the_next_stage_whoever_goes_on(ran: Jobs) -> None:
    """The same worker, with the model it has, or another one, from the checkpoint: as in one stage."""
    assert ran.losses("halves", "together") == ran.losses("halves", "halves-0")
    whole = ran.checkpoint("whole-0", "whole")
    assert any(entry.head_starts for entry in whole.manifest.parameters)
    for store in ("together", "halves-0"):
        assert differences(whole, ran.checkpoint(store, "second half")) == []


def test_another_kind_of_optimizer_starts_with_the_weights_alone(ran: Jobs) -> None:
    first, second = (
        Checkpoint(Store(open_folder(ran.folder / "another optimizer-0")).finished_checkpoint(stage.key))
        for stage in ran.stages["another optimizer"]
    )
    assert (first.states, second.states) == (("fp32", "exp_avg", "exp_avg_sq"), ("fp32", "momentum_buffer"))
    assert (set(first.steps.values()), set(second.steps.values())) == ({8}, {12})
    before, after = (
        Store(open_folder(ran.folder / "another optimizer-0")).record(stage.key)
        for stage in ran.stages["another optimizer"]
    )
    assert after.evaluations[0].loss == pytest.approx(before.eval_loss, rel=1e-6)
