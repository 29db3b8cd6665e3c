"""A sweep carried out, as far as it needs no cluster: the room that it asks for, and what it says of failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raystage.sweeps.reports.summary import failure
from raystage.sweeps.search import room
from raystage.sweeps.trials import plan_sweep
from sweep_results import make_row, swept
from sweeps import make_sweep

WORKERS = "training.workers: {grid: [1, 2]}"


@pytest.mark.parametrize(("at_once", "cpus"), [(1, 2), (2, 2 * 2), (500, 2 * 2)])
def test_a_local_cluster_has_room_for_all_trials_at_a_time(tmp_path: Path, at_once: int, cpus: int) -> None:
    """Two trials of up to two workers each. The trials' own processes take no CPU."""
    plan = plan_sweep(make_sweep(tmp_path, WORKERS, search={"max_concurrent": at_once}))
    assert room(plan) == (cpus, 0)


@pytest.mark.parametrize(
    ("states", "problem"),
    [
        (("FINISHED", "ABORTED"), None),
        (("FINISHED", "ERRORED", "ERRORED"), "2 of its 3 trials failed, the first of them trial 1: why 1"),
        (("ERRORED", "ABORTED"), "none of its 2 trials finished: why 0"),
        (("ABORTED",), "none of its 1 trials finished: all were stopped"),
    ],
)
def test_a_sweep_says_that_trials_failed(tmp_path: Path, states: tuple[str, ...], problem: str | None) -> None:
    report = swept(plan_sweep(make_sweep(tmp_path)), [])
    rows = tuple(
        make_row(number, state=state, error=f"why {number}" if state == "ERRORED" else None)
        for number, state in enumerate(states)
    )
    assert failure(replace(report, trials=rows)) == (problem and f"sweep search: {problem}")
