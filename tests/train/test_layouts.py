"""Checkpoints on real workers (gloo processes, DeepSpeed), from any layout into any other, bit for bit.

All that needs processes runs once, in a few rounds; the tests look at what came out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distributed import run_workers
from layouts import Layout, Pair, Run, last_stage, make_schedules, place_of, train_and_load
from raystage.config.schedule import Schedule
from raystage.files.filesystem import Folder, open_folder
from raystage.models.shape import parameters
from raystage.storage.checkpoint import Checkpoint

# All rounds count as the first test's: six minutes where the load is 13 on two cores.
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1200)]

# Three workers neither divide the batch nor any parameter evenly.
SAVED = [
    Layout(2, 0, "fp32"),
    Layout(2, 1, "fp32"),
    Layout(2, 2, "fp32"),
    Layout(2, 3, "fp32"),
    Layout(2, 0, "bf16"),
    Layout(2, 1, "bf16"),
    Layout(2, 3, "bf16"),
    Layout(2, 0, "fp32", "sgd"),
    Layout(2, 2, "fp32", "sgd"),
    Layout(2, 3, "bf16", "sgd"),
    Layout(2, 1, "fp32", offload="cpu"),
    Layout(2, 2, "bf16", offload="cpu"),
    Layout(2, 3, "fp32", offload="cpu"),
]
LOADED = [
    Layout(3, 0, "fp32"),
    Layout(3, 1, "fp32"),
    Layout(3, 2, "fp32"),
    Layout(3, 3, "fp32"),
    Layout(3, 1, "bf16"),
    Layout(3, 2, "bf16"),
    Layout(3, 1, "fp32", "sgd"),
    Layout(3, 3, "fp32", "sgd"),
    Layout(3, 1, "bf16", "sgd"),
    Layout(3, 1, "bf16", offload="cpu"),
    Layout(3, 2, "fp32", offload="cpu"),
    Layout(3, 3, "bf16", offload="cpu"),
    Layout(3, 2, "fp32", "sgd", offload="cpu"),
]
# One worker on either side, and what is particular to a model.
OTHERS = [
    Pair("plain", Layout(1, 0, "fp32"), Layout(3, 3, "bf16")),
    Pair("plain", Layout(1, 1, "bf16"), Layout(3, 1, "fp32")),
    Pair("plain", Layout(1, 3, "fp32", offload="cpu"), Layout(3, 2, "fp32")),
    Pair("plain", Layout(1, 3, "fp32", offload="cpu"), Layout(1, 0, "bf16")),
    Pair("plain", Layout(2, 1, "fp32"), Layout(1, 3, "bf16")),
    Pair("plain", Layout(2, 3, "bf16"), Layout(1, 1, "fp32")),
    Pair("plain", Layout(2, 2, "bf16", offload="cpu"), Layout(1, 0, "fp32")),
    Pair("plain", Layout(2, 0, "fp32", "sgd"), Layout(1, 2, "bf16", "sgd", offload="cpu")),
    Pair("tied", Layout(2, 1, "fp32"), Layout(3, 3, "bf16", offload="cpu")),
    Pair("tied", Layout(2, 3, "bf16"), Layout(3, 1, "fp32")),
    Pair("tied", Layout(2, 2, "fp32", offload="cpu"), Layout(1, 3, "bf16")),
    Pair("tied", Layout(1, 3, "fp32"), Layout(4, 0, "fp32")),
    Pair("tied", Layout(4, 3, "fp32"), Layout(3, 2, "bf16")),
    Pair("tiny", Layout(1, 0, "fp32"), Layout(4, 3, "fp32")),
    Pair("tiny", Layout(1, 3, "fp32"), Layout(4, 1, "bf16")),
    Pair("tiny", Layout(1, 1, "bf16"), Layout(4, 2, "fp32", offload="cpu")),
    Pair("tiny", Layout(4, 3, "fp32"), Layout(1, 0, "fp32")),
    Pair("tiny", Layout(4, 3, "bf16", offload="cpu"), Layout(4, 1, "fp32")),
    Pair("tiny", Layout(4, 1, "fp32"), Layout(4, 3, "bf16", offload="cpu")),
    Pair("tiny", Layout(4, 2, "bf16", offload="cpu"), Layout(1, 3, "fp32")),
    Pair("tiny", Layout(4, 0, "fp32"), Layout(3, 3, "fp32")),
    Pair("grown", Layout(2, 1, "fp32"), Layout(3, 3, "bf16")),
    Pair("grown", Layout(2, 3, "bf16"), Layout(3, 1, "fp32", offload="cpu")),
    Pair("grown", Layout(2, 0, "bf16"), Layout(4, 2, "fp32")),
    Pair("grown", Layout(1, 3, "fp32"), Layout(4, 1, "bf16")),
    Pair("grown", Layout(4, 1, "fp32"), Layout(1, 3, "fp32", offload="cpu")),
    Pair("grown", Layout(4, 3, "fp32", offload="cpu"), Layout(1, 0, "fp32")),
]
CROSSED = [
    Pair("plain", source, target) for target in LOADED for source in SAVED if source.optimizer == target.optimizer
]
# Every fifth is in the suite, the others are a drill: the format between them knows no layout.
EVERY = 5


def is_in_suite(pair: Pair) -> bool:
    return pair in OTHERS or (SAVED.index(pair.source) + LOADED.index(pair.target)) % EVERY == 0


PAIRS = [*CROSSED, *OTHERS]
by_pair = pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, id=str(pair), marks=[] if is_in_suite(pair) else [pytest.mark.drill]) for pair in PAIRS],
)
# Trained like the others, with something more in the schedule: it must change nothing.
VARIANTS = {
    Run("plain", Layout(2, 1, "fp32"), "activation checkpointing"): {"activation_checkpointing": True},
    Run("plain", Layout(2, 3, "fp32"), "activation checkpointing"): {"activation_checkpointing": True},
    Run("plain", Layout(2, 2, "fp32"), "one sequence at a time"): {"micro_batch_size": 1},
    Run("plain", Layout(2, 3, "fp32"), "options of DeepSpeed"): {
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0, "sub_group_size": 1000}}
    },
}
RUNS = list(dict.fromkeys([*(Run("plain", layout) for layout in LOADED), *(pair.before for pair in PAIRS)]))
FP32, BF16 = ([run for run in RUNS if run.layout.precision == precision] for precision in ("fp32", "bf16"))
# What the other layouts of each model and optimizer are compared with.
REFERENCES = {(run.model, run.layout.optimizer): run for run in reversed(FP32)}
# The numbers of workers, in an order in which every source is saved before it is loaded.
ROUNDS = (2, 1, 4, 3, 1)
# Optimizer steps that parameters have seen: all of them two; of a grown model the old ones four, the new ones two.
STEPS = {"plain": {2}, "tied": {2}, "tiny": {2}, "grown": {2, 4}}


@pytest.fixture(scope="module")
def schedules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Schedule]:
    return make_schedules(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("rounds") / "store")


@pytest.fixture(scope="module")
def rounds(schedules: dict[str, Schedule], store: str, request: pytest.FixtureRequest) -> dict:
    """What every run saw in training, and every pair's evaluation after it was loaded, of the pairs that are tested."""
    tested = {item.callspec.params.get("pair") for item in request.session.items if hasattr(item, "callspec")}
    found: dict = {}
    for world in ROUNDS:
        runs = [(run, {}) for run in RUNS] + list(VARIANTS.items())
        runs = [(run, more) for run, more in runs if run.layout.workers == world and run not in found]
        there = {*found, *(run for run, _ in runs)}
        pairs = [pair for pair in PAIRS if pair in tested and pair.target.workers == world and pair.before in there]
        pairs = [pair for pair in pairs if pair not in found]
        folder = open_folder(store).path + f"-{len(found)}"
        trained, loaded = run_workers(world, train_and_load, schedules, runs, pairs, store, folder=Path(folder))[0]
        found |= dict(zip((run for run, _ in runs), trained, strict=True)) | dict(zip(pairs, loaded, strict=True))
    return found


