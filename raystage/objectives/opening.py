"""Opens the learner of a planned objective, on a worker, and what judges held-out text."""

from __future__ import annotations

import importlib
from typing import Any

from raystage.objectives.learner import Judge, Learner
from raystage.objectives.plan import ObjectivePlan
from raystage.objectives.table import OBJECTIVES


def open_learner(objective: ObjectivePlan) -> Learner:
    """Raises InputError where it cannot be opened."""
    return _open(objective.name, objective.options)


def open_judge(objective: ObjectivePlan) -> Judge:
    """An objective that judges by itself has a class that is both learner and judge."""
    judge = OBJECTIVES[objective.name].judge
    return _open(judge, objective.options if judge == objective.name else {})


def _open(name: str, options: Any) -> Any:
    """The module of an objective defines `open_learner(**options)`."""
    return importlib.import_module(OBJECTIVES[name].module).open_learner(**options)
