"""Workers that are done stay for the next job that needs the same; those of another job start while they train."""

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
    other = with_workers(first, 1)

    def job(stage: StagePlan, folder: str) -> Job:
        return Job((stage,), open_folder(tmp_path / folder).uri)

    def train(one: Job, coming: Job | None = None) -> list[str]:
        """What the driver says meanwhile."""
        (stage,), store, heard = one.stages, Store(open_folder(one.store)), []
        assert launch.run_train(one, lambda *message: heard.append(message), coming=lambda: coming)
        assert store.record(stage.key) is not None
        assert [kind for kind, key, _ in heard if key == stage.key][-1] == "left"
        assert (store.folder / "ray").names() == []  # nothing of Ray Train's stays, wherever this process ends
        return [what for kind, _, what in heard if kind in ("preparing", "note")]

    def pids() -> list[int]:
        return sorted(one.pid for one in connected.workers())

    train(job(first, "store"))
    before = pids()
    assert len(before) == 2
    said = train(job(second, "store"), coming=job(other, "other"))
    assert set(before) <= set(pids())
    assert f"starting the worker of stage {other.name} ahead" in said
    said = train(job(other, "other"))
    assert not [what for what in said if what.startswith("starting")], "it was started while the others trained"
    wait_until(lambda: len(pids()) == 1, PATIENCE, "the workers that nobody needs stayed")
    assert not set(pids()) & set(before)
    launch.dismiss()
    wait_until(lambda: not connected.workers(), PATIENCE, "dismissed workers stayed")


@pytest.mark.drill
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_before_its_job_comes_is_no_loss(connected: RayCluster, tiny: Path, tmp_path: Path) -> None:
    changes = (
        "training.lr_schedule.kind=constant",
        "stages[0].until={steps: 100000, seconds: 60}",
        "stages[1].until.steps=8",
    )
    long = make_plan(load(tiny, changes))
    first, second = (with_workers(stage, number) for stage, number in zip(long.staged.stages, (1, 2), strict=True))
    store = Store(open_folder(tmp_path / "store"))
    jobs = [Job((stage,), store.folder.uri) for stage in (first, second)]
    killed = set()

    def kill_the_newest(*message: object) -> None:
        workers = connected.workers()
        if len(workers) == 3 and not killed:
            newest = max(workers, key=lambda one: one.create_time())
            killed.add(newest.pid)
            newest.kill()

    assert launch.run_train(jobs[0], kill_the_newest, coming=lambda: jobs[1])
    assert killed
    assert launch.run_train(jobs[1], kill_the_newest)
    assert store.record(second.key) is not None
    launch.dismiss()
    wait_until(lambda: not connected.workers(), PATIENCE, "dismissed workers stayed")
