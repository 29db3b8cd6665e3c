"""How a stage's model scores on the held-out sequences of its sources."""

from __future__ import annotations

import time
from collections.abc import Sequence

from raystage.data.plan import DataPlan
from raystage.objectives.judging import Scores, combined_means, mean
from raystage.objectives.learner import Judge
from raystage.objectives.metrics import added, beside, values
from raystage.objectives.opening import open_judge
from raystage.plans.stage import StagePlan
from raystage.results.record import Evaluation, Progress
from raystage.train.accounting import Accounting
from raystage.train.collectives import all_gather_objects
from raystage.train.engine import StageEngine
from raystage.train.texts import EvaluationSet, WeightedSet


class Evaluator:
    """Evaluates a stage's model on its held-out sets, and counts what that takes.

    known: the scores of the model as it is now, if a stage before or the growth has computed them already.
    """

    def __init__(
        self,
        stage: StagePlan,
        engine: StageEngine,
        held_out: Sequence[EvaluationSet],
        accounting: Accounting,
        known: Scores | None = None,
    ) -> None:
        self.held_out, self.last = held_out, known
        # An engine that several stages use has the first of them as its own.
        self._stage, self._engine, self._accounting, self._known = stage, engine, accounting, known

    @property
    def _progress(self) -> Progress:
        return self._accounting.progress

    @property
    def judging(self) -> tuple[WeightedSet, ...]:
        """The sets that the stage's loss is made of."""
        return tuple((one.held_out, one.weight) for one in self.held_out if one.weight)

    def loss_after_growth(self, before: Sequence[WeightedSet]) -> float:
        """The loss on the text that the source was evaluated on, by what judged the source. These are usually this
        stage's, too: then the scores are those of its first evaluation."""
        judge = open_judge(self._stage.parent_objective)
        own = self.judging
        is_own = len(before) == len(own) and all(
            weight == other and held_out.is_same(mine)
            for (held_out, weight), (mine, other) in zip(before, own, strict=True)
        )
        if not is_own or judge != self._engine.judge:
            losses = [(self._engine.evaluate(held_out, judge=judge).loss, weight) for held_out, weight in before]
            return mean(losses)
        self._known = self._score()
        return self._known.loss

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it is now. Collective."""
        self._accounting.tick()
        self._accounting.count_energy()
        scores, self._known = self._known or self._score(), None
        self.last = scores
        metrics = beside(scores.figures.metrics, values(added(all_gather_objects(scores.sums))))
        self._accounting.skip_time()
        self._accounting.count_evaluation_energy()
        progress = self._progress
        reached = progress.position, progress.steps, progress.flops, progress.seconds
        point = Evaluation(*reached, scores.loss, scores.figures.accuracy, metrics, *(scores.halves or (None, None)),
                           dict(scores.sources))  # fmt: skip
        progress.evaluations.append(point)
        return point

    def _score(self) -> Scores:
        began = time.monotonic()
        metrics = self._stage.training.evaluate.metrics
        found = [self._engine.evaluate(one.held_out, metrics if one.weight else ()) for one in self.held_out]
        self._progress.evaluation_seconds += time.monotonic() - began
        amount = sum(one.held_out.count * one.held_out.length for one in self.held_out)
        self._progress.evaluation_flops += amount * self._stage.model_flops(self._stage.shape.context_length) // 3
        is_one = isinstance(self._stage.data, DataPlan) and len(found) == 1
        return found[0] if is_one else combined(self._engine.judge, self.held_out, found)


def combined(judge: Judge, sets: Sequence[EvaluationSet], found: Sequence[Scores]) -> Scores:
    """The scores of a stage with several sources: means by the weights of the sources, and the loss of each."""
    judging = [(one, scores) for one, scores in zip(sets, found, strict=True) if one.weight]
    halves = None
    if all(scores.halves for _, scores in judging):
        halves = tuple(mean([(scores.halves[side], one.weight) for one, scores in judging]) for side in (0, 1))
    sums = [
        {name: (value * share, size * share) for name, (value, size) in scores.sums.items()}
        # A set of a short text has fewer sequences than the others, and counts as much.
        for share, scores in ((one.weight / one.held_out.count, scores) for one, scores in judging)
    ]
    means = combined_means([(scores, one.weight) for one, scores in judging])
    sources = tuple((one.content, scores.loss) for one, scores in zip(sets, found, strict=True))
    return Scores(means, judge.figures(means), added(sums), halves, sources)
