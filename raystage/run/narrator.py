"""How a plan's runs went, told in the order of the plan, each thing once.

Workers train stages in the order of the plan, but they train what several runs share only once, begin again
at their last checkpoint, and may be those of an earlier driver. Listeners hear of whole runs all the same: a stage
that is finished already is told like one that is trained now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raystage.plan.build import RunPlan, StagePlan
from raystage.results.record import Evaluation, GrowthRecord, Progress, StageRecord, TrainPoint, where_it_begins

Point = TrainPoint | Evaluation
Tell = Callable[..., None]


class Narrator:
    """records: by stage key what is finished, kept up to date by whoever owns it. `turn(stage)` is called when a stage
    that is not finished begins to be trained."""

    def __init__(
        self,
        runs: Sequence[RunPlan],
        records: Mapping[str, StageRecord],
        tell: Tell,
        turn: Callable[[StagePlan], None] = lambda stage: None,
    ) -> None:
        self._runs, self._records, self._tell, self._turn = runs, records, tell, turn
        self._told: set[tuple[str, str]] = set()
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._furthest: dict[tuple[str, str], int] = {}
        self._grown: set[str] = set()
        self._begins = self._entered = False
        self.run: RunPlan | None = None
        self.stage: StagePlan | None = None

    def follow(self, runs: Sequence[RunPlan]) -> None:
        """From here on these are the runs: what they share with those before is not told again."""
        self._runs = runs

    def advance(self, up_to: str | None = None) -> None:
        """Tell of all that is finished up to the first stage that is not: that one's turn it is (`run`, `stage`).

        up_to: the key of a finished stage that nothing is told after.
        """
        for run in self._runs:
            if run.name not in self._begun:
                self._begun.add(run.name)
                self._tell("run_started", run)
            for stage in run.stages:
                begun = where_it_begins(stage, self._records.get(stage.parent_key))
                if stage.key not in self._records:
                    self._take_turn(run, begun)
                    return
                self._tell_finished(run, begun)
                if stage.key == up_to:
                    return
            if run.name not in self._ended:
                self._ended.add(run.name)
                self._tell("run_finished", run, tuple(self._records[stage.key] for stage in run.stages))
        self.run = self.stage = None

    def begin(self) -> None:
        """The stage whose turn it is is trained from here on: until then it may be somebody else's."""
        if self.stage is not None and not self._begins:
            self._begins = True
            self._tell("stage_started", self.run, self.stage, False)
            self._turn(self.stage)

    def hear(self, kind: str, key: str, what: Any) -> None:
        """One message of the first worker on the stage whose turn it is; others are passed over."""
        if self.stage is None or key != self.stage.key:
            return
        self.begin()
        match kind:
            case "started":
                self._start(what)
            case "resumed":
                self._replay(what)
            case "grown":
                self._grow(what)
            case "trained" | "evaluated":
                self._point(what)
            case "saved":
                self._tell("saved", self.run, self.stage, what)
            case "finished":
                self._tell("stage_finished", self.run, self.stage, what, False)
                self._told.add((self.run.name, self.stage.key))

    def _take_turn(self, run: RunPlan, stage: StagePlan) -> None:
        if (run, stage) != (self.run, self.stage):
            self.run, self.stage = run, stage
            self._begins = self._entered = False

    def _tell_finished(self, run: RunPlan, stage: StagePlan) -> None:
        """Tell of a finished stage as if it had just been trained, unless that was told as it was."""
        if (run.name, stage.key) in self._told:
            return
        self._told.add((run.name, stage.key))
        record = self._records[stage.key]
        self._tell("stage_started", run, stage, True)
        if record.growth:
            self._tell("grown", run, stage, record.growth)
        for point in in_order(record.train, record.evaluations):
            self._tell(_kind(point), run, stage, point)
        self._tell("stage_finished", run, stage, record, True)

    def _start(self, steps_done: int) -> None:
        if self._entered:
            reason = f"the workers were started again, from step {steps_done}"
            self._tell("restarted", self.run, self.stage, reason)
        self._entered = True

    def _replay(self, progress: Progress) -> None:
        if not self._entered:
            self._tell("resumed", self.run, self.stage, progress.steps - self.stage.start_steps)
        if progress.growth:
            self._grow(progress.growth)
        for point in in_order(progress.train, progress.evaluations):
            self._point(point)

    def _grow(self, growth: GrowthRecord) -> None:
        if self.stage.key not in self._grown:
            self._grown.add(self.stage.key)
            self._tell("grown", self.run, self.stage, growth)

    def _point(self, point: Point) -> None:
        kind = _kind(point)
        if point.tokens > self._furthest.get((self.stage.key, kind), -1):
            self._furthest[self.stage.key, kind] = point.tokens
            self._tell(kind, self.run, self.stage, point)


def in_order(train: Sequence[TrainPoint], evaluations: Sequence[Evaluation]) -> list[Point]:
    """The points of both curves as they came: by tokens, training before the evaluation of it."""
    return sorted([*train, *evaluations], key=lambda point: (point.tokens, isinstance(point, Evaluation)))


def _kind(point: Point) -> str:
    return "evaluated" if isinstance(point, Evaluation) else "trained"
