"""How much each path of a sweep's space influenced the outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from raystage.results.sweep_report import ObjectiveRow, TrialRow
from raystage.sweeps.config import METRICS
from raystage.sweeps.space import LISTED, Dimension

# With fewer finished trials the result means nothing.
FEWEST_TRIALS = 4
# The share of trials that counts as good. The usual tenth would be one trial of twelve, too few for a comparison.
GOOD_SHARE = 0.5


def importance(rows: Sequence[TrialRow], objective: ObjectiveRow, dimensions: Iterable[Dimension]) -> dict[str, float]:
    """Share of each path in what separates the better half of the trials from the rest, largest first; the shares add
    up to 1. By Optuna's PED-ANOVA (Watanabe et al., 2304.10255).

    rows: the trials of a sweep's report. dimensions: those of its space; values drawn from a range are compared by
    their position in the range. The result is empty if too few trials have the objective, or if no path took two
    values.
    """
    done = [row for row in rows if row.objectives.get(objective.name) is not None]
    axes = [axis for axis in map(_Axis, dimensions) if axis.varies(done)]
    if len(done) < FEWEST_TRIALS or not axes:
        return {}
    distributions = {axis.path: axis.distribution(done) for axis in axes}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if METRICS[objective.metric] == "min" else "maximize")
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=row.objectives[objective.name],
            params={axis.path: axis.value(row) for axis in axes},
            distributions=distributions,
        )
        for row in done
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


class _Axis:
    """A dimension of the space as an Optuna distribution. Listed values are categories without an order."""

    def __init__(self, dimension: Dimension) -> None:
        self.path, self._kind, self._ends = dimension.path, dimension.kind, dimension.values

    def varies(self, rows: Sequence[TrialRow]) -> bool:
        """Whether every trial has a value of it, and not all the same."""
        return all(self.path in row.config for row in rows) and len(set(map(self.value, rows))) > 1

    def value(self, row: TrialRow) -> Any:
        value = row.config[self.path]
        return json.dumps(value, sort_keys=True) if self._kind in LISTED else value

    def distribution(self, rows: Sequence[TrialRow]) -> BaseDistribution:
        if self._kind in LISTED:
            return CategoricalDistribution(sorted(set(map(self.value, rows))))
        kind = IntDistribution if "integer" in self._kind else FloatDistribution
        return kind(*self._ends, log=self._kind.startswith("log"))
