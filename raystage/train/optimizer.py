"""The optimizer of a stage, and the step counts of what growth made new.

Parameters that are wholly new are groups of their own, with their own step count and rate. New rows and columns of
an old parameter are not: torch counts one step for a tensor, and DeepSpeed for a flat one. `NewElements` steps them as
if they stood apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from raystage.config.training import Optimizer
from raystage.growth.apply import head_starts_in, is_new
from raystage.growth.counts import HeadStarts, is_settled
from raystage.growth.rules import GrowthMap, Rule, growth_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.plan.plan import StagePlan
from raystage.train.partitions import Partition


def build(groups: list[dict], options: Optimizer) -> torch.optim.Optimizer:
    """torch's optimizer over parameter groups. One of SGD counts its steps too, as Adam does by itself."""
    if options.name == "sgd":
        made = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
        made.register_step_post_hook(_count_step)
        return made
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=options.lr, betas=options.betas, eps=options.eps)


def _count_step(optimizer: torch.optim.Optimizer, arguments: tuple, named: dict) -> None:
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            if tensor.grad is not None:
                optimizer.state[tensor].setdefault("step", torch.tensor(0.0)).add_(1)


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    steps: dict[str, int],
    apart: frozenset[str] = frozenset(),
    frozen: frozenset[str] = frozenset(),
) -> list[dict]:
    """Parameter groups: matrices decay and vectors do not; parameters that have seen different numbers of
    optimizer steps are apart, because DeepSpeed keeps one count per group; so are those named in `apart`, whose
    groups `is_new` marks, and in `frozen`, whose groups `is_frozen` marks."""
    groups: dict[tuple[bool, int, bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        groups.setdefault((dimensions >= 2, steps[name], name in apart, name in frozen), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decays else 0.0,
            "is_new": is_apart,
            "is_frozen": is_frozen,
        }
        for (decays, _, is_apart, is_frozen), members in sorted(groups.items(), key=lambda item: item[0])
    ]


class Frozen:
    """Parameters that stand still while `holds` is true, in groups of the optimizer that `is_frozen` marks.

    Their gradients are zeros, so that they do not count in the gradient's norm; and at a step the optimizer finds none,
    so that it leaves weights, moments and step counts alone. (Zeros would decay both.) The engine's own gradients come
    back after the step: where the optimizer is offloaded, DeepSpeed keeps them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.holds = False
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for parameter in parameters:
            parameter.register_hook(self._silence)
        optimizer.register_step_pre_hook(lambda stepping, *arguments: self._take(stepping))
        optimizer.register_step_post_hook(lambda *arguments: self._give_back())

    def _silence(self, gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(gradient) if self.holds else None

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        groups = [group for group in optimizer.param_groups if group["is_frozen"]] if self.holds else []
        self._taken = [(tensor, tensor.grad) for group in groups for tensor in group["params"]]
        for tensor, _ in self._taken:
            tensor.grad = None

    def _give_back(self) -> None:
        for tensor, gradient in self._taken:
            tensor.grad = gradient
        self._taken = []


def growth_of(stage: StagePlan) -> GrowthMap:
    """The map that says which elements a stage's growth made new, whatever became of the optimizer's state; empty
    where nothing grew."""
    if stage.growth is None:
        return ()
    if is_learned(stage.growth.operator):
        return fitted_map(stage.shape)
    return growth_map(stage.parent_shape, stage.shape, stage.growth.operator, "grow", stage.growth.options)


def wholly_new(rules: GrowthMap) -> frozenset[str]:
    """The parameters of which no element is an old one."""
    return frozenset(rule.target for rule in rules if rule.moments == "zeros")


@dataclass(frozen=True)
class _Young:
    """Elements, by `mask`, of a slice of a parameter that has older ones too. tensors: live views of the slice.

    head_start: the optimizer steps that the tensor had seen when they came. is_boosted: whether their rate may be
    another.
    """

    tensors: dict[str, torch.Tensor]
    mask: torch.Tensor
    head_start: int
    is_boosted: bool


class NewElements:
    """This worker's new elements among old ones: as if they were parameters of their own, with a step count of their
    own, from 1, and a rate of their own.

    The weights and moments of all elements are stepped by torch; then the weight of a new one is stepped once more
    from where it was, by torch's formula with its own count and rate. (The moments depend on neither.) Kept for that:
    one byte for each element of a parameter that has both, for each growth that made some; and 4 for each new one
    while a step is taken. Once the counts make no difference above 1e-3 and the rate is that of the old, they are old.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parts: Iterable[Partition],
        head_starts: Mapping[str, HeadStarts],
        boosted: GrowthMap = (),
    ) -> None:
        """parts: this worker's partitions, with their steps set. head_starts: by parameter. boosted: the growth whose
        new elements have a rate of their own."""
        self._optimizer, self._boost = optimizer, 1.0
        self._young: dict[torch.Tensor, list[_Young]] = {}
        self._kept: list[tuple[dict, torch.Tensor, _Young, torch.Tensor]] = []
        mixed = {rule.target: rule for rule in boosted if rule.moments == "copy" and rule.axes}
        for part in parts:
            if part.parameter in mixed or part.parameter in head_starts:
                self._add(part, head_starts.get(part.parameter), mixed.get(part.parameter))
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *step: self._keep()),
            optimizer.register_step_post_hook(lambda *step: self._step_once_more()),
        ]

    @property
    def count(self) -> int:
        """How many elements still count as new."""
        return sum(int(one.mask.sum()) for members in self._young.values() for one in members)

    def set_rate(self, boost: float, lasting: bool) -> None:
        """What the groups' rates are multiplied by in the next step; lasting: in all steps from then on, by 1."""
        self._boost = boost
        kept = {
            tensor: [one for one in young if (one.is_boosted and not lasting) or not self._is_settled(tensor, one)]
            for tensor, young in self._young.items()
        }
        self._young = {tensor: young for tensor, young in kept.items() if young}

    def forget(self) -> None:
        """From now on they are old."""
        for hook in self._hooks:
            hook.remove()
        self._young = {}

    def _add(self, part: Partition, head_starts: HeadStarts | None, rule: Rule | None) -> None:
        size, device = part.stop - part.start, part.master.device
        starts = head_starts_in(head_starts, part.start, part.stop) if head_starts else np.zeros(size, dtype=np.int64)
        boosted = is_new(rule, part.start, part.stop) if rule else np.zeros(size, dtype=bool)
        for is_boosted in (False, True):
            for start in np.unique(starts[boosted == is_boosted]).tolist():
                if start or is_boosted:
                    mask = torch.from_numpy((starts == start) & (boosted == is_boosted)).to(device)
                    young = _Young(part.tensors, mask, start, is_boosted)
                    self._young.setdefault(part.master, []).append(young)

    def _steps(self, tensor: torch.Tensor) -> int:
        return int(self._optimizer.state[tensor]["step"].item())

    def _is_settled(self, tensor: torch.Tensor, young: _Young) -> bool:
        """Whether the two counts give one update in the next step."""
        own = self._steps(tensor) + 1 - young.head_start
        return is_settled(own, young.head_start, self._optimizer.defaults.get("betas", ()))

    @torch.no_grad()
    def _keep(self) -> None:
        """Before torch's step, which ZeRO takes for one group or tensor at a time."""
        self._kept = [
            (group, tensor, young, young.tensors["fp32"][young.mask])
            for group in self._optimizer.param_groups
            for tensor in group["params"]
            if tensor.grad is not None
            for young in self._young.get(tensor, ())
        ]

    @torch.no_grad()
    def _step_once_more(self) -> None:
        for group, tensor, young, before in self._kept:
            values, boost = young.tensors["fp32"], self._boost if young.is_boosted else 1.0
            if isinstance(self._optimizer, torch.optim.SGD):
                values[young.mask] = before + boost * (values[young.mask] - before)
            else:
                own = self._steps(tensor) - young.head_start
                values[young.mask] = self._adam_step(group, young, before, own, boost)
        self._kept = []

    def _adam_step(self, group: dict, young: _Young, before: torch.Tensor, own: int, boost: float) -> torch.Tensor:
        """AdamW's step number `own`, and Adam's, whose weight decay is in the moments."""
        rate, (beta, beta_sq) = group["lr"] * boost, group["betas"]
        root = young.tensors["exp_avg_sq"][young.mask].sqrt() / math.sqrt(1 - beta_sq**own)
        update = young.tensors["exp_avg"][young.mask] / (1 - beta**own) / (root + group["eps"])
        decay = rate * group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return before * (1 - decay) - rate * update
