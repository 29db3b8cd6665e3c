"""How much each path of a sweep's space had to do with the outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from raystage.sweep.config import METRICS
from raystage.sweep.space import LISTED, Dimension

# With fewer finished trials it says nothing.
FEWEST_TRIALS = 4
# Which trials count as good: the best tenth, as is usual, is one trial of a dozen and tells nothing of the others.
GOOD_SHARE = 0.5


def importance(rows: Sequence[Mapping[str, Any]], metric: str, dimensions: Iterable[Dimension]) -> dict[str, float]:
    """By path its share in what sets the better half of the trials apart, all together 1, the largest first: Optuna's
    PED-ANOVA (Watanabe et al., 2304.10255).

    rows: the trials of a sweep's report. dimensions: of its space; what is drawn from a range is compared by where it
    lies there. Empty where too few trials have the figure, or no path took two values.
    """
    done = [row for row in rows if row["objectives"].get(metric) is not None]
    axes = [axis for axis in map(_Axis, dimensions) if axis.varies(done)]
    if len(done) < FEWEST_TRIALS or not axes:
        return {}
    distributions = {axis.path: axis.distribution(done) for axis in axes}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if METRICS[metric] == "min" else "maximize")
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=row["objectives"][metric],
            params={axis.path: axis.value(row) for axis in axes},
            distributions=distributions,
        )
        for row in done
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


class _Axis:
    """A dimension of the space as Optuna has it: values that are listed stand for themselves, in no order."""

    def __init__(self, dimension: Dimension) -> None:
        self.path, self._kind, self._ends = dimension.path, dimension.kind, dimension.values

    def varies(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether it has a value in every trial, and not one and the same."""
        return all(self.path in row["config"] for row in rows) and len(set(map(self.value, rows))) > 1

    def value(self, row: Mapping[str, Any]) -> Any:
        value = row["config"][self.path]
        return json.dumps(value, sort_keys=True) if self._kind in LISTED else value

    def distribution(self, rows: Sequence[Mapping[str, Any]]) -> BaseDistribution:
        if self._kind in LISTED:
            return CategoricalDistribution(sorted(set(map(self.value, rows))))
        kind = IntDistribution if "integer" in self._kind else FloatDistribution
        return kind(*self._ends, log=self._kind.startswith("log"))
