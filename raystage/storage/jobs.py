"""What one Train run carries out: stages that the same workers train one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from raystage.config.training import Training
from raystage.plans.stage import StagePlan


@dataclass(frozen=True)
class Job:
    """Stages to train one after the other with the same workers. store: its address. run: the name of their run."""

    stages: tuple[StagePlan, ...]
    store: str
    run: str = ""

    @property
    def training(self) -> Training:
        """The training section that decides the workers; it is the same for all of its stages."""
        return self.stages[0].training


def continues(first: StagePlan, second: StagePlan) -> bool:
    """Whether a worker that finished `first` can continue with `second` without being set up again."""
    same = _same_of(first) == _same_of(second)
    # The first two part the optimizer's groups in another way; a ramp begins anew; an average may not be delivered.
    special = first.freezing or second.freezing or first.training.ramp or first.averaging
    special = special or first.adapter or second.adapter  # which have parameters of their own
    return second.growth is None and second.parent_key == first.key and same and not special


def jobs(stages: Iterable[StagePlan]) -> tuple[tuple[StagePlan, ...], ...]:
    """The stages in groups, each carried out by one Train run. A change of the workers begins a new group."""
    return tuple(tuple(group) for _, group in groupby(stages, lambda stage: stage.layout))


def _same_of(stage: StagePlan) -> tuple:
    return stage.shape, stage.data, stage.also_evaluated, stage.training, stage.objective, stage.teacher
