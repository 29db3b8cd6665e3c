"""The teacher of a stage (`distillation`): a whole frozen model on every worker, whatever the ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from raystage.models.build import build
from raystage.models.shape import ModelShape
from raystage.objectives.judging import log_mean
from raystage.objectives.learner import Models
from raystage.objectives.opening import NO_MODELS
from raystage.plans.initial import TEACHER_KEY, TeacherPlan
from raystage.plans.stage import StagePlan
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.huggingface import FolderWeights
from raystage.storage.store import Store
from raystage.train.engine import DTYPES
from raystage.train.entry import open_planned
from raystage.train.state.buffers import persistent_buffers
from raystage.train.state.opening import finished_checkpoint, opened_by_all


def models_of(stage: StagePlan, store: Store) -> Models:
    """The models that a stage's objective needs beside the one that is trained, on this worker's device.

    Every worker reads all weights of all teachers. Raises InputError where this worker finds another teacher than was
    planned with, CheckpointError where its weights are not whole.
    """
    if stage.teacher is None:
        return NO_MODELS
    device = torch.device(get_accelerator().current_device_name())
    teachers = [_teacher(one, stage, store).to(device) for one in stage.teacher.all]
    return Models(teacher=teachers[0] if len(teachers) == 1 else MeanModel(teachers))


def _teacher(teacher: TeacherPlan, stage: StagePlan, store: Store) -> torch.nn.Module:
    with closing(_weights(teacher, store)) as source:
        return frozen_model(teacher.shape, source, DTYPES[stage.training.precision])


@dataclass(frozen=True)
class MeanModel:
    """Several frozen models as one, whose scores are the logarithms of the means of their probabilities.

    A score of an id that only some of them have is padding, and is left out.
    """

    models: Sequence[torch.nn.Module]

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        scores = [model(**inputs).logits.float() for model in self.models]
        shared = min(one.shape[-1] for one in scores)
        return SimpleNamespace(logits=log_mean([one[..., :shared] for one in scores]))


def frozen_model(shape: ModelShape, source: Checkpoint | FolderWeights, dtype: torch.dtype) -> torch.nn.Module:
    """A model with the weights of `source`, in host memory, for inference alone."""
    network = build(shape, dtype).requires_grad_(False)
    for name, one in (*network.named_parameters(), *persistent_buffers(network)):
        values = source.read(name, "fp32", 0, one.numel())
        one.copy_(torch.from_numpy(values).view(one.shape))
    return network.eval()


def _weights(teacher: TeacherPlan, store: Store) -> Checkpoint | FolderWeights:
    if teacher.init is None:
        return opened_by_all(finished_checkpoint(store, teacher.key))
    return open_planned(teacher.init, TEACHER_KEY)
