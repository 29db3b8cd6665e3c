"""The record of a stage that has been trained, and the software and hardware that it was trained with."""

from __future__ import annotations

import platform
from typing import Any

import deepspeed
import torch
import transformers
from deepspeed.accelerator import get_accelerator

from raystage.plans.stage import StagePlan
from raystage.results.record import Progress, StageRecord


def finished_record(stage: StagePlan, progress: Progress, checkpoint: str) -> StageRecord:
    """What follows from a stage and its progress at the end. checkpoint: what the next stage starts from."""
    return StageRecord(
        key=stage.key,
        parent_key=stage.parent_key,
        name=stage.name,
        shape=stage.shape,
        num_params=stage.num_params,
        num_workers=progress.num_workers,
        zero_stage=stage.training.zero_stage,
        duration=progress.position - stage.start,
        steps=progress.steps - stage.start_steps,
        flops=progress.flops - stage.start_flops,
        seconds=progress.seconds,
        evaluation_seconds=progress.evaluation_seconds,
        evaluation_flops=progress.evaluation_flops,
        peak_memory_bytes=0,
        eval_loss=progress.evaluations[-1].loss,
        checkpoint=checkpoint,
        growth=progress.growth,
        prefix=progress.prefix,
        resizes=progress.resizes,
        train=tuple(progress.train),
        evaluations=tuple(progress.evaluations),
        environment=environment(),
        energy_joules=progress.energy_joules,
        evaluation_energy_joules=progress.evaluation_energy_joules,
        unit=stage.unit,
        scoring=progress.scoring,
    )


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # of a type of torch, which whoever unpickles it would have to load
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "device": get_accelerator().device_name(),
        "host": platform.node(),
    }
