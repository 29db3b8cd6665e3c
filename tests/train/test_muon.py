"""Muon: its steps against torch's own, and on real workers (gloo processes, DeepSpeed) against a plain loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed import run_workers
from factories import make_schedule
from plain_training import GrownStart, evaluated, trained
from raystage.config.schedule import Schedule
from raystage.config.training import Optimizer
from raystage.files.filesystem import open_folder
from raystage.models.depth import hidden_matrices
from raystage.models.shape import parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store
from raystage.train.muon import MatrixPlace, Muon, orthogonalized
from raystage.train.worker import Job, run_job
from staged_runs import carry_out, records_of

OPTIONS = Optimizer(name="muon", lr=0.02, weight_decay=0.1)


def muon_of(tensors: list[torch.Tensor], dtype: torch.dtype) -> Muon:
    return Muon([{"params": tensors, "weight_decay": 0.1, "is_orthogonal": True}], OPTIONS, frozenset(), dtype)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_its_steps_are_those_of_torchs_own_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = muon_of([ours], torch.bfloat16)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        torchs.step()
    assert torch.linalg.norm(ours - theirs) <= 1e-3 * torch.linalg.norm(theirs - start)
    assert torch.equal(own.state[ours]["exp_avg"], torchs.state[theirs]["momentum_buffer"])


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(2)
    for shape in ((16, 16), (8, 40), (40, 8), (3, 12, 8)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.zeros(24, 96))
    weight.grad = torch.randn(24, 96)
    muon_of([weight], torch.float32).step()
    assert (weight / 0.02).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_slice_of_a_matrix_steps_as_in_the_whole() -> None:
    """The second of two workers' flat tensors, with the end of one matrix and the beginning of another."""
    torch.manual_seed(4)
    first, second = torch.randn(4, 6), torch.randn(5, 6)
    gradient, flat = torch.cat([first.flatten(), second.flatten()]), torch.nn.Parameter(torch.zeros(54))
    flat.grad = gradient
    own = muon_of([flat], torch.float32)
    own.bind({flat: (MatrixPlace((4, 6), 10, 24, 10, ((0, 24),)), MatrixPlace((5, 6), 0, 20, 24, ((24, 30),)))}, 1)
    own.step()
    wholes = [torch.nn.Parameter(torch.zeros_like(one)) for one in (first, second)]
    for whole, given in zip(wholes, (first, second), strict=True):
        whole.grad = given
    muon_of(wholes, torch.float32).step()
    expected = torch.cat([whole.detach().flatten() for whole in wholes])
    assert torch.equal(flat[10:44], expected[10:44])
    assert not flat[:10].any()
    assert not flat[44:].any()


def test_a_convolution_steps_as_a_matrix_with_a_row_for_each_channel() -> None:
    torch.manual_seed(5)
    kernels = torch.nn.Parameter(torch.zeros(6, 4, 3, 3))
    kernels.grad = torch.randn(6, 4, 3, 3)
    matrix = torch.nn.Parameter(torch.zeros(6, 36))
    matrix.grad = kernels.grad.flatten(1).clone()
    muon_of([kernels, matrix], torch.float32).step()
    assert torch.equal(kernels.flatten(1), matrix)
    assert matrix.any()


# --- on workers ---------------------------------------------------------------------------------

WORKERS = 3  # which divide neither the batch nor a matrix evenly
DEPTH = {"model": {"num_layers": 4}, "grow": {"operator": "stack"}}
WIDTH = {"model": {"num_layers": 2, "ffn_size": 32}, "grow": {"operator": "zero_pad"}}
REWARMED = {**WIDTH, "grow": {"operator": "zero_pad", "rewarm": {"tokens": 300}}}
CASES: dict[str, tuple[dict, dict]] = {
    **{f"ZeRO {zero_stage}": (DEPTH, {"zero_stage": zero_stage}) for zero_stage in (0, 1, 2, 3)},
    "ZeRO 1, bf16": (DEPTH, {"zero_stage": 1, "precision": "bf16"}),
    "ZeRO 3, in small groups": (
        DEPTH, {"zero_stage": 3, "deepspeed": {"zero_optimization": {"sub_group_size": 300}}}),
    "wider under ZeRO 2": (WIDTH, {"zero_stage": 2}),
    **{f"rewarmed under ZeRO {zero_stage}": (REWARMED, {"zero_stage": zero_stage}) for zero_stage in (0, 3)},
    "thawed, rates by depth": (
        {**DEPTH, "thaw": {"every": 100}}, {"zero_stage": 1, "optimizer": {"lr_by_depth": 0.7}}),
    "after adamw": (DEPTH, {"zero_stage": 1}),
    "before adamw": (DEPTH, {"zero_stage": 1, "optimizer": {"name": "adamw"}}),
}  # fmt: skip


