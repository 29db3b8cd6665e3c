"""Schedules carried out stage by stage on local workers, and stopped dead on the way: what stories of growth share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def losses(records: Sequence[StageRecord]) -> list[list[float]]:
    """By stage its losses, in training and then on held-out data."""
    return [[point.loss for point in (*record.train, *record.evaluations)] for record in records]


def carry_out_all(schedules: Mapping[str, Schedule], stores: Mapping[str, str], stops: Sequence[int] = ()) -> None:
    """On one of the workers: all schedules, each stopped at these numbers of its saved checkpoints and continued."""
    for name, schedule in schedules.items():
        for count in stops:
            carry_out(schedule, stores[name], "saved", count)
        carry_out(schedule, stores[name])


def train(schedule: Schedule, store: Path, stops: Sequence[int] = ()) -> list[StageRecord]:
    """The records of all stages, trained in processes of their own. stops: as for `carry_out_all`."""
    processes = store.parent / f"{store.name}-processes"
    run_workers(
        schedule.training.workers.most, carry_out_all, {"": schedule}, {"": str(store)}, stops, folder=processes
    )
    return records_of(schedule, str(store))


# The ways to train that have to agree, with the number of workers of each.
WAYS = {"one": 1, "killed": 1, "two": 2, "three": 3}


def train_each_way(
    schedules_of: Callable[[str, int], Mapping[str, Schedule]], stops: Sequence[int], folder: Path
) -> dict[str, list[StageRecord]]:
    """By "case, way" the records of all stages; their store is the folder way-case.

    schedules_of: from a way and its number of workers, by case its schedule. stops: of the killed way.
    """
    found = {}
    for way, workers in WAYS.items():
        schedules = schedules_of(way, workers)
        stores = {case: str(folder / f"{way}-{case}") for case in schedules}
        stopped = stops if way == "killed" else ()
        run_workers(workers, carry_out_all, schedules, stores, stopped, folder=folder / f"processes-{way}")
        found |= {f"{case}, {way}": records_of(schedule, stores[case]) for case, schedule in schedules.items()}
    return found
