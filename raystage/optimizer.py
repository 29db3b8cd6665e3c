"""The optimizer of a stage, and the step counts of what growth made new.

Parameters that are wholly new are groups of their own, with their own step count and rate. New rows and columns of
an old parameter are not: torch counts one step for a tensor, and DeepSpeed for a flat one. `NewElements` steps them as
if they stood apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from raystage.growth.apply import is_new
from raystage.growth.maps import GrowthMap, growth_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.plan import StagePlan
from raystage.schedule import Optimizer
from raystage.zero import Partition

# From where on a count of its own makes less difference than this to an update, relative to it, the tensor's will do.
_SETTLED = 1e-3


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
    """The new elements, by `mask`, of a slice of a parameter that has old ones too. tensors: live views of the slice.

    head_start: the optimizer steps that the tensor had seen when they came.
    """

    tensors: dict[str, torch.Tensor]
    mask: torch.Tensor
    head_start: int


class NewElements:
    """This worker's new elements among old ones: as if they were parameters of their own, with a step count of their
    own, from 1, and a rate of their own.

    The weights and moments of all elements are stepped by torch; then the weight of a new one is stepped once more
    from where it was, by torch's formula with its own count and rate. (The moments depend on neither.) Kept for that:
    one byte for each element of a parameter that has both, and 4 for each new one while a step is taken. Once the
    counts make no difference above 1e-3 and the rate is that of the old, they are old.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parts: Iterable[Partition], rules: GrowthMap, done: int
    ) -> None:
        """parts: this worker's partitions, with their steps set. rules: the growth that made elements new, `done`
        steps ago."""
        self._optimizer, self._boost = optimizer, 1.0
        self._young: dict[torch.Tensor, list[_Young]] = {}
        self._kept: list[tuple[dict, torch.Tensor, _Young, torch.Tensor]] = []
        mixed = {rule.target: rule for rule in rules if rule.moments == "copy" and rule.axes}
        for part in parts:
            if part.parameter in mixed:
                self._add(part, is_new(mixed[part.parameter], part.start, part.stop), done)
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
        if lasting:
            self._young = {tensor: one for tensor, one in self._young.items() if not self._is_settled(tensor, one[0])}

    def forget(self) -> None:
        """From now on they are old."""
        for hook in self._hooks:
            hook.remove()
        self._young = {}

    def _add(self, part: Partition, mask: object, done: int) -> None:
        if mask.any():
            step = self._steps(part.master)
            young = _Young(part.tensors, torch.from_numpy(mask).to(part.master.device), step - done)
            self._young.setdefault(part.master, []).append(young)

    def _steps(self, tensor: torch.Tensor) -> int:
        return int(self._optimizer.state[tensor]["step"].item())

    def _is_settled(self, tensor: torch.Tensor, young: _Young) -> bool:
        """Whether the two counts give one update in the next step: of both, (1 - b**T) / (1 - b**t) is 1."""
        own = self._steps(tensor) + 1 - young.head_start
        betas = self._optimizer.defaults.get("betas", ())
        return all(beta**own * (1 - beta**young.head_start) < _SETTLED * (1 - beta**own) for beta in betas)

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
            values = young.tensors["fp32"]
            if isinstance(self._optimizer, torch.optim.SGD):
                values[young.mask] = before + self._boost * (values[young.mask] - before)
            else:
                own = self._steps(tensor) - young.head_start
                values[young.mask] = self._adam_step(group, young, before, own)
        self._kept = []

    def _adam_step(self, group: dict, young: _Young, before: torch.Tensor, own: int) -> torch.Tensor:
        """AdamW's step number `own`, and Adam's, whose weight decay is in the moments."""
        rate, (beta, beta_sq) = group["lr"] * self._boost, group["betas"]
        root = young.tensors["exp_avg_sq"][young.mask].sqrt() / math.sqrt(1 - beta_sq**own)
        update = young.tensors["exp_avg"][young.mask] / (1 - beta**own) / (root + group["eps"])
        decay = rate * group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return before * (1 - decay) - rate * update
