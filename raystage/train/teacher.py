"""The teacher of a stage (`distillation`): a whole frozen model on every worker, whatever the ZeRO stage."""

from __future__ import annotations

import torch
from deepspeed.accelerator import get_accelerator

from raystage.models.build import build
from raystage.models.shape import ModelShape
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


def models_of(stage: StagePlan, store: Store) -> Models:
    """The models that a stage's objective needs beside the one that is trained, on this worker's device.

    Every worker reads all of the teacher's weights. Raises InputError where this worker finds another teacher than was
    planned with, CheckpointError where its weights are not whole.
    """
    if stage.teacher is None:
        return NO_MODELS
    source = _weights(stage.teacher, store)
    try:
        teacher = frozen_model(stage.teacher.shape, source, DTYPES[stage.training.precision])
    finally:
        source.close()
    return Models(teacher=teacher.to(torch.device(get_accelerator().current_device_name())))


def frozen_model(shape: ModelShape, source: Checkpoint | FolderWeights, dtype: torch.dtype) -> torch.nn.Module:
    """A model with the weights of `source`, in host memory, for inference alone."""
    network = build(shape, dtype).requires_grad_(False)
    for name, one in (*network.named_parameters(), *persistent_buffers(network)):
        values = source.read(name, "fp32", 0, one.numel())
        one.copy_(torch.from_numpy(values).view(one.shape))
    return network.eval()


def _weights(teacher: TeacherPlan, store: Store) -> Checkpoint | FolderWeights:
    if teacher.init is None:
        return Checkpoint(store.finished_checkpoint(teacher.key).unmapped)
    return open_planned(teacher.init, TEACHER_KEY)
