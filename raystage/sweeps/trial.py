"""One trial of a sweep, in an actor of Ray Tune's: a schedule run by a driver of its own, and what it is judged by.

Trials meet in the store alone. A trial waits for what another one trains, without holding a CPU or a GPU; it reuses
what is finished. Tune hears of every evaluation and of every finished stage, and of the objectives at the end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any

import ray
from ray import tune

from raystage.cluster.job_variables import get_variables
from raystage.cluster.worker_environment import passed_on
from raystage.config.schedule import parse
from raystage.files.filesystem import open_folder
from raystage.plans.keys import ended_after
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.data.mixtures import losses_by_name
from raystage.results.record import Evaluation, StageRecord
from raystage.results.report import EvaluationPoint, RunReport
from raystage.runs.earlier import make_way
from raystage.runs.events import RunCallback
from raystage.runs.session import RunSession, Tracking
from raystage.runs.wandb import Mode
from raystage.storage.store import Store
from raystage.storage.stored_files import RUN_FILE, TRIAL_FILE
from raystage.sweeps.config import Objective, Sweep
from raystage.sweeps.trials import Planner, Trial

# The entry of a trial's report that holds the key of a stage which it finished, or found finished.
FINISHED_STAGE = "finished_stage"


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep have in common. command: what continues the sweep. wandb_folder: where `wandb/` is
    made; None if what W&B writes is copied to the sweep's folder in the store. patience_seconds: how long a trial waits
    for nodes that the cluster lacks. environment: variables of the process that makes this, which trials pass on to
    their workers. pilot_length: if given, each trial ends so many tokens or samples after its first growth; the best
    are continued later."""

    sweep: Sweep
    store: str
    command: str
    wandb_mode: Mode
    wandb_folder: str | None
    patience_seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=lambda: passed_on(os.environ))
    pilot_length: int | None = None


def run_trial(config: Mapping[str, Any], task: TrialTask) -> None:
    """The function that Tune runs. config: the number of the trial, and its point of the space by path."""
    get_variables()
    os.environ.update(task.environment)
    point = dict(config)
    number = point.pop("number")
    trial = Planner(task.sweep).trial(number, point)
    plan = trial.plan if task.pilot_length is None else cut_after_growth(trial.plan, task.pilot_length)
    store = Store(open_folder(task.store))
    folder = store.run_folder(plan.name)
    if folder.size_of(TRIAL_FILE) is None and folder.size_of(RUN_FILE) is not None:
        make_way(store, plan.name, ())  # a run that was called so before there was the sweep
    store.write_run(plan.name, TRIAL_FILE, {"sweep": task.sweep.name, "number": number, "config": trial.config})
    report = _carry_out(trial, plan, store, task)
    found = {one.name: measure(one, report) for one in task.sweep.objective}
    figures = {name: _for_tune(name, value) for name, value in found.items()}
    tune.report({**last_metrics(report, task.sweep.source), **figures, "is_final": True})


def _carry_out(trial: Trial, plan: Plan, store: Store, task: TrialTask) -> RunReport:
    schedule = parse(trial.content, task.sweep.schedule_file.parent)
    tracking = Tracking(
        task.wandb_mode,
        task.wandb_folder,
        None if task.wandb_folder else store.run_folder(task.sweep.name) / "wandb",
        group=task.sweep.name,
        job_type="trial",
        config={**schedule.content(), **trial.config},
        resumes=False,
    )
    address = ray.get_runtime_context().gcs_address
    # Figures would be half of what a trial takes besides training: `raystage report TRIAL --figures` draws them.
    with RunSession(
        plan, schedule, store, command=task.command, connected_to=address, patience_seconds=task.patience_seconds,
        tracking=tracking, draws=False,
    ) as session:  # fmt: skip
        return session.run([ToTune([one.name for one in task.sweep.objective], task.sweep.source)])


def cut_after_growth(plan: Plan, length: int) -> Plan:
    """The staged run of a plan up to `length` after its first growth, in the unit of the grown stage. It has the same
    bits as the first part of the whole run."""
    stages: list[StagePlan] = []
    for stage in plan.staged.stages:
        if stage.growth is None or not stages:
            stages.append(stage)
            continue
        steps = min(stage.steps, stage.step_schedule.steps_for(length))
        stages.append(ended_after(stage, steps))
        break
    return Plan(plan.name, RunPlan(plan.staged.name, tuple(stages)), (), plan.scratch_flops)


