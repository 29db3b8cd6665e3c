"""The networks of raystage's own, trained on real workers: the laws that language models keep, and their buffers."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from deepspeed import comm

from distributed import run_workers
from networks import MODELS, TRAINING, saved, schedule_of
from raystage.config.schedule import Schedule, parse
from raystage.files.filesystem import open_folder
from raystage.models.shape import buffers, parameters
from raystage.planning.build import make_plan
from raystage.storage.store import Store
from raystage.tools.export import ExportOptions, export
from raystage.tools.grow import open_source
from raystage.train.worker import Job, run_job
from staged_runs import carry_out, carry_out_all, losses, records_of, train

pytestmark = pytest.mark.end_to_end

# From one ZeRO stage into another, through the growth: every one is killed in and resumed, left and entered.
PLAIN, OTHER = "cnn, ZeRO 0 to 1, fp32", "cnn, ZeRO 2 to 3, fp32"
CASES = {
    PLAIN: ("cnn", 0, 1, "fp32"),
    OTHER: ("cnn", 2, 3, "fp32"),
    "cnn, ZeRO 1 to 2, bf16": ("cnn", 1, 2, "bf16"),
    "cnn, ZeRO 3 to 0, bf16": ("cnn", 3, 0, "bf16"),
    "mlp, ZeRO 1 to 3, fp32": ("mlp", 1, 3, "fp32"),
    "mlp, ZeRO 2 to 0, bf16": ("mlp", 2, 0, "bf16"),
    "lstm, ZeRO 1 to 3, fp32": ("lstm", 1, 3, "fp32"),
    "lstm, ZeRO 2 to 0, bf16": ("lstm", 2, 0, "bf16"),
}
WORKERS = 2
# What has to change nothing.
VARIANTS = {
    "recomputed": (PLAIN, {"activation_checkpointing": True}),
    "offloaded": (OTHER, {"offload_optimizer": "cpu"}),
}


def schedule_for(folder: Path, case: str, **training: object) -> Schedule:
    family, before, after, precision = CASES[case]
    stages = [{"training": {"zero_stage": stage}} for stage in (before, after)]
    return schedule_of(folder, family, stages, wider=True, **{"workers": WORKERS, "precision": precision, **training})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def crossed(folder: Path) -> dict[str, Schedule]:
    """All cases, trained in one go and then again from within each stage."""
    schedules = {case: schedule_for(folder, case) for case in CASES}
    variants = {name: schedule_for(folder, case, **changes) for name, (case, changes) in VARIANTS.items()}
    run_workers(WORKERS, whole_and_killed, schedules, variants, str(folder), folder=folder / "processes")
    return schedules | variants


def whole_and_killed(schedules: dict[str, Schedule], variants: dict[str, Schedule], folder: str) -> None:
    """On one of the workers: every schedule, and each of its stages from what a kill after its first save leaves."""
    for name, schedule in variants.items():
        carry_out(schedule, f"{folder}/whole/{name}")
    for case, schedule in schedules.items():
        train_and_keep(schedule, f"{folder}/whole/{case}", f"{folder}/killed/{case}")
        if case == PLAIN and comm.get_rank() == 0:
            shutil.copytree(f"{folder}/killed/{case}", f"{folder}/resumable")
        comm.barrier()
        for stage in make_plan(schedule).staged.stages:
            said = carry_out(schedule, f"{folder}/killed/{case}/{stage.key}")
            assert "resumed" in said or comm.get_rank()


def train_and_keep(schedule: Schedule, store: str, copies: str) -> None:
    """Every stage, and a copy of the store as it is after the stage's first checkpoint."""

    def send(what: str, key: str, content: object) -> None:
        if what == "saved" and not Path(copies, key).exists():
            shutil.copytree(store, f"{copies}/{key}")

    for stage in make_plan(schedule).staged.stages:
        run_job(Job((stage,), store), send)
    comm.barrier()


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_has_the_same_bits(crossed: dict[str, Schedule], folder: Path, case: str) -> None:
    """Weights, moments and buffers, of both stages."""
    whole = saved(crossed[case], folder / "whole" / case)
    for number, (stage, one) in enumerate(zip(make_plan(crossed[case]).staged.stages, whole, strict=True)):
        other = saved(crossed[case], folder / "killed" / case / stage.key)[number]
        trained = {(row.name, state) for row in parameters(stage.shape) for state in ("fp32", "exp_avg", "exp_avg_sq")}
        assert one.keys() == other.keys() == trained | {(row.name, "fp32") for row in buffers(stage.shape)}
        assert all(np.array_equal(one[place], other[place]) for place in one)


