"""`training.deterministic` on CPUs, whose bits are the same every time: torch refuses nothing that raystage computes.

GPUs have not been tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import run_workers
from factories import make_schedule
from raystage.config.schedule import Schedule
from raystage.train import worker
from staged_runs import carry_out, losses, records_of

pytestmark = pytest.mark.end_to_end

LAYOUTS = [(3, "bf16"), (0, "fp32"), (1, "bf16"), (2, "fp32")]


def carry_out_each(schedules: list[Schedule], store: str, has_nan: bool) -> list[tuple[bool, bool]]:
    """Whether torch was deterministic at the end of each, and filled new memory.

    has_nan: new memory is full of NaN, so that whoever reads what nobody has written is found.
    """
    if has_nan:
        train_stages = worker.train_stages

        def train(*arguments: Any) -> None:
            torch.utils.deterministic.fill_uninitialized_memory = True
            train_stages(*arguments)

        worker.train_stages = train
    found = []
    for schedule in schedules:
        carry_out(schedule, store)
        fills = torch.utils.deterministic.fill_uninitialized_memory
        found.append((torch.are_deterministic_algorithms_enabled(), fills))
    return found


@pytest.mark.parametrize(
    ("workers", "layouts"), [(1, LAYOUTS[:1]), pytest.param(2, LAYOUTS, marks=pytest.mark.drill)], ids=["one", "many"]
)
def test_it_changes_no_bits_on_cpus(tmp_path: Path, workers: int, layouts: list[tuple[int, str]]) -> None:
    (texts := tmp_path / "texts").mkdir()
    schedules = [
        make_schedule(texts, training={"workers": workers, "zero_stage": zero, "precision": precision,
                                       "deterministic": deterministic})
        for zero, precision in layouts for deterministic in (True, False)
    ]  # fmt: skip
    store = str(tmp_path / "store")
    are_on = run_workers(workers, carry_out_each, schedules, store, True, folder=tmp_path / "workers")
    assert are_on == [[(True, True), (False, True)] * len(layouts)] * workers
    found = [losses(records_of(schedule, store)) for schedule in schedules]
    assert found[::2] == found[1::2]


def test_new_memory_is_not_filled(tmp_path: Path) -> None:
    """DeepSpeed asks for buckets of gigabytes in every step, and uses a part of them."""
    (texts := tmp_path / "texts").mkdir()
    schedule = make_schedule(texts, training={"deterministic": True})
    found = run_workers(1, carry_out_each, [schedule], str(tmp_path / "store"), False, folder=tmp_path / "workers")
    assert found == [[(True, False)]]
