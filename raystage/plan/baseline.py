"""What the baselines are trained with: as the last stage, but for what is part of the staging.

A ramp is; so is a rate of the last stage's own, which is the end of a schedule and none for a whole run. The user's
`baseline.training` counts before both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raystage.config.schedule import Schedule
from raystage.config.stage import LrSchedule
from raystage.errors import InputError
from raystage.plan.learning_rate import span_tokens
from raystage.plan.resolve import ResolvedStage, check_optimizer, resolve_training

# Of both sides alike, or nothing that a model from scratch could have.
_NOT_ITS_OWN = ("ramp", "evaluate")


def baseline_stage(schedule: Schedule, stages: Sequence[ResolvedStage]) -> ResolvedStage:
    """The last stage, trained as a baseline is. Raises InputError where `baseline.training` does not fit it."""
    last, written = stages[-1], schedule.baseline.training
    changes = {"ramp": None, "lr_schedule": whole_run_rate(schedule, stages)}
    if not written.model_fields_set:
        return replace(last, training=last.training.model_copy(update=changes))
    for field in _NOT_ITS_OWN:
        if field in written.model_fields_set:
            problem = "found in the baseline, which has none of its own; remove it"
            raise InputError(problem, key=f"baseline.training.{field}")
    training = schedule.resolved(len(stages) - 1).training.model_copy(update=changes).overlaid(written)
    try:
        check_optimizer(written.optimizer, training.optimizer)
        return replace(last, training=resolve_training(training, last.shape))
    except InputError as error:
        raise InputError(error.problem, key=f"baseline.{error.key}") from None


def whole_run_rate(schedule: Schedule, stages: Sequence[ResolvedStage]) -> LrSchedule:
    """The shape of the baselines' rate.

    Where the last stage has one of its own: the file's, if that decays; else the last stage's kind. Either way with a
    warm-up, the one that the staged run began with.
    """
    first, last = stages[0], stages[-1]
    own, of_file = last.training.lr_schedule, schedule.training.lr_schedule
    if not last.own_rate or len(stages) == 1:
        return own
    decays = "lr_schedule" in schedule.training.model_fields_set and of_file.kind != "constant"
    if decays and of_file.warmup:
        return of_file
    total = first.tokens if first.own_rate else sum(stage.tokens for stage in stages)
    warmup = span_tokens(first.training.lr_schedule.warmup, total)
    rate = of_file if decays else own
    return rate.model_copy(update={"warmup": float(warmup)}) if warmup else rate
