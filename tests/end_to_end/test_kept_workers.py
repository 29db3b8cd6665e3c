"""Workers that are done stay for the next job that needs the same, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import PATIENCE, RayCluster, wait_until
from raystage.cluster import launch
from raystage.config.schedule import load
from raystage.config.types import Workers
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.plans.stage import StagePlan
from raystage.storage.jobs import Job
from raystage.storage.store import Store

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def connected(cluster: RayCluster) -> Iterator[RayCluster]:
    with launch.cluster(cluster.address, 1, 0):
        yield cluster


@pytest.fixture
def plan(tiny: Path) -> Plan:
    return make_plan(load(tiny, ("stages[0].until.steps=8", "stages[1].until.steps=8")))


def with_workers(stage: StagePlan, workers: int) -> StagePlan:
    return replace(stage, training=stage.training.model_copy(update={"workers": Workers.exactly(workers)}))


@pytest.mark.filterwarnings("ignore")  # Ray's own: here the driver is in the tests' process
def test_the_next_job_is_theirs_where_it_needs_the_same(connected: RayCluster, plan: Plan, tmp_path: Path) -> None:
    first, second = plan.staged.stages

    def pids_after(stage: StagePlan, folder: str) -> list[int]:
        store, heard = Store(open_folder(tmp_path / folder)), []
        assert launch.run_train(Job((stage,), store.folder.uri), lambda *message: heard.append(message))
        assert store.record(stage.key) is not None
        assert [kind for kind, key, _ in heard if key == stage.key][-1] == "left"
        assert (store.folder / "ray").names() == []  # nothing of Ray Train's stays, wherever this process ends
        return sorted(one.pid for one in connected.workers())

    before = pids_after(first, "store")
    assert len(before) == 2
    assert pids_after(second, "store") == before
    alone = pids_after(with_workers(first, 1), "other")
    assert len(alone) == 1
    assert not set(alone) & set(before)
    launch.dismiss()
    wait_until(lambda: not connected.workers(), PATIENCE, "dismissed workers stayed")
