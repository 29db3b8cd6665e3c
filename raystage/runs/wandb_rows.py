"""The rows that W&B gets of a run, as plain values. raystage/runs/wandb.py sends them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from raystage.files.typed_json import to_json
from raystage.plans.plan import Plan, RunPlan
from raystage.plans.stage import StagePlan
from raystage.results.endings import AverageRecord
from raystage.results.record import Evaluation, GrowthRecord, StageRecord, TrainPoint
from raystage.results.report import SavingsPart
from raystage.units import TOKENS, Unit

Row = dict[str, Any]

_ARTIFACT_NAME_LENGTH = 128

NO_LOSSES: Mapping[str, float] = MappingProxyType({})


def run_config(config: Mapping[str, Any], plan: Plan, run: RunPlan) -> dict[str, Any]:
    """What W&B shows as a run's configuration: the schedule, the keys of the run's stages, and if there are several
    seeds or values the run's own, by path."""
    keys = {"name": plan.name, "run": run.name, "stage_keys": {one.name: one.key for one in run.stages}}
    if not (plan.variants or plan.further_seeds):
        return {**config, **keys}
    values = {path: attrgetter(path)(run.stages[-1]) for path, _ in plan.values}
    return {**config, **keys, "variant": {"seed": plan.variant_of(run.name).seed, **values}}


def train_row(point: TrainPoint, unit: Unit) -> Row:
    """One point of the training curves; mfu only if it is known."""
    row = {
        unit: point.position,
        "flops": point.flops,
        "train/loss": point.loss,
        "train/lr": point.lr,
        "train/gradient_norm": point.gradient_norm,
        f"train/{unit}_per_second": point.speed,
    }
    return row if point.mfu is None else {**row, "train/mfu": point.mfu}


def evaluation_row(point: Evaluation, stage: StagePlan, by_source: Mapping[str, float] = NO_LOSSES) -> Row:
    """by_source: of a mixture, by name the loss on each source."""
    row = {
        stage.unit: point.position,
        "flops": point.flops,
        "eval/loss": point.loss,
    }
    if "perplexity" in stage.objective.judge.shows:
        row["eval/perplexity"] = point.perplexity
    row |= {f"eval/{name}": value for name, value in point.metrics.items()}
    row |= {f"eval/loss/{name}": loss for name, loss in by_source.items()}
    return row if point.accuracy is None else {**row, "eval/accuracy": point.accuracy}


def growth_row(stage: StagePlan, growth: GrowthRecord) -> Row:
    """A growth, at the first token of the stage that it leads into. What was not measured is left out."""
    certificate = growth.certificate
    figures = {
        "eval_loss_before": certificate.eval_loss_before,
        "eval_loss_after": certificate.eval_loss_after,
        "loss_increase": certificate.loss_increase,
        "max_logit_difference": certificate.max_logit_difference,
        "mean_logit_difference": certificate.mean_logit_difference,
        "gradient_error": certificate.gradient_error,
        "gradient_error_estimated": certificate.gradient_error_estimated,
        "seconds": growth.seconds,
        "bytes_read": certificate.bytes_read,
        "exact": None if certificate.exact is None else int(certificate.exact),
    }
    norms = {
        f"growth/{state}_norm_{when}": norm
        for state, sides in certificate.moment_norms.items()
        for when, norm in sides.items()
    }
    known = {f"growth/{name}": figure for name, figure in figures.items() if figure is not None}
    return {stage.unit: stage.start, "flops": stage.start_flops, **known, **norms}


def duplicates_row(stage: StagePlan, growth: GrowthRecord) -> Row:
    """How different duplicates have become, some steps into the stage; without a distance if there were none."""
    certificate = growth.certificate
    row = {
        stage.unit: stage.start + stage.step_schedule.duration(certificate.twin_steps),
        "flops": stage.start_flops + stage.flops * certificate.twin_steps // stage.steps,
        "growth/twin_steps": certificate.twin_steps,
    }
    return row if certificate.twin_distance is None else {**row, "growth/twin_distance": certificate.twin_distance}


def stage_row(run: RunPlan, stage: StagePlan) -> Row:
    """What a stage is; index counts from 0, as in the schedule."""
    return {
        stage.unit: stage.start,
        "flops": stage.start_flops,
        "stage/index": [one.key for one in run.stages].index(stage.key),
        "stage/num_layers": stage.shape.num_layers,
        "stage/num_params": stage.num_params,
        "stage/num_workers": stage.training.workers.most,
        "stage/zero_stage": stage.training.zero_stage,
    }


def result_row(run: RunPlan, stage: StagePlan, record: StageRecord, reused: bool) -> Row:
    """A stage and its results, at its last token. Tokens, FLOPs and seconds are the stage's own."""
    return {
        **stage_row(run, stage),
        stage.unit: stage.start + record.duration,
        "flops": stage.start_flops + record.flops,
        "stage/eval_loss": record.eval_loss,
        f"stage/{stage.unit}": record.duration,
        "stage/steps": record.steps,
        "stage/flops": record.flops,
        "stage/seconds": record.seconds,
        "stage/worker_seconds": record.worker_seconds,
        "stage/evaluation_seconds": record.evaluation_seconds,
        "stage/evaluation_flops": record.evaluation_flops,
        "stage/peak_memory_bytes": record.peak_memory_bytes,
        "stage/reused": int(reused),
        **(_average_figures(record.average) if record.average else {}),
    }


def _average_figures(average: AverageRecord) -> Row:
    return {
        "stage/average_eval_loss": average.eval_loss,
        "stage/single_eval_loss": average.single_eval_loss,
        "stage/average_is_kept": int(average.is_kept),
    }


def savings_summary(savings: SavingsPart, unit: Unit = TOKENS) -> Row:
    """Every field that has a value; of an interval over seeds its mean and its ends."""
    content = to_json(savings, unit)
    seeds = content.pop("seeds", {})
    row = {f"savings/{field}": value for field, value in content.items()}
    for field, found in seeds.items():
        if isinstance(found, dict):
            row |= {f"savings/{field}_{part}": value for part, value in found.items()}
    return {key: value for key, value in row.items() if value is not None}


def artifact_name(schedule: str, run: RunPlan, stage: StagePlan) -> str:
    """A name W&B accepts: letters, digits, '.', '_' and '-', of limited length."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{schedule}-{run.name}-{stage.name}")[-_ARTIFACT_NAME_LENGTH:]


def checkpoint_metadata(record: StageRecord, uri: str, parent_artifact: str | None) -> dict[str, Any]:
    """What identifies a checkpoint, and what it was made from."""
    return {
        "key": record.key,
        "parent_key": record.parent_key,
        "parent_artifact": parent_artifact,
        "manifest": uri,
        "num_params": record.num_params,
        "num_layers": record.shape.num_layers,
        "num_workers": record.num_workers,
        "zero_stage": record.zero_stage,
        record.unit: record.duration,
        "flops": record.flops,
        "eval_loss": record.eval_loss,
        "growth_operator": record.growth.operator if record.growth else None,
    }
