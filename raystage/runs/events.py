"""What happens in a run, and who is told: the terminal, the log, the status file, W&B.

`RunCallback` is what they all are. `EventReplay` tells them of whole runs in the order of the plan, each event once,
although workers train the stages that several runs share only once, start again from checkpoints, and find stages that
an earlier driver has finished. A stage that is finished already is told like one that is trained now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raystage.plans.gates import Rejection
from raystage.plans.plan import RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.record import Evaluation, GrowthRecord, Progress, StageRecord, TrainPoint, where_it_begins

Point = TrainPoint | Evaluation
# By what the watchdog says, the method of `RunCallback`.
_FROM_WATCHDOG = {"waiting": "waiting", "trouble": "interrupted", "note": "noted"}


class RunCallback:
    """Is told what happens in a run. Does nothing: subclasses override what they need.

    For each run: `run_started`, then for each of its stages `stage_started`, any number of `trained`, `evaluated`,
    `grown` and `saved`, `stage_finished`; then `run_finished`. All calls come from the driver's thread.
    """

    def run_started(self, run: RunPlan) -> None:
        pass

    def preparing(self, what: str) -> None:
        """Something is being started before anything can be trained. what: in words."""

    def waiting(self, run: RunPlan, stage: StagePlan, for_what: str) -> None:
        """The stage cannot be trained yet: another driver trains it, or others use the resources of the cluster."""

    def stage_started(self, run: RunPlan, stage: StagePlan, reused: bool) -> None:
        """reused: the stage is finished already. Its recorded points follow, so that curves are always whole."""

    def resumed(self, run: RunPlan, stage: StagePlan, step: int) -> None:
        """An earlier driver began the stage. Training continues after `step` steps of the stage; the points before
        that step, which are told next, are of the past."""

    def grown(self, run: RunPlan, stage: StagePlan, growth: GrowthRecord) -> None:
        pass

    def trained(self, run: RunPlan, stage: StagePlan, point: TrainPoint) -> None:
        pass

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        pass

    def saved(self, run: RunPlan, stage: StagePlan, checkpoint: str) -> None:
        pass

    def noted(self, run: RunPlan, stage: StagePlan, what: str) -> None:
        """Something has happened that who watches wants to know. It changes nothing in the training."""

    def interrupted(self, run: RunPlan, stage: StagePlan, why: str) -> None:
        """Nothing trains for now: a node was lost, or the workers hang or leave. `restarted` follows if they start
        again."""

    def restarted(self, run: RunPlan, stage: StagePlan, reason: str) -> None:
        """The workers start again, from a checkpoint."""

    def rejected(self, run: RunPlan, stage: StagePlan, rejection: Rejection) -> None:
        """A gate did not accept the stage."""

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        pass

    def run_finished(self, run: RunPlan, records: tuple[StageRecord, ...]) -> None:
        pass

    def ended(self, error: BaseException | None) -> None:
        """The driver has ended; nothing is told after this. error: None if the schedule reached its end."""


class EventReplay:
    """Tells `callbacks` of a plan's runs.

    records: by stage key what is finished; its owner keeps it up to date. on_training: called with a stage that is not
    finished when its training begins. `run` and `stage` are what is to be trained next; None if all is finished.
    """

    def __init__(
        self,
        runs: Sequence[RunPlan],
        records: Mapping[str, StageRecord],
        callbacks: Sequence[RunCallback] = (),
        on_training: Callable[[StagePlan], None] = lambda stage: None,
    ) -> None:
        self._runs, self._records, self._callbacks, self._on_training = runs, records, callbacks, on_training
        self._told: set[tuple[str, str]] = set()
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._furthest: dict[tuple[str, str], int] = {}
        self._grown: set[str] = set()
        self._is_training = self._has_workers = False
        self.run: RunPlan | None = None
        self.stage: StagePlan | None = None

    def tell(self, event: str, *facts: Any) -> None:
        """event: the name of a method of `RunCallback`; facts: its arguments."""
        for callback in self._callbacks:
            getattr(callback, event)(*facts)

    def follow(self, runs: Sequence[RunPlan]) -> None:
        """From now on these are the runs. What they share with the earlier ones is not told again."""
        self._runs = runs

    def advance(self, up_to: str | None = None) -> None:
        """Tell of all that is finished before the first stage that is not. That one becomes `stage`.

        up_to: the key of a finished stage; nothing after that stage is told.
        """
        for run in self._runs:
            if run.name not in self._begun:
                self._begun.add(run.name)
                self.tell("run_started", run)
            for stage in run.stages:
                placed = where_it_begins(stage, self._records.get(stage.parent_key))
                if stage.key not in self._records:
                    self._set_next(run, placed)
                    return
                self._tell_finished(run, placed)
                if stage.key == up_to:
                    return
            if run.name not in self._ended:
                self._ended.add(run.name)
                self.tell("run_finished", run, tuple(self._records[stage.key] for stage in run.stages))
        self.run = self.stage = None

    def train(self, stage: StagePlan) -> None:
        """This driver now trains a stage: the one that is told of or, if another driver trains that, one of a later
        run, of which is told in its turn."""
        if self.stage is None or self.stage.key == stage.key:
            self.begin()
        else:
            self.tell("noted", self.run, self.stage, f"another driver trains it; meanwhile {stage.name} is trained")

    def begin(self) -> None:
        """This driver now trains `stage`. Before this another driver may have done so."""
        if self.stage is not None and not self._is_training:
            self._is_training = True
            self.tell("stage_started", self.run, self.stage, False)
            self._on_training(self.stage)

    def hear(self, kind: str, key: str, what: Any) -> None:
        """A message of the first worker about the stage with this key, or of the watchdog. Messages about other stages
        than `stage` are ignored."""
        match kind:
            case "preparing":
                self.tell("preparing", what)
            case "waiting" | "trouble" | "note" if self.stage is not None:
                self.tell(_FROM_WATCHDOG[kind], self.run, self.stage, what)
            case _ if self.stage is not None and key == self.stage.key:
                self.begin()
                self._hear_of_stage(kind, what)

    def _hear_of_stage(self, kind: str, what: Any) -> None:
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
                self.tell("saved", self.run, self.stage, what)
            case "finished":
                self.tell("stage_finished", self.run, self.stage, what, False)
                self._told.add((self.run.name, self.stage.key))

    def _set_next(self, run: RunPlan, stage: StagePlan) -> None:
        if (run, stage) != (self.run, self.stage):
            self.run, self.stage = run, stage
            self._is_training = self._has_workers = False

    def _tell_finished(self, run: RunPlan, stage: StagePlan) -> None:
        """Tell of a finished stage as if it had just been trained, unless that was told when it was trained."""
        if (run.name, stage.key) in self._told:
            return
        self._told.add((run.name, stage.key))
        record = self._records[stage.key]
        self.tell("stage_started", run, stage, True)
        if record.growth:
            self.tell("grown", run, stage, record.growth)
        for point in in_order(record.train, record.evaluations):
            self.tell(_kind(point), run, stage, point)
        self.tell("stage_finished", run, stage, record, True)

    def _start(self, steps_done: int) -> None:
        if self._has_workers:
            reason = f"the workers were started again, from step {steps_done}"
            self.tell("restarted", self.run, self.stage, reason)
        self._has_workers = True

    def _replay(self, progress: Progress) -> None:
        if not self._has_workers:
            self.tell("resumed", self.run, self.stage, progress.steps - self.stage.start_steps)
        if progress.growth:
            self._grow(progress.growth)
        for point in in_order(progress.train, progress.evaluations):
            self._point(point)

    def _grow(self, growth: GrowthRecord) -> None:
        if self.stage.key not in self._grown:
            self._grown.add(self.stage.key)
            self.tell("grown", self.run, self.stage, growth)

    def _point(self, point: Point) -> None:
        kind = _kind(point)
        if point.position > self._furthest.get((self.stage.key, kind), -1):
            self._furthest[self.stage.key, kind] = point.position
            self.tell(kind, self.run, self.stage, point)


def in_order(train: Sequence[TrainPoint], evaluations: Sequence[Evaluation]) -> list[Point]:
    """The points of both curves by position; at the same position training comes before evaluation."""
    return sorted([*train, *evaluations], key=lambda point: (point.position, isinstance(point, Evaluation)))


def _kind(point: Point) -> str:
    return "evaluated" if isinstance(point, Evaluation) else "trained"
