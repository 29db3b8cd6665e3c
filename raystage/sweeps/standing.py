"""Where a sweep stands while it runs: its trials, the stages they are at, what is computed and what is left.

Tune knows which trials have ended, and how. The status file of each trial's own run says at which stage it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raystage.files.typed_json import LEFT_OUT_IF_DEFAULT, to_json, unit_key
from raystage.reports.build import DONE
from raystage.sweeps.reports.build import TrialOutcome
from raystage.sweeps.space import describe
from raystage.sweeps.trials import SweepPlan
from raystage.units import TOKENS, Unit, format_seconds, format_speed, unit_of

WAITING, INTERRUPTED = "WAITING", "INTERRUPTED"
ENDED = ("FINISHED", "ERRORED", "ABORTED")
# Before this time, a measured speed means little.
LEAST_SECONDS = 5.0

ReadStatus = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class TrialStanding:
    """stage, step, steps, loss, speed, waiting_for: of the stage that it is at."""

    number: int
    name: str
    state: str
    config: Mapping[str, Any]
    eval_loss: float | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    speed: float | None = field(default=None, metadata=unit_key("{}_per_second"))
    waiting_for: str | None = None
    error: str | None = None
    unit: Unit = field(default=TOKENS, metadata=LEFT_OUT_IF_DEFAULT)

    @property
    def is_training(self) -> bool:
        return self.state == "RUNNING" and self.step is not None and self.waiting_for is None

    def place(self) -> str:
        """'2/3 full  step 33/80  loss 1.810  1.2K tok/s', as far as it is known."""
        if self.waiting_for:
            return f"{self.stage}  waits for {self.waiting_for}"
        if self.step is None:
            return "is being started"
        parts = [f"{self.stage}  step {self.step}/{self.steps}"]
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        parts += [f"{format_speed(self.speed, self.unit)}"] if self.speed else []
        return "  ".join(parts)


@dataclass(frozen=True)
class SweepStanding:
    """flops_total: of what the store did not have when the sweep was planned. flops_claimed: of all runs of all trials,
    each alone. Both are None if the trials are not known beforehand. best: number, metric and value. doing: what is
    being started."""

    name: str
    trials: tuple[TrialStanding, ...]
    flops_done: float
    flops_total: int | None
    flops_claimed: int | None
    best: tuple[int, str, float] | None
    elapsed_seconds: float
    seconds_left: float | None
    doing: str | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(one.state for one in self.trials)

    def count_line(self) -> str:
        """'12 trials: 3 done, 2 running, 7 waiting, 0 failed'."""
        counts = self.counts
        shown = [("done", "FINISHED"), ("running", "RUNNING"), ("waiting", WAITING), ("failed", "ERRORED")]
        more = [(word, state) for word, state in (("stopped early", "ABORTED"),) if counts[state]]
        return f"{len(self.trials)} trials: " + ", ".join(f"{counts[state]} {word}" for word, state in (*shown, *more))

    def best_line(self) -> str:
        if self.best is None:
            return "best so far: no trial has finished"
        number, metric, value = self.best
        config = next((one.config for one in self.trials if one.number == number), {})
        return f"best so far: trial {number}, {metric} {value:.4g} ({describe(config)})"

    def work_line(self) -> str:
        """'1.2e12 of 6.7e12 FLOPs (1.9e13 if trained apart)  4:10 left'."""
        left = "time left unknown" if self.seconds_left is None else f"{format_seconds(self.seconds_left)} left"
        done = f"{self.flops_done:.2e}"
        total = f" of {self.flops_total:.2e} FLOPs" if self.flops_total is not None else " FLOPs"
        apart = f" ({self.flops_claimed:.2e} if trained apart)" if self.flops_claimed else ""
        return f"{done}{total}{apart}  {format_seconds(self.elapsed_seconds)} so far, {left}"

    def to_json(self) -> dict[str, Any]:
        best = dict(zip(("number", "metric", "value"), self.best, strict=True)) if self.best else None
        return {
            "doing": self.doing,
            "counts": dict(self.counts),
            "trials": [to_json(one) for one in self.trials],
            "best": best,
            "flops_done": self.flops_done,
            "flops_total": self.flops_total,
            "flops_claimed": self.flops_claimed,
            "seconds_left": self.seconds_left,
        }


@dataclass
class Watcher:
    """Observes the trials of a sweep. read: returns the status file of a run, empty if there is none.

    began: when this driver started, in seconds since 1970. Status files of an earlier driver do not count.
    """

    plan: SweepPlan
    read: ReadStatus
    began: float
    _ended: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _planned: dict[int, dict[tuple[Any, Any], str]] = field(default_factory=dict)
    _pace: tuple[float, float, int] | None = None  # (time, FLOPs, ended trials) when the first stage trained

    def look(self, outcomes: Sequence[TrialOutcome], now: float, doing: str | None = None) -> SweepStanding:
        known = {one.number: one for one in outcomes}
        numbers = range(max([len(self.plan.trials), *(number + 1 for number in known)]))
        statuses = {number: self._status(number, known[number]) for number in numbers if number in known}
        trials = tuple(self._trial(number, known.get(number), statuses.get(number, {})) for number in numbers)
        done = self._flops_done(statuses)
        total = self._flops_total()
        is_begun = any(one.is_training for one in trials) or any(one.state in ENDED for one in trials)
        return SweepStanding(
            name=self.plan.sweep.name,
            trials=trials,
            flops_done=done,
            flops_total=total,
            flops_claimed=sum(tree.flops_apart for tree in self.plan.trees) if self.plan.is_foreseen else None,
            best=self._best(outcomes),
            elapsed_seconds=now - self.began,
            seconds_left=self._seconds_left(trials, done, total, now),
            doing=None if is_begun else doing,
        )

    def _status(self, number: int, outcome: TrialOutcome) -> Mapping[str, Any]:
        """The status file of a trial; of an ended trial it is read once."""
        if number in self._ended:
            return self._ended[number]
        found = self.read(f"{self.plan.sweep.name}-{number}")
        if outcome.state in ENDED:
            self._ended[number] = found
        elif (found.get("started_at") or 0.0) < self.began:
            return {}
        return found

    def _trial(self, number: int, outcome: TrialOutcome | None, status: Mapping[str, Any]) -> TrialStanding:
        name = f"{self.plan.sweep.name}-{number}"
        if outcome is None:
            config = self.plan.trials[number].config if self.plan.is_foreseen else {}
            return TrialStanding(number, name, WAITING, config)
        rows = status.get("stages") or []
        index = next((n for n, row in enumerate(rows) if row.get("state") not in DONE), None)
        at = {} if index is None or outcome.state in ENDED else rows[index]
        return TrialStanding(
            number=number,
            name=name,
            state=outcome.state if status or outcome.state in ENDED else WAITING,
            config=dict(outcome.config),
            eval_loss=outcome.eval_loss,
            stage=f"{index + 1}/{len(rows)} {at['name']}" if at else None,
            step=at.get("step") if at.get("state") == "RUNNING" else None,
            steps=at.get("steps"),
            loss=at.get("loss"),
            speed=at.get(f"{unit_of(at)}_per_second"),
            waiting_for=at.get("waiting_for"),
            error=outcome.error,
            unit=unit_of(at),
        )

    def _flops_total(self) -> int | None:
        """The FLOPs of what was not in the store when the sweep was planned."""
        if not self.plan.is_foreseen:
            return None
        return sum(tree.flops_left for tree in self.plan.trees)

    def _flops_done(self, statuses: Mapping[int, Mapping[str, Any]]) -> float:
        nodes = {key: node for tree in self.plan.trees for key, node in tree.nodes.items()}
        shares: dict[str, float] = {}
        for number, status in statuses.items():
            for row in status.get("stages") or []:
                key = row["key"] if row["key"] in nodes else self._planned_key(number, row)
                shares[key] = max(shares.get(key, 0.0), _share_done(row))
        left = [(node, shares.get(key, 0.0)) for key, node in nodes.items() if not node.is_finished]
        return sum(_own_done(node.stage.flops, node.own_flops, share) for node, share in left)

    def _planned_key(self, number: int, row: Mapping[str, Any]) -> str:
        """The key that the stage had when the sweep was planned: further seeds train the best values, which were not
        known then, at the same cost."""
        if number not in self._planned:
            runs = self.plan.trials[number].plan.runs() if number < len(self.plan.trials) else ()
            self._planned[number] = {(run.name, stage.name): stage.key for run in runs for stage in run.stages}
        return self._planned[number].get((row.get("run"), row.get("name")), row["key"])

    def _best(self, outcomes: Sequence[TrialOutcome]) -> tuple[int, str, float] | None:
        objective = self.plan.sweep.objective[0]
        sign = -1.0 if objective.better == "max" else 1.0
        ends = [(one.objectives.get(objective.name), one.number) for one in outcomes if one.state == "FINISHED"]
        ends = [(sign * value, number) for value, number in ends if value is not None and math.isfinite(value)]
        return (min(ends)[1], objective.name, sign * min(ends)[0]) if ends else None

    def _seconds_left(
        self, trials: Sequence[TrialStanding], done: float, total: int | None, now: float
    ) -> float | None:
        """By the speed since the first stage trained: of FLOPs, or of trials if these are not known beforehand."""
        ended = sum(one.state in ENDED for one in trials)
        if self._pace is None:
            if any(one.is_training for one in trials):
                self._pace = now, done, ended
            return None
        at, done_then, ended_then = self._pace
        seconds = now - at
        gained, left = (done - done_then, total - done) if total else (ended - ended_then, len(trials) - ended)
        return max(0.0, left) * seconds / gained if gained > 0 and seconds >= LEAST_SECONDS else None


def _share_done(row: Mapping[str, Any]) -> float:
    if row.get("state") in DONE:
        return 1.0
    return (row.get("step") or 0) / row["steps"] if row.get("steps") else 0.0


def _own_done(flops: int, own_flops: int, share: float) -> float:
    """FLOPs done of a stage itself, without those of the shorter stage that it continues."""
    return max(0.0, share * flops - (flops - own_flops))


def interrupted(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of a sweep whose driver has ended: none of them is running."""
    return [{**one, "state": INTERRUPTED} if one["state"] == "RUNNING" else one for one in trials]
