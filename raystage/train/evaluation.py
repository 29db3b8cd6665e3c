"""The held-out sequences of a stage, and how its model scores on them."""

from __future__ import annotations

import time

from raystage.data.tokens import Streams, TokenWindows, open_streams
from raystage.models.shape import flops_per_token
from raystage.objectives.learner import HeldOut
from raystage.objectives.metrics import added, values
from raystage.objectives.opening import open_judge
from raystage.plans.plan import StagePlan
from raystage.results.record import Evaluation, Progress
from raystage.train.accounting import Accounting
from raystage.train.collectives import all_gather_objects
from raystage.train.engine import Scores, StageEngine


def evaluation_set(stage: StagePlan, streams: Streams | None = None) -> HeldOut:
    """The held-out sequences of a stage, of context_length each, fixed by its data alone.

    streams: of the stage's data, if they are open already.
    """
    streams = streams or open_streams(stage.data, stage.shape.vocab_size)
    windows = TokenWindows(streams.held_out, stage.shape.context_length, stage.seed)
    return HeldOut({"tokens": windows.spread(max(1, stage.training.evaluate.tokens // stage.shape.context_length))})


class Evaluator:
    """Evaluates a stage's model on `held_out`, and counts what that takes.

    known: the scores of the model as it is now, if a stage before or the growth has computed them already.
    """

    def __init__(
        self,
        stage: StagePlan,
        engine: StageEngine,
        held_out: HeldOut,
        accounting: Accounting,
        known: Scores | None = None,
    ) -> None:
        self.held_out, self.last = held_out, known
        # An engine that several stages use has the first of them as its own.
        self._stage, self._engine, self._accounting, self._known = stage, engine, accounting, known

    @property
    def _progress(self) -> Progress:
        return self._accounting.progress

    def loss_after_growth(self, held_out: HeldOut) -> float:
        """The loss on the text that the source was evaluated on, by what judged the source. These are usually this
        stage's, too: then the scores are those of its first evaluation."""
        before = open_judge(self._stage.parent_objective)
        if not held_out.is_same(self.held_out) or before != self._engine.judge:
            return self._engine.evaluate(held_out, judge=before).loss
        self._known = self._score()
        return self._known.loss

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it is now. Collective."""
        self._accounting.tick()
        self._accounting.count_energy()
        scores, self._known = self._known or self._score(), None
        self.last = scores
        metrics = values(added(all_gather_objects(scores.sums)))
        self._accounting.skip_time()
        self._accounting.count_evaluation_energy()
        progress = self._progress
        reached = progress.tokens, progress.steps, progress.flops, progress.seconds
        point = Evaluation(*reached, scores.loss, scores.accuracy, metrics, *(scores.halves or ()))
        progress.evaluations.append(point)
        return point

    def _score(self) -> Scores:
        began = time.monotonic()
        scores = self._engine.evaluate(self.held_out, self._stage.training.evaluate.metrics)
        self._progress.evaluation_seconds += time.monotonic() - began
        self._progress.evaluation_flops += (
            self.held_out.count * self.held_out.length * flops_per_token(self._stage.shape) // 3
        )
        return scores