def states_of(folder: Folder, schedules: dict[str, Schedule], model: str) -> dict[tuple[str, str], np.ndarray]:
    opened, shape = Checkpoint(folder), last_stage(schedules, model).shape
    return {
        (p.name, state): opened.read(p.name, state, 0, p.numel) for p in parameters(shape) for state in opened.states
    }


@by_pair
def test_any_layout_loads_into_any_other_bit_for_bit(
    rounds: dict, store: str, schedules: dict[str, Schedule], pair: Pair
) -> None:
    places = place_of(pair.before, store), open_folder(store) / str(pair)
    before, after = (states_of(place, schedules, pair.model) for place in places)
    moments = {"adamw": {"exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}[pair.source.optimizer]
    assert {state for _, state in before} == {"fp32", *moments}
    assert all(values.any() for (_, state), values in before.items() if state in moments)
    for key, values in before.items():
        np.testing.assert_array_equal(after[key], values, err_msg=str(key))
    steps = [Checkpoint(place).steps for place in places]
    assert steps[0] == steps[1]
    assert set(steps[0].values()) == STEPS[pair.model]


def test_the_suite_saves_and_loads_every_layout() -> None:
    suite = list(filter(is_in_suite, CROSSED))
    assert {pair.source for pair in suite} == set(SAVED)
    assert {pair.target for pair in suite} == set(LOADED)


def test_models_are_what_the_pairs_need(schedules: dict[str, Schedule]) -> None:
    """`tied` has no head of its own, and four workers cannot each have a part of every parameter of `tiny`."""
    shapes = {model: last_stage(schedules, model).shape for model in schedules}
    names = {model: [parameter.name for parameter in parameters(shape)] for model, shape in shapes.items()}
    assert "lm_head.weight" in names["plain"]
    assert "lm_head.weight" not in names["tied"]
    assert sum(parameter.numel < 4 for parameter in parameters(shapes["tiny"])) >= 10


@by_pair
def test_the_loaded_model_computes_what_the_saved_one_did(rounds: dict, pair: Pair) -> None:
    """Weights the model computes with follow from the loaded ones: the small kept-whole ones of ZeRO 3 too."""
    tolerance = 1e-6 if pair.source.precision == pair.target.precision == "fp32" else 2e-3
    assert rounds[pair] == pytest.approx(rounds[pair.before].eval_loss, rel=tolerance)


@pytest.mark.parametrize("run", [*FP32, *VARIANTS], ids=str)
def test_every_layout_trains_alike(rounds: dict, run: Run) -> None:
    """10 sequences over 1 to 4 workers, in micro batches of 2: the same losses, the same model."""
    reference, found = rounds[REFERENCES[run.model, run.layout.optimizer]], rounds[run]
    assert found.losses == pytest.approx(reference.losses, rel=1e-6)
    assert found.eval_loss == pytest.approx(reference.eval_loss, rel=1e-6)


@pytest.mark.parametrize("run", BF16, ids=str)
def test_bf16_trains_close_to_fp32(rounds: dict, run: Run) -> None:
    reference, found = rounds[REFERENCES[run.model, run.layout.optimizer]], rounds[run]
    assert found.losses == pytest.approx(reference.losses, rel=5e-3)
    assert found.eval_loss == pytest.approx(reference.eval_loss, rel=5e-3)
    assert found.losses[1:] == sorted(found.losses[1:], reverse=True)
