"""A sweep's `search` and `scheduler` as Ray Tune's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raystage.space import Dimension, Space
from raystage.sweep_file import METRICS, Scheduler, Sweep
from raystage.trials import SweepPlan

# Tune ends a trial at a rung when it is not among the best 1 / reduction_factor that came there before it.
REDUCTION_FACTOR = 3.0


def make_scheduler(scheduler: Scheduler, most_flops: int, most_tokens: int) -> TrialScheduler:
    """most_flops, most_tokens: of the longest trial. LAG's choice is not Tune's to make: its trials are cut."""
    if scheduler.name != "asha":
        return FIFOScheduler()
    axis = "tokens" if scheduler.grace.tokens is not None else "flops"
    return AsyncHyperBandScheduler(
        time_attr=axis,
        metric="eval_loss",
        mode="min",
        grace_period=scheduler.grace.tokens or scheduler.grace.flops,
        max_t=most_tokens if axis == "tokens" else most_flops,
        reduction_factor=scheduler.reduction_factor or REDUCTION_FACTOR,
        stop_last_trials=False,
    )


def points(plan: SweepPlan, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """Tune's space for trials that are known beforehand, in the order in which what they share is trained first.

    numbers: the trials to run, all unless given.
    """
    chosen = plan.tree.order if numbers is None else [one for one in plan.tree.order if one in set(numbers)]
    configs = [{"number": number, **plan.trials[number].config} for number in chosen]
    return {"trial": tune.grid_search(configs)}


def make_optuna(sweep: Sweep) -> OptunaSearch:
    """Optuna over the space, conditions included, by its default sampler (TPE; NSGA-II for several objectives)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics = [one.metric for one in sweep.objective]
    modes = [METRICS[metric] for metric in metrics]
    one = len(metrics) == 1
    return OptunaSearch(
        DefinedByRun(sweep.points),
        metric=metrics[0] if one else metrics,
        mode=modes[0] if one else modes,
        sampler=_sampler(sweep),
    )


def _sampler(sweep: Sweep) -> optuna.samplers.BaseSampler:
    seed = sweep.search.seed
    return (
        optuna.samplers.TPESampler(seed=seed) if len(sweep.objective) == 1 else optuna.samplers.NSGAIISampler(seed=seed)
    )


class DefinedByRun:
    """Asks an Optuna trial for a point of the space, path by path. A class, since Tune pickles it."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """What is returned goes into Tune's config besides what was asked for."""
        config: dict[str, Any] = {}
        for dimension in self._space.dimensions:
            if dimension.counts(config):
                config[dimension.path] = suggested(trial, dimension)
        return {"trial": {"number": trial.number, **config}}


def suggested(trial: optuna.Trial, dimension: Dimension) -> Any:
    path, values = dimension.path, dimension.values
    match dimension.kind:
        case "grid" | "choice":
            # Optuna's categories are plain values: lists stand for themselves by their place.
            return values[trial.suggest_categorical(path, list(range(len(values))))]
        case "uniform":
            return trial.suggest_float(path, *values)
        case "loguniform":
            return trial.suggest_float(path, *values, log=True)
        case "integer":
            return trial.suggest_int(path, *values)
    return trial.suggest_int(path, *values, log=True)
