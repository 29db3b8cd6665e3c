"""A stage trained by a plain loop of torch on one process: what raystage's workers are compared with.

No DeepSpeed, no partitions, no micro batches; every parameter a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from raystage.config.training import Optimizer
from raystage.data.tokens import TokenWindows, open_streams
from raystage.growth.apply import Grown, grown_steps
from raystage.growth.rules import GrowthMap, growth_map
from raystage.models.build import build
from raystage.models.depth import hidden_matrices
from raystage.models.shape import ModelShape, parameters
from raystage.plans import learning_rate
from raystage.plans.stage import StagePlan
from raystage.plans.steps import rate_factor
from raystage.storage.checkpoint import Checkpoint
from raystage.train.muon import Muon
from raystage.train.texts import evaluation_set


@dataclass(frozen=True)
class GrownStart:
    """What a grown stage starts from, to be read like a checkpoint: that of the stage before through the map."""

    stage: StagePlan
    before: Checkpoint

    @property
    def rules(self) -> GrowthMap:
        growth = self.stage.growth
        shapes = self.stage.parent_shape, self.stage.shape
        return growth_map(*shapes, growth.operator, growth.optimizer_state, growth.options)

    @property
    def steps(self) -> dict[str, int]:
        return grown_steps(self.rules, self.before.steps)

    @property
    def new(self) -> frozenset[str]:
        """The parameters that no layer of the stage before became."""
        return frozenset(rule.target for rule in self.rules if rule.moments == "zeros")

    def has(self, states: Iterable[str]) -> bool:
        return self.before.has(states)

    def read(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        return Grown(self.rules, self.before.read, self.stage.seed).slice(parameter, state, start, stop)


Start = Checkpoint | GrownStart


def model_in(checkpoint: Start, shape: ModelShape) -> torch.nn.Module:
    """The checkpoint's weights in a model of transformers, in fp32."""
    model = build(shape)
    for parameter in parameters(shape):
        weight = model.get_parameter(parameter.name)
        weight.data.copy_(torch.from_numpy(_state(checkpoint, parameter.name, "fp32", weight)))
    return model


def loss_of(model: torch.nn.Module, sequences: np.ndarray) -> torch.Tensor:
    """The mean loss over all targets, in nats per token."""
    batch = torch.from_numpy(sequences)
    logits = model(input_ids=batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def evaluated(model: torch.nn.Module, stage: StagePlan) -> float:
    """On the stage's held-out text."""
    return loss_of(model, evaluation_set(stage).tokens).item()


def trained(stage: StagePlan, source: Start) -> torch.nn.Module:
    """The model of `source`, of the stage's shape, after the stage's training."""
    model, training = model_in(source, stage.shape), stage.training
    optimizer = _optimizer(model, training.optimizer, source, hidden_matrices(stage.shape))
    reader = TokenWindows(open_streams(stage.data, stage.shape.vocab_size).train, stage.window, stage.seed)
    tokens = stage.start
    new = source.new if isinstance(source, GrownStart) else frozenset()
    for step in range(stage.steps):
        for name, weight in model.named_parameters():
            weight.requires_grad = step >= stage.frozen_steps.get(name, 0)
        piece = stage.step_schedule.at(step)
        batch, length = piece.batch, piece.context_length
        rate, rewarm = (
            learning_rate.rate_at(stage.rate, tokens + batch / 2) * rate_factor(training, batch),
            stage.growth.rewarm if stage.growth else None,
        )
        boost = rewarm.at(tokens + batch / 2 - stage.start) if rewarm else 1.0
        for group in optimizer.param_groups:
            factor = stage.rate_factors.get(group["name"], 1.0)
            group["lr"] = (rate * boost if group["name"] in new else rate) * factor
        optimizer.zero_grad()
        loss_of(model, reader.sequences(tokens // length, batch // length, length)).backward()
        if training.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
        optimizer.step()
        tokens += batch
    return model


def _optimizer(
    model: torch.nn.Module, options: Optimizer, source: Start, matrices: frozenset[str]
) -> torch.optim.Optimizer:
    """With the moments and steps of `source`, where it has them of this kind of optimizer."""
    groups = [
        {"params": [weight], "weight_decay": options.weight_decay if weight.dim() >= 2 else 0.0, "name": name}
        for name, weight in model.named_parameters()
    ]
    if options.name == "muon":
        groups = [{**group, "is_orthogonal": group["name"] in matrices} for group in groups]
        made = Muon(groups, options, matrices, torch.float32)
    elif options.name == "sgd":
        made = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
    else:
        kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
        made = kind(groups, lr=options.lr, betas=options.betas, eps=options.eps)
    if source.has(options.moments):
        for name, weight in model.named_parameters():
            states = ("exp_avg",) if options.name == "muon" and name in matrices else options.moments
            made.state[weight] = {state: _tensor(source, name, state, weight) for state in states}
            made.state[weight]["step"] = torch.tensor(float(source.steps[name]))
    return made


def _tensor(checkpoint: Start, name: str, state: str, weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(_state(checkpoint, name, state, weight))


def _state(checkpoint: Start, name: str, state: str, weight: torch.Tensor) -> np.ndarray:
    return checkpoint.read(name, state, 0, weight.numel()).reshape(weight.shape).copy()
