"""A worker's peak memory while it enters a stage and saves it: within its own partition and one parameter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from memory_peaks import Peaks, watched
from raystage.models.shape import num_params, parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's"),
]

WORKERS = 2
MIB = 2**20
MODEL = {"num_layers": 4, "hidden_size": 512, "num_heads": 8, "ffn_size": 1536, "vocab_size": 8192}
TARGETS = {"same": ({}, "identity"), "deeper": ({"num_layers": 8}, "stack"), "wider": ({"ffn_size": 2048}, "duplicate")}
# Pieces that are read, grown (1 MiB) and gathered (16 MiB) at a time, and the allocators' pools.
SLACK = 32 * MIB
CASES = [(1, "deeper"), (1, "wider"), (3, "same"), (3, "wider")]


def stage_of(folder: Path, changes: dict) -> StagePlan:
    folder.mkdir(exist_ok=True)
    stages = [{"name": "only", "until": {"steps": 2}}]
    schedule = make_schedule(folder, model={**MODEL, **changes}, training={"workers": WORKERS}, stages=stages)
    return make_plan(schedule.model_copy(update={"baseline": None})).staged.stages[0]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StagePlan]:
    folder = tmp_path_factory.mktemp("text")
    return {name: stage_of(folder, changes) for name, (changes, _) in TARGETS.items()}


@pytest.fixture(scope="module")
def peaks(stages: dict[str, StagePlan], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, list[Peaks]]:
    folder = tmp_path_factory.mktemp("store")
    targets = [(stages[name], TARGETS[name][1], zero_stage) for zero_stage, name in CASES]
    found = run_workers(
        WORKERS, watched, stages["same"], targets, str(folder), folder=folder / "processes", start="afresh"
    )
    return dict(zip(CASES, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize(("zero_stage", "name"), CASES)
def test_loading_and_saving_hold_a_partition_and_a_parameter(
    stages: dict[str, StagePlan], peaks: dict[tuple, list[Peaks]], zero_stage: int, name: str
) -> None:
    shape = stages[name].shape
    largest = 4 * max(parameter.numel for parameter in parameters(shape))
    moments = 2 * 4 * num_params(shape) // WORKERS  # made while they are filled
    for found in peaks[zero_stage, name]:
        print(
            f"ZeRO {zero_stage}, {name}, build, fill and save in MiB:",
            [found.build // MIB, found.fill // MIB, found.save // MIB],
        )
        assert found.fill < moments + largest + SLACK
        assert found.save < largest + SLACK


@pytest.mark.parametrize("name", [name for zero_stage, name in CASES if zero_stage == 1])
def test_under_zero_1_every_worker_ends_with_all_the_weights(peaks: dict[tuple, list[Peaks]], name: str) -> None:
    """They are gathered in several pieces: each worker's own part is there, and all workers have the same."""
    checksums = {found.weights for found in peaks[1, name]}
    assert len(checksums) == 1
    assert checksums != {""}
