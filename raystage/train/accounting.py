"""What a stage on one worker has cost so far, and the points of its training curve."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raystage.errors import NonFiniteLoss
from raystage.plans.stage import StagePlan
from raystage.results.costs import plus
from raystage.results.record import GrowthRecord, Prefix, Progress, StageRecord, TrainPoint
from raystage.results.scoring import ScoringRecord, check_same_order
from raystage.train.collectives import all_gather_objects
from raystage.train.devices import EnergyCount, open_meter, peak_flops_per_second
from raystage.train.engine import StageEngine


class Accounting:
    """Counts seconds, joules, tokens or samples, FLOPs and losses of a stage into its `progress`.

    Seconds are counted from mark to mark, by this worker's clock. Joules are the sum over all workers, which all call
    the methods that count them. The losses since the last point of the curve are summed over this worker's targets.
    """

    def __init__(self, stage: StagePlan, engine: StageEngine, scoring: ScoringRecord | None = None) -> None:
        """scoring: of the documents that the stage reads, where a model sorts them."""
        self.progress = Progress.at_start(stage)
        self._count_scoring(scoring)
        self._stage, self._engine = stage, engine
        self._loss = torch.zeros((), device=engine.device)
        self._trained = self._targets = self._flops = 0  # of the steps whose losses `_loss` has
        self._lr = 0.0
        meter = open_meter()
        self._energy = EnergyCount(meter, all_gather_objects(meter and meter.name), engine.rank, self._sum)
        self._mark = time.monotonic()

    # --- entering -----------------------------------------------------------------------------

    def resume(self, progress: Progress, prefix: StageRecord | None) -> None:
        """Continue with the progress that a checkpoint has. prefix: of the shorter stage that has written it. Raises
        CheckpointError where its text was sorted in another way than it is now."""
        what = f"the checkpoint of {self._stage.name} after {progress.position} {progress.unit}"
        check_same_order(progress.scoring, self.progress.scoring, what)
        self.progress = progress
        self._restore_pending()
        if progress.num_workers not in (0, self._engine.world) and not prefix:
            progress.resizes += 1
        if prefix:
            progress.prefix = prefix_of(prefix)

    def _restore_pending(self) -> None:
        """Every worker takes its own sum of losses; if the number of workers has changed, the first one takes all."""
        done, schedule = self.progress.steps - self._stage.start_steps, self._stage.step_schedule
        before = done - self.progress.pending_steps
        self._trained = schedule.duration(done) - schedule.duration(before)
        costs = self._stage.step_costs
        self._flops = costs.of_first(done) - costs.of_first(before)
        targets, self.progress.pending_targets = self.progress.pending_targets, None
        self._targets = self._trained if targets is None else targets
        losses, self.progress.pending_losses = self.progress.pending_losses, []
        if len(losses) == self._engine.world:
            self._loss.fill_(losses[self._engine.rank])
        elif self._engine.rank == 0:
            self._loss.fill_(math.fsum(losses))

    def joules_of_growth(self) -> float | None:
        """What was used since the start: entering the stage."""
        return self._energy.since_last()

    def count_growth(self, growth: GrowthRecord) -> None:
        """Growing counts as training."""
        self.progress.growth = growth
        self.progress.seconds += growth.seconds
        self.progress.energy_joules = plus(self.progress.energy_joules, growth.energy_joules)

    def _count_scoring(self, scoring: ScoringRecord | None) -> None:
        """Scoring documents counts as training."""
        if scoring is None:
            return
        self.progress.scoring = scoring
        self.progress.flops += scoring.flops
        self.progress.seconds += scoring.seconds
        if scoring.documents:
            self.progress.energy_joules = plus(self.progress.energy_joules, scoring.energy_joules)

    def start(self) -> None:
        """Training begins. What was used before is not counted: entering the stage, except for its growth."""
        self._energy.since_last()
        self.skip_time()

    # --- steps and points ---------------------------------------------------------------------

    def count_step(self, loss: torch.Tensor, targets: int, trained: int, flops: int, lr: float) -> None:
        """loss: summed over this worker's targets, on the device. targets: of all workers."""
        self._loss += loss
        self._targets += targets
        self._lr = lr
        self._trained, self._flops = self._trained + trained, self._flops + flops
        progress = self.progress
        progress.steps += 1
        progress.position += trained
        progress.flops += flops
        progress.pending_steps += 1

    def make_point(self) -> TrainPoint | None:
        """The point of the curve for the steps since the last one; None if there were none, or none with a target.
        Collective.

        Raises NonFiniteLoss, on all workers alike.
        """
        progress = self.progress
        if not progress.pending_steps:
            return None
        loss = self._engine.sum_over_workers(self._loss) / max(1, self._targets)
        seconds = self.tick() + progress.pending_seconds
        self.count_energy()
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"stage {self._stage.name}: the training loss is {loss} at step {progress.steps} "
                f"({progress.position} {progress.unit}); the last good checkpoint is kept. "
                f"Try a lower training.optimizer.lr (now {self._lr:.3g}) or a longer warm-up"
            )
        speed, flops_per_second = (count / seconds if seconds > 0 else 0.0 for count in (self._trained, self._flops))
        peak = peak_flops_per_second(self._stage.training.precision)
        point = TrainPoint(
            position=progress.position,
            steps=progress.steps,
            flops=progress.flops,
            seconds=progress.seconds,
            loss=loss,
            lr=self._lr,
            gradient_norm=self._engine.gradient_norm(),
            speed=speed,
            mfu=flops_per_second / (peak * self._engine.world) if peak else None,
        )
        has_targets = self._targets > 0
        if has_targets:
            progress.train.append(point)
        progress.pending_steps, progress.pending_seconds = 0, 0.0
        self._loss.zero_()
        self._trained = self._targets = self._flops = 0
        return point if has_targets else None

    @contextmanager
    def pending_aside(self) -> Iterator[bool]:
        """Within this, the progress has what was counted since the last point, so that a checkpoint is continued from
        there. No point is made: a run without the checkpoint makes none. Collective. Yields whether all losses are
        numbers."""
        if self.progress.pending_steps:
            self.progress.pending_seconds += self.tick()
            self.count_energy()
            self.progress.pending_targets = None if self._targets == self._trained else self._targets
        self.progress.pending_losses = losses = all_gather_objects(self._loss.item())
        yield all(map(math.isfinite, losses))
        self.progress.pending_losses, self.progress.pending_targets = [], None

    # --- time and energy ----------------------------------------------------------------------

    def tick(self) -> float:
        """Count the seconds since the last mark, and set the mark. Returns them."""
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        self.progress.seconds += elapsed
        return elapsed

    def skip_time(self) -> None:
        """Set the mark without counting the seconds before it."""
        self._mark = time.monotonic()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """What is done within this context counts as evaluation. Collective."""
        self.count_energy()
        began = time.monotonic()
        yield
        elapsed = time.monotonic() - began
        self.progress.evaluation_seconds += elapsed
        self._mark += elapsed
        self.count_evaluation_energy()

    def count_energy(self) -> None:
        self.progress.energy_joules = plus(self.progress.energy_joules, self._energy.since_last())

    def count_evaluation_energy(self) -> None:
        joules = plus(self.progress.evaluation_energy_joules, self._energy.since_last())
        self.progress.evaluation_energy_joules = joules

    def _sum(self, own: float) -> float:
        return self._engine.sum_over_workers(torch.tensor(own, dtype=torch.float64, device=self._engine.device))


def prefix_of(record: StageRecord) -> Prefix:
    """What a stage takes over from a finished shorter version of it."""
    return Prefix(record.key, record.duration, record.flops, record.seconds, record.energy_joules)
