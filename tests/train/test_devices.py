"""Peak memory and speed of a device; energy of several workers: which of them reads which device, and the sum.

The counters are made up here: what a GPU's own says can only be seen on one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from factories import make_record, make_schedule
from raystage.planning.build import make_plan
from raystage.results.costs import minus, plus
from raystage.results.record import Progress, StageRecord
from raystage.train.devices import (
    EnergyCount,
    forget_peak_memory,
    open_meter,
    peak_flops_per_second,
    peak_memory_bytes,
    reads_device,
)

BLOCK_BYTES = 256 * 2**20


def test_the_peak_of_memory_counts_from_where_it_was_forgotten() -> None:
    """So that a stage's figure is its own, though a larger one came before in the same process."""
    forget_peak_memory()
    before = peak_memory_bytes()
    np.ones(BLOCK_BYTES, dtype=np.uint8)
    assert peak_memory_bytes() - before > 0.9 * BLOCK_BYTES
    forget_peak_memory()
    assert peak_memory_bytes() - before < 0.5 * BLOCK_BYTES


def test_no_peak_speed_is_made_up_for_a_cpu() -> None:
    assert peak_flops_per_second("fp32") is None


# --- energy ---------------------------------------------------------------------------------------


@dataclass
class Counter:
    name: str
    total: float

    def joules(self) -> float:
        return self.total


def workers(*meters: Counter | None) -> list[EnergyCount]:
    """One count for each, which hears of its own part of the sum alone."""
    names = [meter and meter.name for meter in meters]
    return [EnergyCount(meter, names, rank, lambda own: own) for rank, meter in enumerate(meters)]


def test_every_device_is_read_once_however_many_workers_share_it():
    names = ["a", "a", "b", "a", "b"]
    assert [reads_device(names, rank) for rank in range(5)] == [True, False, True, False, False]
    shared = Counter("a", 1000.0)
    first, second = workers(shared, shared)
    shared.total = 1250.0
    assert (first.since_last(), second.since_last()) == (250.0, 0.0)


def test_each_asking_begins_where_the_last_ended():
    meter = Counter("a", 5e6)
    (count,) = workers(meter)
    for total, used in ((5e6 + 10, 10), (5e6 + 10, 0), (5e6 + 40, 30)):
        meter.total = total
        assert count.since_last() == used


def test_the_sum_is_over_all_workers():
    meter = Counter("a", 0.0)
    count = EnergyCount(meter, ["a", "b"], 0, lambda own: own + 7.0)  # the other used 7 J
    meter.total = 3.0
    assert count.since_last() == 10.0


@pytest.mark.parametrize("meters", [(None,), (Counter("a", 0.0), None), (None, Counter("a", 0.0))])
def test_where_one_worker_has_no_meter_nothing_is_measured(meters):
    """And nobody waits for a sum: not all would take part in it."""
    assert [count.since_last() for count in workers(*meters)] == [None] * len(meters)


def test_a_machine_without_gpus_has_no_meter():
    assert open_meter() is None


def test_what_was_not_measured_makes_no_sum():
    assert (plus(1.0, 2.0), plus(None, 2.0), plus(1.0, None)) == (3.0, None, None)
    assert (minus(3.0, 2.0), minus(None, 2.0), minus(1.0, None)) == (1.0, None, None)


def test_a_record_keeps_its_energy_and_one_of_before_has_none(tmp_path):
    stage = make_plan(make_schedule(tmp_path)).staged.stages[1]
    record = make_record(stage, 2.0, energy_joules=12.5, evaluation_energy_joules=2.5)
    content = json.loads(json.dumps(record.to_json()))
    assert StageRecord.from_json(content) == record
    del content["energy_joules"], content["evaluation_energy_joules"], content["growth"]["energy_joules"]
    old = StageRecord.from_json(content)
    assert (old.energy_joules, old.evaluation_energy_joules, old.growth.energy_joules) == (None, None, None)


def test_a_stage_that_went_on_from_an_unmeasured_checkpoint_has_no_figure(tmp_path):
    stage = make_plan(make_schedule(tmp_path)).staged.stages[0]
    assert Progress.at_start(stage).energy_joules == 0.0
    content = {**vars(Progress.at_start(stage)), "train": [], "evaluations": []}
    del content["energy_joules"], content["evaluation_energy_joules"]
    assert Progress.from_json(content).energy_joules is None
