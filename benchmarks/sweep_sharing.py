"""The same trials by plain Ray Tune, each with a store of its own, and by raystage, which trains once what they share.

    python benchmarks/sweep_sharing.py [--sweep jobs/sweeps/quickstart.yaml]

Both in one run, one after the other, on local clusters of equal size: the same trials, as many at a time, by the same
drivers and workers. Plain Tune goes through them in their order, each with a store of its own; raystage's searcher
leaves those for later that would wait for another's stage. Seconds are those of the whole, with the start of the
cluster. Every stage's weights, moments and held-out losses must be equal to the last bit, or the exit status is 1. A
stage that continues a shorter one is also evaluated where that one ended: losses are compared where both ways have one.

Where the time went is a share of the wall clock times the trials at a time. Trials measure it in their own process:
starting is from the call of Ray Train to the first message of a worker's loop; training from there to the last stage's
record, with growth, evaluation and checkpoints; waiting is for a stage that another trial trains; driver and store is
all the rest of a trial: its plan, the looks into the store, what it notes and reports, the end of a Train run. What is
not in any trial is the start of the cluster and of trials' processes, Tune itself, and places left empty at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"DS_ACCELERATOR": "cpu", "RAY_USAGE_STATS_ENABLED": "0"}

from own_runs import checksums_of
from ray import tune
from ray.tune.search import Searcher

from raystage.cluster import launch
from raystage.files.filesystem import open_folder
from raystage.storage.claims import Claims
from raystage.storage.store import Store
from raystage.sweeps.config import load
from raystage.sweeps.console import PlainSweep
from raystage.sweeps.reports.summary import failure
from raystage.sweeps.search import SweepRunner
from raystage.sweeps.trial import TrialTask, run_trial
from raystage.sweeps.trials import SweepPlan, plan_sweep
from raystage.sweeps.tune import Limited
from raystage.units import format_flops

SWEEP = Path(__file__).parents[1] / "jobs/sweeps/quickstart.yaml"
CLOCKS = "clocks"


@dataclass
class Parts:
    """Where the seconds of a trial went, or those of all trials."""

    training: float = 0.0
    starting: float = 0.0
    waiting: float = 0.0
    whole: float = 0.0

    @property
    def driver_and_store(self) -> float:
        return self.whole - self.training - self.starting - self.waiting

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(one + another for one, another in zip(_values(self), _values(other), strict=True)))


def _values(parts: Parts) -> tuple[float, ...]:
    return parts.training, parts.starting, parts.waiting, parts.whole


@dataclass(frozen=True)
class StageEnd:
    """checksums: of the checkpoint's shards. losses: held-out, by the steps after which they were measured."""

    checksums: Any
    losses: Mapping[int, float]


@dataclass(frozen=True)
class Outcome:
    """One of the two ways. ends: by trial those of its stages."""

    seconds: float
    flops: int
    stages: int
    ends: Mapping[int, list[StageEnd]]
    parts: Parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    plan = plan_sweep(load(parser.parse_args().sweep))
    if not plan.is_foreseen or plan.sweep.scheduler.name != "none":
        parser.error("expected a sweep by grid or random and without a scheduler: all trials, to their ends")
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        apart = carried_out(plan, f"{folder}/apart", in_store_of_its_own, PlainTune)
        shared = carried_out(plan, f"{folder}/shared", timed, SweepRunner)
    print(f"{len(plan.trials)} trials, {plan.sweep.search.max_concurrent} at a time; "
          f"load average {load_average:.1f} at the start, on {os.cpu_count()} cores\n")  # fmt: skip
    same = sum(are_same(apart.ends[one.number], shared.ends[one.number]) for one in plan.trials)
    print(*table(plan, apart, shared, same), sep="\n")
    return 0 if same == len(plan.trials) else 1


class InOrder(Searcher):
    """The trials one after the other, as Tune's own searchers give them out."""

    def __init__(self, plan: SweepPlan) -> None:
        super().__init__()
        self._left = [{"trial": {"number": one.number, **one.config}} for one in reversed(plan.trials)]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return self._left.pop() if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class PlainTune(SweepRunner):
    """Nobody has anything to wait for: Tune begins trials in their order, whenever a place is free."""

    def _tune_config(self, numbers: Sequence[int] | None) -> tune.TuneConfig:
        return replace(
            super()._tune_config(numbers), search_alg=Limited(InOrder(self.plan), self.plan.sweep.search.max_concurrent)
        )


