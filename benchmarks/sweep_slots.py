"""How busy a sweep's slots are: python benchmarks/sweep_slots.py [--trials 10000] [--slots 64] [--seconds 2]

A simulated sweep. Who trains what and who waits is decided as in a real one: by the sweep's plan and the searcher
that Tune has of it, and in each trial by its driver, with claims, leases and records in a real store. Training alone is
a sleep, of a random length for every stage. Ray Tune is left out: a thread stands for a trial's actor, asks the
searcher for the next trial when it is through, and tells it of every stage that it finishes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.tune.search import Searcher

from raystage.files.filesystem import open_folder
from raystage.plans.keys import trunk_key
from raystage.plans.stage import StagePlan
from raystage.results.record import Evaluation, Prefix, StageRecord
from raystage.runs.driver import Driver
from raystage.storage.claims import Claim, Claims, OnWaiting
from raystage.storage.lease import Leases
from raystage.storage.store import Store
from raystage.sweeps.config import load
from raystage.sweeps.tree import Tree
from raystage.sweeps.trial import FINISHED_STAGE
from raystage.sweeps.trials import SweepPlan, plan_sweep
from raystage.sweeps.tune import TreeSearch

SCHEDULE = Path(__file__).parents[1] / "jobs/schedules/growth.yaml"
# When to grow, how, for how long, and at what rate to end: 12 first stages, 144 second ones, and nearly every trial
# has a last one of its own. In the other space hardly two second stages are of one length, and the longer ones go on
# from the shorter: as much waiting for each other as there can be.
_FIRST = {
    "stages[0].until.tokens": {"choice": ["200K", "400K", "600K", "800K"]},
    "training.optimizer.weight_decay": {"choice": [0, 0.1, 0.2]},
}
_OPERATOR = {"stages[1].grow.operator": {"choice": ["stack", "interleave", "identity"]}}
SPACES = {
    "rates": {
        **_FIRST,
        "stages[1].until.tokens": {"choice": ["100K", "200K", "400K", "600K"]},
        **_OPERATOR,
        "stages[2].training.optimizer.lr": {"loguniform": [0.0001, 0.004]},
    },
    "lengths": {**_FIRST, "stages[1].until.tokens": {"integer": ["50K", "1M"]}, **_OPERATOR},
}
# Of a stage's mean length: how often those who wait within a trial look again. These looks are 2 s apart, so that these
# would be stages of 50 s.
POLL_SHARE = 0.04


@dataclass(frozen=True)
class Outcome:
    """Of the slot time in which there was work to do: busy, the share in which it was done; waiting, that in which the
    trial in the slot waited for another one instead. The rest went by between stages. trained: how often each was."""

    busy: float
    waiting: float
    seconds: float
    cpu_seconds: float
    trained: Counter[str]


class Meter:
    """Slots that train, and stages that could be trained: neither finished nor anybody's, all before them finished,
    and no shorter version of them that they could go on from under way."""

    def __init__(self, tree: Tree, slots: int) -> None:
        self.tree, self._slots = tree, slots
        self._lock = threading.Lock()
        self._training: set[str] = set()
        self._finished: set[str] = set()
        self._longer: dict[str, list[str]] = {}
        for key in tree.nodes:
            for prefix in self._prefixes(key):
                self._longer.setdefault(prefix, []).append(key)
        self._ready = set(filter(self._is_ready, tree.nodes))
        self._at = time.monotonic()
        self._waiting = 0
        self.busy_seconds = self.idle_seconds = self.waiting_seconds = 0.0
        self.trained: Counter[str] = Counter()

    def started(self, key: str) -> None:
        with self._lock:
            self._count()
            self.trained[key] += 1
            self._training.add(key)
            self._look_again(key)

    def finished(self, key: str) -> None:
        with self._lock:
            self._count()
            self._training.discard(key)
            self._finished.add(key)
            self._look_again(key)

    def waits(self, more: int) -> None:
        """So many more trials wait for others, or fewer."""
        with self._lock:
            self._count()
            self._waiting += more

    def _count(self) -> None:
        now = time.monotonic()
        passed, self._at = now - self._at, now
        busy = len(self._training)
        self.busy_seconds += busy * passed
        idle = min(self._slots - busy, len(self._ready))
        self.idle_seconds += idle * passed
        self.waiting_seconds += min(idle, self._waiting) * passed

    def _look_again(self, key: str) -> None:
        for one in (key, *self.tree.nodes[key].children, *self._longer.get(key, ())):
            (self._ready.add if self._is_ready(one) else self._ready.discard)(one)

    def _is_ready(self, key: str) -> bool:
        parent = self.tree.nodes[key].stage.parent_key
        return (
            key not in self._training
            and key not in self._finished
            and (parent is None or parent in self._finished)
            and self._training.isdisjoint(self._prefixes(key))
        )

    def _prefixes(self, key: str) -> Iterator[str]:
        while key := self.tree.nodes[key].prefix_key:
            yield key


class CountedClaims(Claims):
    """Claims whose waiting is counted."""

    meter: Meter

    def wait(self, stages: Sequence[StagePlan], on_waiting: OnWaiting) -> bool:
        self.meter.waits(1)
        try:
            return super().wait(stages, on_waiting)
        finally:
            self.meter.waits(-1)


class Sleeper(Driver):
    """A driver whose Train runs are sleeps. It leaves records, and no reports or pages: of these a real one writes a
    few in minutes."""

    meter: Meter
    mean_seconds: float
    on_finished: Callable[[str], None]

    def _train(self, claim: Claim) -> None:
        for stage in claim.stages:
            claim.check()
            self._sleep(stage)
            self._catch_up()

    def _sleep(self, stage: StagePlan) -> None:
        """As long as the stage takes, or what its prefix leaves of it; then it is finished."""
        self.meter.started(stage.key)
        node = self.meter.tree.nodes[stage.key]
        prefix = self.store.record(node.prefix_key) if node.prefix_key else None
        share = 1 - prefix.steps / stage.steps if prefix else 1.0
        time.sleep(share * self.mean_seconds * random.Random(stage.key).uniform(0.5, 1.5))
        self.store.commit_record(_record(stage, prefix, self.plan.name), trunk_key(stage))
        self.meter.finished(stage.key)
        self.on_finished(stage.key)

    def _note(self, state: str) -> dict[str, Any]:
        return {}

    def _published(self, report: dict[str, Any]) -> dict[str, Any]:
        return report


def _record(stage: StagePlan, prefix: StageRecord | None, run: str) -> StageRecord:
    """What a stage leaves behind, without a model."""
    end = Evaluation(stage.end, stage.start_steps + stage.steps, stage.end_flops, 0.0, 0.0)
    return StageRecord(
        key=stage.key,
        parent_key=stage.parent_key,
        name=stage.name,
        shape=stage.shape,
        num_params=stage.num_params,
        num_workers=stage.training.workers.most,
        zero_stage=stage.training.zero_stage,
        duration=stage.duration,
        steps=stage.steps,
        flops=stage.flops,
        seconds=0.0,
        evaluation_seconds=0.0,
        evaluation_flops=0,
        peak_memory_bytes=0,
        eval_loss=0.0,
        checkpoint="checkpoints/none",
        evaluations=(end,),
        prefix=Prefix(prefix.key, prefix.duration, prefix.flops, 0.0) if prefix else None,
        trained_for=run,
        unit=stage.unit,
    )


def simulate(plan: SweepPlan, store: Store, slots: int, mean_seconds: float) -> Outcome:
    """Run all trials of a plan, `slots` at a time, in the order in which a sweep would start them."""
    meter, began, began_cpu = Meter(plan.tree, slots), time.monotonic(), time.process_time()
    search, changed = TreeSearch(plan), threading.Condition()

    def work(slot: int) -> None:
        for count in itertools.count():
            trial_id = f"{slot}-{count}"
            with changed:
                while (config := search.suggest(trial_id)) is None:
                    changed.wait()
            if config == Searcher.FINISHED:
                return
            try:
                run(config["trial"]["number"], trial_id)
            finally:
                with changed:
                    search.on_trial_complete(trial_id)
                    changed.notify_all()

    def run(number: int, trial_id: str) -> None:
        def tell(key: str) -> None:
            with changed:
                search.on_trial_result(trial_id, {FINISHED_STAGE: key})
                changed.notify_all()

        claims = CountedClaims(store, Leases(store.folder / "stages"), POLL_SHARE * mean_seconds)
        claims.meter = meter
        driver = Sleeper(plan.trials[number].plan, None, store, [], claims=claims, is_connected=True)
        driver.meter, driver.mean_seconds, driver.on_finished = meter, mean_seconds, tell
        driver.run()

    with ThreadPoolExecutor(slots) as pool:
        for done in [pool.submit(work, slot) for slot in range(slots)]:
            done.result()
    with_work = meter.busy_seconds + meter.idle_seconds
    return Outcome(
        busy=meter.busy_seconds / with_work,
        waiting=meter.waiting_seconds / with_work,
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - began_cpu,
        trained=meter.trained,
    )


def make_plan(folder: Path, space: Mapping[str, Any], trials: int) -> SweepPlan:
    file = folder / "sweep.yaml"
    search = {"algorithm": "random", "num_trials": trials}
    file.write_text(yaml.safe_dump({"name": "slots", "schedule": str(SCHEDULE), "space": space, "search": search}))
    return plan_sweep(load(file))


def row(name: str, trials: int, slots: int, mean_seconds: float) -> str:
    """A line of the table: what was simulated, and how busy the slots were."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), SPACES[name], trials)
        found = simulate(plan, Store(open_folder(f"{folder}/store")), slots, mean_seconds)
    again = found.trained.total() - len(found.trained)
    cells = [name, trials, slots, len(found.trained), again, f"{found.seconds:.0f}", f"{found.cpu_seconds:.0f}",
             f"{found.busy:.2%}", f"{found.waiting:.2%}", f"{1 - found.busy - found.waiting:.2%}"]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="a stage's mean length")
    parser.add_argument("--space", choices=SPACES, help="both unless given")
    options = parser.parse_args()
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| space | trials | slots | stages | trained again | s | CPU s | busy | waiting | between stages |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in [options.space] if options.space else SPACES:
        print(row(name, options.trials, options.slots, options.seconds), flush=True)


if __name__ == "__main__":
    main()
