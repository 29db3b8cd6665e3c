"""The memory that one worker needs, estimated before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from raystage.config.training import Training
from raystage.config.types import SELECTIVE
from raystage.models.depth import num_in_hidden_matrices
from raystage.models.shape import ModelShape, num_params, parameters, sample_outputs, table_of
from raystage.objectives.table import CHUNK_TARGETS
from raystage.plans.adapters import AdapterPlan

# Bytes that a transformer layer keeps per token and hidden unit for its backward pass at 16 bits, with a fused
# attention that stores no score matrix: 34 (Korthikanti et al., 2205.05198, equation 1, without its 5as/h term).
# 2 of them are the layer's input: activation checkpointing keeps only these.
_ACTIVATION_BYTES = 34
_CHECKPOINTED_BYTES = 2
# Bytes that a score takes where attention is not fused: its tanh and its share, the latter in fp32 too at 16 bits.
_SCORE_BYTES = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    teacher_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        trained = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes
        return trained + self.teacher_bytes

    def as_dict(self) -> dict:
        return {**asdict(self), "total_bytes": self.total_bytes}


def estimate(
    shape: ModelShape, training: Training, teachers: Sequence[ModelShape] = (), adapter: AdapterPlan | None = None
) -> MemoryEstimate:
    """Weights, gradients and optimizer state as ZeRO partitions them (1910.02054, figure 1), and activations.

    fp32: 4 bytes for a weight and for a gradient. bf16: 2 bytes, but ZeRO 1 to 3 sums gradients in fp32. Optimizer: its
    moments (two of Adam, one of SGD with momentum and of Muon's matrices) of 4 bytes each, and a master weight of 4
    bytes, which DeepSpeed's ZeRO optimizers keep beside fp32 weights too; only fp32 with zero_stage 0 has none. Not
    counted: what Muon gathers during a step, 4 bytes for each parameter of a group; host memory for the copy of weights
    and moments that a worker saves from in the background. An offloaded optimizer is counted too: it needs the worker's
    host memory in place of its device's. training: complete, with its micro_batch_size.

    teachers: of `distillation`. Every worker has all of their weights, in the precision of the training, and the scores
    of each for a micro batch: in fp32, as they are and as the logarithms of probabilities.

    adapter: only what is trained with it has gradients and optimizer state. Activations are kept as without it.

    The scores of a micro batch and their gradient are counted in fp32; where they are computed some targets at a time,
    those of a chunk, and the gradient of the head, which is summed up in fp32 beside the others.
    """
    params, workers, stage = num_params(shape), training.workers.most, training.zero_stage
    trained = adapter.num_trained(shape) if adapter else params
    held = params + (adapter.num_added(shape) if adapter else 0)
    low = 4 if training.precision == "fp32" else 2
    gradient = 2 if training.precision == "bf16" and stage == 0 else 4
    master = 0 if training.precision == "fp32" and stage == 0 else 4
    without = num_in_hidden_matrices(shape) if training.optimizer.name == "muon" else 0  # these have no second moment
    optimizer = trained * (4 * len(training.optimizer.moments) + master) - 4 * without
    return MemoryEstimate(
        weights_bytes=_cut(held * low, workers, stage >= 3),
        gradients_bytes=_cut(trained * gradient, workers, stage >= 2),
        optimizer_bytes=_cut(optimizer, workers, stage >= 1),
        activations_bytes=_activations(shape, training, low) + _scores(shape, training, adapter),
        teacher_bytes=sum(_teacher(one, training.micro_batch_size * shape.context_length, low) for one in teachers),
    )


def _cut(total: int, workers: int, partitioned: bool) -> int:
    return -(-total // workers) if partitioned else total


def _teacher(teacher: ModelShape, tokens: int, element_bytes: int) -> int:
    return num_params(teacher) * element_bytes + 2 * tokens * teacher.vocab_size * 4


def _activations(shape: ModelShape, training: Training, element_bytes: int) -> int:
    tokens = training.micro_batch_size * shape.context_length
    per_layer = tokens * shape.hidden_size * _ACTIVATION_BYTES * element_bytes // 2
    if table_of(shape).caps_scores:
        per_layer += tokens * shape.num_heads * shape.context_length * _SCORE_BYTES
    kept = tokens * shape.hidden_size * _CHECKPOINTED_BYTES * element_bytes // 2
    if training.activation_checkpointing == SELECTIVE:
        kept += tokens * _products(shape) * element_bytes
    recomputed = min(shape.num_layers, 1) * per_layer  # one layer at a time
    return shape.num_layers * kept + recomputed if training.activation_checkpointing else shape.num_layers * per_layer


def _products(shape: ModelShape) -> int:
    """The numbers that the matrix products of a layer, and its attention, make of one position. Of a mixture a position
    goes through `experts_per_token` of the experts."""
    active = replace(shape.with_layers(1), num_experts=shape.experts_per_token)
    total = shape.num_heads * shape.head_size
    for one in parameters(active):
        roles = [axis.role for axis in one.spec.axes]
        if one.layer is not None and {"out", "in"} <= set(roles):
            total += math.prod(size for size, role in zip(one.shape, roles, strict=True) if role in ("out", "each"))
    return total


def _scores(shape: ModelShape, training: Training, adapter: AdapterPlan | None) -> int:
    """What a model says of a micro batch and its gradient, in fp32."""
    outputs, of_head = training.micro_batch_size * sample_outputs(shape, shape.context_length), 0
    if training.cross_entropy != "whole":
        outputs = min(outputs, CHUNK_TARGETS * shape.vocab_size)
        is_trained = adapter is None or table_of(shape).head in adapter.in_full
        of_head = is_trained * shape.vocab_size * shape.hidden_size * 4
    return 2 * outputs * 4 + of_head