def carried_out(
    plan: SweepPlan, folder: str, trial: Callable[[Mapping[str, Any], TrialTask], None], way: type[SweepRunner]
) -> Outcome:
    """Run all trials in a store of this folder, or in stores below it."""
    task = TrialTask(plan.sweep, folder, "benchmarks/sweep_sharing.py", wandb_mode="disabled", wandb_folder=folder)
    Path(folder, CLOCKS).mkdir(parents=True)
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # what Ray says
        search = way(plan, Store(open_folder(folder)), task, PlainSweep(sys.stderr), trial=trial)
        report = search.run()
    seconds = time.monotonic() - began
    if problem := failure(report):
        raise SystemExit(problem)
    stores = [
        Store(open_folder(path.parent)) for path in [*Path(folder).glob("stages"), *Path(folder).glob("*/stages")]
    ]
    records = {(store.folder.uri, key): store.record(key) for store in stores for key in store.stage_keys()}
    clocks = [Parts(**json.loads(path.read_text())) for path in Path(folder, CLOCKS).iterdir()]
    return Outcome(
        seconds,
        sum(record.flops_spent for record in records.values() if record),
        sum(record is not None for record in records.values()),
        {one.number: ends(one.plan.staged.stages, folder, one.number) for one in plan.trials},
        sum(clocks, Parts()),
    )


def ends(stages: Any, folder: str, number: int) -> list[StageEnd]:
    """How the stages of a trial ended, whichever store it was carried out in."""
    own = Path(own_store(folder, number))
    place = own if own.is_dir() else Path(folder)
    records = [Store(open_folder(str(place))).record(stage.key) for stage in stages]
    return [
        StageEnd(checksums_of(place, one), {point.steps: point.loss for point in one.evaluations}) for one in records
    ]


def are_same(apart: Sequence[StageEnd], shared: Sequence[StageEnd]) -> bool:
    return all(
        one.checksums == other.checksums
        and max(one.losses) == max(other.losses)
        and all(one.losses[steps] == other.losses[steps] for steps in one.losses.keys() & other.losses.keys())
        for one, other in zip(apart, shared, strict=True)
    )


# --- in the process of a trial ----------------------------------------------------------------


def own_store(folder: str, number: int) -> str:
    return f"{folder}/trial-{number}"


def in_store_of_its_own(config: Mapping[str, Any], task: TrialTask) -> None:
    """What a trial costs where nobody shares: everything is trained."""
    _clocked(config, task, own_store(task.store, config["number"]))


def timed(config: Mapping[str, Any], task: TrialTask) -> None:
    _clocked(config, task, task.store)


def _clocked(config: Mapping[str, Any], task: TrialTask, store: str) -> None:
    began, parts = time.monotonic(), Parts()
    with watched(parts):
        run_trial(config, replace(task, store=store))
    parts.whole = time.monotonic() - began
    Path(task.store, CLOCKS, f"{config['number']}.json").write_text(json.dumps(asdict(parts)))


@contextlib.contextmanager
def watched(parts: Parts) -> Iterator[None]:
    """Put down how long this process's Train runs take to start and to train, and how long it waits for others."""
    run_train, wait = launch.run_train, Claims.wait

    def run_and_time(job: Any, on_event: Callable[..., None], *options: Any) -> bool:
        began, heard = time.monotonic(), []

        def hear(*message: Any) -> None:
            heard.append(time.monotonic())
            on_event(*message)

        try:
            return run_train(job, hear, *options)
        finally:
            if heard:
                parts.starting += heard[0] - began
                parts.training += heard[-1] - heard[0]

    def wait_and_time(claims: Claims, *arguments: Any) -> bool:
        began = time.monotonic()
        try:
            return wait(claims, *arguments)
        finally:
            parts.waiting += time.monotonic() - began

    with mock.patch.object(launch, "run_train", run_and_time), mock.patch.object(Claims, "wait", wait_and_time):
        yield


# --- what came of it --------------------------------------------------------------------------


def table(plan: SweepPlan, apart: Outcome, shared: Outcome, same: int) -> list[str]:
    """Two tables: what it took, and where the time went. same: the trials that are equal to the last bit."""
    places = plan.sweep.search.max_concurrent
    return [
        "| | apart | shared | factor |",
        "|---|---|---|---|",
        f"| stages trained | {apart.stages} | {shared.stages} | {apart.stages / shared.stages:.2f} |",
        f"| FLOPs | {format_flops(apart.flops)} | {format_flops(shared.flops)} | {apart.flops / shared.flops:.2f} |",
        f"| seconds | {apart.seconds:.0f} | {shared.seconds:.0f} | {apart.seconds / shared.seconds:.2f} |",
        f"| trials equal to the last bit | | {same} of {len(plan.trials)} | |",
        "",
        "| share of the time of all places | apart | shared |",
        "|---|---|---|",
        *(
            f"| {name} | {_share(name, apart, places):.1%} | {_share(name, shared, places):.1%} |"
            for name in ("training", "starting", "waiting", "driver and store", "in no trial")
        ),
    ]


def _share(name: str, outcome: Outcome, places: int) -> float:
    parts, all_of_it = outcome.parts, outcome.seconds * places
    seconds = all_of_it - parts.whole if name == "in no trial" else getattr(parts, name.replace(" ", "_"))
    return seconds / all_of_it


if __name__ == "__main__":
    sys.exit(main())
