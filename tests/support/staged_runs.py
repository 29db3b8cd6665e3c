"""Schedules carried out stage by stage on local workers, and stopped dead on the way: what stories of growth share."""

from __future__ import annotations

from pathlib import Path

from distributed import run_workers
from raystage.config.schedule import Schedule
from raystage.files.filesystem import open_folder
from raystage.planning.build import make_plan
from raystage.results.record import StageRecord
from raystage.storage.store import Store
from raystage.train.worker import Job, run_job


class Stopped(BaseException):
    """Stands for the end of a process between two messages."""


def carry_out(schedule: Schedule, store: str, kind: str | None = None, count: int = 0) -> list[str]:
    """On one of the workers: all stages; with `kind` only up to message number `count` of that kind. Returns the
    kinds of the messages sent, on the first worker."""
    said: list[str] = []

    def send(what: str, key: str, content: object) -> None:
        said.append(what)
        if kind and said.count(kind) == count:
            raise Stopped

    try:
        for stage in make_plan(schedule).staged.stages:
            run_job(Job((stage,), store), send)
    except Stopped:
        pass
    return said


def records_of(schedule: Schedule, store: str) -> list[StageRecord]:
    return [Store(open_folder(store)).record(stage.key) for stage in make_plan(schedule).staged.stages]


def train(schedule: Schedule, store: Path) -> list[StageRecord]:
    """The records of all stages, trained in processes of their own."""
    workers = schedule.training.workers.most
    run_workers(workers, carry_out, schedule, str(store), folder=store.parent / f"{store.name}-processes")
    return records_of(schedule, str(store))
