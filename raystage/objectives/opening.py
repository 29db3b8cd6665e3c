"""Opens the learner of a planned objective, on a worker, and what judges held-out text."""

from __future__ import annotations

import importlib
from typing import Any

from raystage.objectives.learner import Judge, Learner, Models
from raystage.objectives.plan import ObjectivePlan
from raystage.objectives.table import OBJECTIVES
from raystage.user_code import check_code

NO_MODELS = Models()


def open_learner(objective: ObjectivePlan, models: Models = NO_MODELS) -> Learner:
    """models: those that the objective needs. Raises InputError where it cannot be opened."""
    for field, code in (objective.decisive.get("code") or {}).items():
        if code is not None:
            check_code(objective.options[field], code[1], f"objective.{field}")
    needed = {name: getattr(models, name) for name in objective.entry.needs}
    return _open(objective.name, {**objective.options, **needed})


def open_judge(objective: ObjectivePlan) -> Judge:
    """An objective that judges by itself has a class that is both learner and judge."""
    judge = OBJECTIVES[objective.name].judge
    return _open(judge, objective.options if judge == objective.name else {})


def _open(name: str, options: Any) -> Any:
    """The module of an objective defines `open_learner(**options)`."""
    return importlib.import_module(OBJECTIVES[name].module).open_learner(**options)