def schedule_of(text: Path, name: str, workers: int = WORKERS) -> Schedule:
    second, training = CASES[name]
    alike = {"workers": workers, "gradient_clipping": 0.3, "optimizer": {"name": "muon", "lr": 5e-3},
             "checkpoint": {"every": 200}, "evaluate": {"tokens": 200}}  # fmt: skip
    first = {"optimizer": {"name": "adamw"}} if name == "after adamw" else {}
    stages = [
        {"name": "small", "model": {"num_layers": 2}, "until": {"tokens": 500}, "training": first},
        {"name": "full", "until": {"tokens": 600}, "training": training, **second},
    ]
    return make_schedule(text, stages=stages, training=alike, baseline=None)


def train_all(plans: dict[str, tuple[StagePlan, ...]], store: str) -> None:
    for stages in plans.values():
        run_job(Job(stages, store), lambda *message: None)


@dataclass(frozen=True)
class Runs:
    plans: dict[str, tuple[StagePlan, ...]]
    store: Store

    def end(self, name: str, index: int = 1) -> Checkpoint:
        return Checkpoint(self.store.finished_checkpoint(self.plans[name][index].key))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, text = tmp_path_factory.mktemp("muon"), tmp_path_factory.mktemp("text")
    plans = {name: make_plan(schedule_of(text, name)).staged.stages for name in CASES}
    run_workers(WORKERS, train_all, plans, str(folder / "store"), folder=folder / "processes")
    return Runs(plans, Store(open_folder(folder / "store")))


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", [name for name in CASES if name != "before adamw" and "rewarmed" not in name])
def test_workers_train_as_a_plain_loop_does(runs: Runs, name: str) -> None:
    """Also after a growth, whose map the momentum goes through like Adam's first moment."""
    stage = runs.plans[name][1]
    start, found = GrownStart(stage, runs.end(name, 0)), runs.end(name)
    # In bf16 the directions of small singular values are noise.
    weights, loss = (0.5, 1e-2) if stage.training.precision == "bf16" else (5e-3, 1e-4)
    plain = trained(stage, start)
    for one in parameters(stage.shape):
        expected = plain.get_parameter(one.name).detach().numpy().ravel()
        moved = expected - start.read(one.name, "fp32", 0, one.numel)
        left = found.read(one.name, "fp32", 0, one.numel) - expected
        assert np.linalg.norm(left) <= weights * np.linalg.norm(moved), one.name
    assert runs.store.record(stage.key).eval_loss == pytest.approx(evaluated(plain, stage), rel=loss)


@pytest.mark.end_to_end
def test_new_rows_of_old_matrices_have_a_rate_of_their_own(runs: Runs) -> None:
    """The same in slices of any layout; it moves the new rows more than the old ones."""
    names = ("rewarmed under ZeRO 0", "rewarmed under ZeRO 3", "wider under ZeRO 2")
    whole, cut, plain = map(runs.end, names)
    name, numel, old = "model.layers.0.mlp.up_proj.weight", 32 * 8, 16 * 8
    first, second, third = (one.read(name, "fp32", 0, numel) for one in (whole, cut, plain))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert np.linalg.norm((first - third)[old:]) > 2 * np.linalg.norm((first - third)[:old]) > 0


@pytest.mark.end_to_end
def test_matrices_of_layers_have_one_moment_and_the_rest_two(runs: Runs) -> None:
    stage, found = runs.plans["ZeRO 1"][1], runs.end("ZeRO 1")
    matrices = hidden_matrices(stage.shape)
    assert "model.embed_tokens.weight" not in matrices
    assert len(matrices) == 4 * 7
    for one in parameters(stage.shape):
        second = () if one.name in matrices else ("exp_avg_sq",)
        assert found.states_of(one.name) == ("fp32", "exp_avg", *second), one.name


@pytest.mark.end_to_end
def test_its_moments_are_taken_over_from_adamw_and_not_by_it(runs: Runs) -> None:
    steps = {name: set(runs.end(name).steps.values()) for name in ("after adamw", "before adamw")}
    assert steps == {"after adamw": {11}, "before adamw": {6}}


# Checkpoints come every 200 tokens: the second of the grown stage is its fourth of all.
STOPPED = ("ZeRO 1", "ZeRO 3", "thawed, rates by depth")


def stop_and_go_on(schedules: dict[str, Schedule], folder: str) -> None:
    for name, schedule in schedules.items():
        carry_out(schedule, f"{folder}/calm")
        carry_out(schedule, f"{folder}/{name}", "saved", 4)
        carry_out(schedule, f"{folder}/{name}")


@pytest.mark.end_to_end
def test_stopped_and_started_again_gives_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    schedules = {name: schedule_of(tmp_path / "text", name, workers=1) for name in STOPPED}
    run_workers(1, stop_and_go_on, schedules, str(tmp_path), folder=tmp_path / "processes")
    for name, schedule in schedules.items():
        calm, again = (records_of(schedule, f"{tmp_path}/{store}")[1] for store in ("calm", name))
        assert [point.loss for point in calm.train] == [point.loss for point in again.train]
        assert [point.loss for point in calm.evaluations] == [point.loss for point in again.evaluations]
