"""Under ZeRO 3 no worker ever holds the whole model, from the first line of building it on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distributed import run_workers
from factories import make_schedule
from memory_peaks import built
from raystage.models.shape import num_params, parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's"),
]

WORKERS = 4
MIB = 2**20
# Many parameters of 4 MiB at most, 200 MiB in all: a parameter is much less than a partition, that much less than all.
MODEL = {"num_layers": 12, "hidden_size": 512, "num_heads": 8, "ffn_size": 2048, "vocab_size": 2048}
# What DeepSpeed reduces gradients in, of a size that does not depend on the model.
BUCKET_NUMEL = MIB
# Python's own, and the threads of gloo's groups.
SLACK = 16 * MIB
# glibc fills all that is asked for, and gives back all that is freed. Weights that nobody has written to yet would
# else take no memory on a CPU, though they would on a GPU.
COUNT_ALL = {"MALLOC_PERTURB_": "85", "MALLOC_MMAP_THRESHOLD_": "65536"}


def stage_of(folder: Path, num_layers: int) -> StagePlan:
    folder.mkdir()
    options = {"zero_optimization": {"reduce_bucket_size": BUCKET_NUMEL}}
    schedule = make_schedule(
        folder,
        model={**MODEL, "num_layers": num_layers},
        training={"workers": WORKERS, "zero_stage": 3, "deepspeed": options},
        stages=[{"name": "only", "until": {"steps": 2}}],
    )
    return make_plan(schedule.model_copy(update={"baseline": None})).staged.stages[0]


def test_zero_3_never_builds_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's peak is its part of the weights, of their fp32 copies and of the gradients, and a parameter or two:
    DeepSpeed gathers each parameter once to hang a hook on it, and gloo receives it into a copy."""
    stage, small = stage_of(tmp_path / "text", MODEL["num_layers"]), stage_of(tmp_path / "small", 1)
    for name, value in COUNT_ALL.items():
        monkeypatch.setenv(name, value)
    whole = 4 * num_params(stage.shape)
    partition = sum(3 * 4 * -(-parameter.numel // WORKERS) for parameter in parameters(stage.shape))
    largest = 4 * max(parameter.numel for parameter in parameters(stage.shape))
    for build, control in run_workers(WORKERS, built, small, stage, folder=tmp_path / "processes", start="afresh"):
        print(f"MiB: build {build // MIB}, partition {partition // MIB}, whole {whole // MIB}, alone {control // MIB}")
        assert control > 0.95 * whole  # a model that is built whole is seen
        assert build < partition + 3 * largest + 4 * BUCKET_NUMEL + SLACK < whole
