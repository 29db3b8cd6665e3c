"""How much each path of a sweep's space had to do with the outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from raystage.sweep_file import METRICS

# With fewer finished trials it says nothing.
FEWEST_TRIALS = 4
# Which trials count as good: the best tenth, as is usual, is one trial of a dozen and tells nothing of the others.
GOOD_SHARE = 0.5


def importance(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """By path its share in what sets the better half of the trials apart, all together 1, the largest first: Optuna's
    PED-ANOVA (Watanabe et al., 2304.10255).

    rows: the trials of a sweep's report. Empty where too few have the figure, or no path took two values.
    """
    done = [row for row in rows if row["objectives"].get(metric) is not None]
    paths = [path for path in _common(done) if len({_category(row["config"][path]) for row in done}) > 1]
    if len(done) < FEWEST_TRIALS or not paths:
        return {}
    choices = {path: sorted({_category(row["config"][path]) for row in done}) for path in paths}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if METRICS[metric] == "min" else "maximize")
    for row in done:
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=row["objectives"][metric],
                params={path: _category(row["config"][path]) for path in paths},
                distributions={path: CategoricalDistribution(choices[path]) for path in paths},
            )
        )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _common(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paths that have a value in every trial."""
    return [path for path in rows[0]["config"] if all(path in row["config"] for row in rows)] if rows else []


def _category(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