@pytest.mark.parametrize("case", CASES)
def test_a_growth_between_zero_stages_keeps_the_function(crossed: dict[str, Schedule], folder: Path, case: str) -> None:
    growth = records_of(crossed[case], str(folder / "whole" / case))[1].growth.certificate
    near = 1e-4 if CASES[case][3] == "fp32" else 0.05
    assert growth.eval_loss_after == pytest.approx(growth.eval_loss_before, abs=near)
    assert growth.exact


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_zero_stage_trains_the_same_network(crossed: dict[str, Schedule], folder: Path, precision: str) -> None:
    """Two under one precision, then the other two: running statistics, too."""
    near = 1e-4 if precision == "fp32" else 0.05
    cases = [case for case, (family, *_, kind) in CASES.items() if (family, kind) == ("cnn", precision)]
    both = (saved(crossed[case], folder / "whole" / case) for case in cases)
    for one, other in zip(*both, strict=True):
        for place in one:
            if place[1] == "fp32":
                np.testing.assert_allclose(other[place], one[place], rtol=0, atol=near, err_msg=place[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_changes_nothing(crossed: dict[str, Schedule], folder: Path, variant: str) -> None:
    """Activations that are computed a second time are not measured a second time."""
    plain, other = (saved(crossed[case], folder / "whole" / case) for case in (VARIANTS[variant][0], variant))
    for one, same in zip(plain, other, strict=True):
        for place in one:
            np.testing.assert_allclose(same[place], one[place], rtol=0, atol=1e-6, err_msg=place[0])


def test_another_number_of_workers_goes_on(crossed: dict[str, Schedule], folder: Path) -> None:
    """From within the second stage: with the weights and the statistics that two workers have saved."""
    schedule = crossed[PLAIN]
    key = make_plan(schedule).staged.stages[1].key
    store = shutil.copytree(folder / "resumable" / key, folder / "three")
    run_workers(3, carry_out_all, {"": schedule}, {"": str(store)}, folder=folder / "processes-three")
    two = saved(schedule, folder / "whole" / PLAIN)[1]
    for place, values in saved(schedule, store)[1].items():
        if place[1] == "fp32":
            np.testing.assert_allclose(values, two[place], rtol=0, atol=1e-4, err_msg=place[0])


def test_another_head_starts_from_an_exported_network(crossed: dict[str, Schedule], folder: Path) -> None:
    """With a rate of nearly nothing the body ends as it began: as a classifier of images, which makes images now."""
    key = make_plan(crossed[PLAIN]).staged.stages[1].key
    exported = folder / "exported"
    source = open_source(key, Store(open_folder(str(folder / "whole" / PLAIN))))
    export(source, open_folder(str(exported)), ExportOptions())
    schedule = started_from(str(exported), crossed[PLAIN])
    train(schedule, folder / "started")
    before, (after,) = saved(crossed[PLAIN], folder / "whole" / PLAIN)[1], saved(schedule, folder / "started")
    body = [place for place in after if place[1] == "fp32" and "decoder" not in place[0]]
    assert len(body) == len([place for place in before if place[1] == "fp32"]) - 2
    for place in body:
        if "running" not in place[0]:
            np.testing.assert_allclose(after[place], before[place], rtol=0, atol=1e-6, err_msg=place[0])


def started_from(path: str, like: Schedule) -> Schedule:
    shape = make_plan(like).staged.stages[1].shape
    stage = {"name": "images", "until": {"samples": 12}}
    model = {"family": "cnn", "num_layers": shape.num_layers, "hidden_size": shape.hidden_size, "ffn_size": 6}
    return parse({
        "name": "started", "init": {"from": path}, "model": model, "objective": "denoising", "stages": [stage],
        "data": {"source": "arrays", "path": like.data.path[0], "validation_fraction": 0.3},
        "training": {**TRAINING, "optimizer": {"lr": 1e-9, "weight_decay": 0}, "workers": 1},
    })  # fmt: skip


# --- any number of workers --------------------------------------------------------------------

NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def numbered(folder: Path) -> dict[tuple[str, int], Schedule]:
    schedules = {(family, workers): schedule_of(folder, family, workers=workers, zero_stage=1)
                 for family, workers in product(MODELS, NUMBERS)}  # fmt: skip
    for workers in NUMBERS:
        mine = {family: schedules[family, workers] for family in MODELS}
        stores = {family: str(folder / f"{family}-{workers}") for family in MODELS}
        run_workers(workers, carry_out_all, mine, stores, folder=folder / f"processes-{workers}")
    return schedules


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_trains_the_same(
    numbered: dict[tuple[str, int], Schedule], folder: Path, family: str, workers: int
) -> None:
    """Their micro batches hold the same samples, so the running statistics are the same means over all of them."""
    two, other = numbered[family, 2], numbered[family, workers]
    stores = folder / f"{family}-2", folder / f"{family}-{workers}"
    for one, same in zip(losses(records_of(two, str(stores[0]))), losses(records_of(other, str(stores[1]))),
                         strict=True):  # fmt: skip
        assert same == pytest.approx(one, rel=1e-4)
    for one, same in zip(saved(two, stores[0]), saved(other, stores[1]), strict=True):
        for place in one:
            if place[1] == "fp32":
                np.testing.assert_allclose(same[place], one[place], rtol=0, atol=1e-4, err_msg=place[0])


def test_running_statistics_are_measured(numbered: dict[tuple[str, int], Schedule], folder: Path) -> None:
    _, second = saved(numbered["cnn", 2], folder / "cnn-2")
    means = [values for (name, _), values in second.items() if name.endswith("running_mean")]
    assert len(means) == 5
    assert all(np.abs(one).max() > 1e-3 for one in means)