def last_metrics(report: RunReport, source: str | None = None) -> dict[str, Any]:
    """The metrics at the end of a staged run, under the names that evaluations are reported under. source: whose loss
    counts."""
    end = report.stages[-1].evaluations[-1]
    return {"eval_loss": _loss(end, source), report.unit: end.position, "flops": end.flops}


def _for_tune(metric: str, value: float | None) -> float:
    """A metric that could not be measured gets the worst value, because Tune and Optuna accept no None."""
    if value is not None:
        return value
    return -math.inf if metric == "compute_saved" else math.inf


class ToTune(RunCallback):
    """A callback that tells Tune of every evaluation of the staged run, its loss, position and FLOPs from the run's
    start, and of every stage that is finished: others may wait for it.

    objectives: that are not known before the end; Optuna wants to see them in every report. source: of a mixture, whose
    loss counts in place of the mean.
    """

    def __init__(self, objectives: Sequence[str], source: str | None = None) -> None:
        self._source = source
        self._unknown = dict.fromkeys(objectives, math.nan)
        self._reached = -1

    def evaluated(self, run: RunPlan, stage: StagePlan, point: Evaluation) -> None:
        # Not by position: that begins anew where a run changes from tokens to samples.
        if run.name == "staged" and point.flops > self._reached:
            self._reached = point.flops
            self._report(run, stage, point)

    def stage_finished(self, run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> None:
        if run.name == "staged":
            self._report(run, stage, record.evaluations[-1], **{FINISHED_STAGE: record.key})

    def _report(self, run: RunPlan, stage: StagePlan, point: Evaluation, **more: str) -> None:
        loss = point.loss if self._source is None else losses_by_name(point, run).get(self._source, math.inf)
        metrics = {"eval_loss": loss, stage.unit: point.position, "flops": point.flops}
        tune.report({**self._unknown, **metrics, **more})


def measure(objective: Objective, report: RunReport) -> float | None:
    """The objective of a finished trial; None if the trial never reached it. Losses are in nats per token. Only the
    staged run counts; FLOPs and seconds are counted from its start, with growth and without evaluation."""
    points = [
        replace(point, loss=loss)
        for row in report.stages
        for point in row.evaluations
        if (loss := _loss(point, objective.source)) is not None
    ]
    match objective.metric:
        case "eval_loss":
            last = report.stages[-1]
            return last.eval_loss if objective.source is None else _loss(last.evaluations[-1], objective.source)
        case "compute_saved":
            return report.savings.share
        case "flops_to_loss":
            return first_at(points, objective.target, attrgetter("flops"))
        case "seconds_to_loss":
            return first_at(points, objective.target, attrgetter("run_seconds"))
        case "eval_loss_at_flops":
            return loss_at(points, objective.at)
    raise ValueError(f"found {objective.metric}; expected a metric that a sweep knows")


def _loss(point: EvaluationPoint, source: str | None) -> float | None:
    """The loss on a source, where one is named; None where the point has none of it."""
    return point.loss if source is None else point.sources.get(source)


def first_at(
    points: Sequence[EvaluationPoint], target: float, place: Callable[[EvaluationPoint], float | None]
) -> float | None:
    """Where a curve is first at or below `target`: at an evaluation, not between two."""
    return next((place(point) for point in points if point.loss <= target), None)


def loss_at(points: Sequence[EvaluationPoint], flops: int) -> float | None:
    """The loss at a number of FLOPs, interpolated linearly over log FLOPs between two evaluations. None outside of
    them.

    At a growth the loss may jump: two evaluations then have the same FLOPs, and the later one counts.
    """
    exact = [point.loss for point in points if point.flops == flops]
    if exact:
        return exact[-1]
    for before, after in pairwise(points):
        if 0 < before.flops < flops < after.flops:
            share = math.log(flops / before.flops) / math.log(after.flops / before.flops)
            return before.loss + share * (after.loss - before.loss)
    return None
