"""What `benchmarks/gpu.py` finds, on a GPU with what must hold there, and on a CPU as far as that goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/gpu.json"
# The whole takes less than 8 minutes on one GPU.
LIMIT_SECONDS = 900

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.timeout(LIMIT_SECONDS),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; torch finds none"),
]
Row = dict[str, Any]


def measured(out: Path, *options: str) -> list[Row]:
    """The lines of one run of the benchmark; it prints them as it goes."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--out", out, *options]
    subprocess.run(command, check=True, timeout=LIMIT_SECONDS)
    return json.loads(out.read_text())["rows"]


def of_part(rows: list[Row], part: str) -> list[Row]:
    found = [row for row in rows if row["part"] == part]
    assert found
    assert not [row for row in found if "failed" in row]
    return found


class TestOnAGpu:
    pytestmark = on_gpu

    @pytest.fixture(scope="class")
    def rows(self) -> list[Row]:
        return measured(OUT)

    def test_the_peak_memory_is_within_a_tenth_of_the_plan(self, rows: list[Row]) -> None:
        own = [row for row in of_part(rows, "speed") if "estimated_bytes" in row]
        assert all(0.9 < row["peak_of_estimate"] < 1.1 for row in own), own

    def test_energy_and_utilization_are_measured(self, rows: list[Row]) -> None:
        own = [row for row in of_part(rows, "speed") if "estimated_bytes" in row]
        assert all(row["joules"] > 0 and 0 < row["mfu"] < 1 for row in own), own

    def test_growth_between_zero_stages_keeps_the_function(self, rows: list[Row]) -> None:
        grown = [row for row in of_part(rows, "zero") if row["loss_at_growth"]]
        assert len(grown) == 6
        for row in grown:
            before, after = row["loss_at_growth"]
            assert after == pytest.approx(before, abs=2e-2 if "bf16" in row["what"] else 1e-4), row

    def test_an_offloaded_optimizer_needs_less_of_the_device(self, rows: list[Row]) -> None:
        kept, offloaded = of_part(rows, "offload")
        assert offloaded["peak_bytes"] < kept["peak_bytes"]
        assert offloaded["loss"] == pytest.approx(kept["loss"], abs=2e-2)

    def test_a_killed_worker_changes_no_bit(self, rows: list[Row]) -> None:
        (row,) = of_part(rows, "resume")
        assert row["restarts"]
        assert row["same_losses"]
        assert row["same_bits"]


@pytest.mark.drill
@pytest.mark.timeout(LIMIT_SECONDS)
def test_the_same_way_works_on_a_cpu(tmp_path: Path) -> None:
    """So that a minute on a GPU is not spent on finding mistakes of the benchmark."""
    rows = measured(tmp_path / "cpu.json", "--cpu", "--steps", "20", "--seconds", str(LIMIT_SECONDS))
    for part in ("speed", "zero", "offload", "resume", "checkpoints", "memory"):
        of_part(rows, part)
    (killed,) = [row for row in of_part(rows, "resume") if "restarts" in row]
    assert killed["restarts"]
    assert killed["same_losses"]
    assert killed["same_bits"]
