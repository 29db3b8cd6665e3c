"""The optimizer of a stage, and the step counts of elements that growth made new.

Parameters that are wholly new are in groups of their own, with their own step count and learning rate. New rows and
columns of an old parameter cannot be: torch counts steps per tensor, and DeepSpeed per flat tensor. `NewElements` steps
them as if they were separate parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from raystage.config.training import Optimizer
from raystage.growth.apply import is_new
from raystage.growth.counts import HeadStarts, is_settled
from raystage.growth.rules import GrowthMap, Rule, growth_map
from raystage.growth.trained import fitted_map, is_learned
from raystage.plans.stage import StagePlan
from raystage.train.muon import Muon
from raystage.train.partitions import Partition
from raystage.train.state.adapters import named_parameters

NOTHING_FROZEN: Mapping[str, float] = MappingProxyType({})
SAME_RATES: Mapping[str, float] = MappingProxyType({})


def build(
    groups: list[dict],
    options: Optimizer,
    orthogonal: frozenset[str] = frozenset(),
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimizer over parameter groups. SGD is made to count its steps, as Adam does by itself.

    orthogonal: the names of the parameters that take Muon's steps. dtype: the precision of the computation.
    """
    if options.name == "muon":
        return Muon(groups, options, orthogonal, dtype)
    if options.name == "sgd":
        made = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
        made.register_step_post_hook(_count_step)
        return made
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    # Not given, torch chooses by the device: a loop on CPUs, a step over lists of tensors on GPUs.
    return kind(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=options.fused or None)


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
    frozen: Mapping[str, float] = NOTHING_FROZEN,
    rates: Mapping[str, float] = SAME_RATES,
    orthogonal: frozenset[str] = frozenset(),
) -> list[dict]:
    """Groups of the parameters that require gradients. Weight decay applies to matrices and not to vectors. Those with
    different numbers of optimizer steps are in different groups, because DeepSpeed keeps one count per group.

    apart: names of parameters in groups of their own, which are marked by `is_new`. frozen: by name for how many steps
    of the stage a parameter does not train; `frozen_steps` of a group. rates: by name what the learning rate is
    multiplied by, where that is not 1; `rate_factor` of a group. orthogonal: names of parameters in the groups that are
    marked by `is_orthogonal`, for Muon.
    """
    groups: dict[tuple[bool, int, bool, float, float, bool], list] = {}
    for name, parameter in named_parameters(model):
        if not parameter.requires_grad:
            continue
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        special = name in apart, frozen.get(name, 0), rates.get(name, 1.0), name in orthogonal
        groups.setdefault((dimensions >= 2, steps[name], *special), []).append(parameter)
    return [
        {
            "params": groups[kind],
            "weight_decay": weight_decay if decays else 0.0,
            "is_new": is_apart,
            "frozen_steps": frozen_steps,
            "rate_factor": rate,
            "is_orthogonal": is_orthogonal,
        }
        for kind in sorted(groups)
        for decays, _, is_apart, frozen_steps, rate, is_orthogonal in [kind]
    ]


class Frozen:
    """Parameters that do not train in the first steps of a stage, as `frozen_steps` of their group says.

    They require no gradient meanwhile, so that none is computed for them or for what lies below all that train. During
    a step the optimizer's own tensors have no gradient at all, so that it leaves weights, moments and step counts
    alone; with the zeros that DeepSpeed fills in it would decay weights and moments. After the step they have their
    gradients again, which DeepSpeed keeps if it offloads.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[torch.nn.Parameter, float]) -> None:
        """parameters: those of the model that are frozen at first, each with its number of steps."""
        self._parameters, self._step = parameters, math.inf
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        optimizer.register_step_pre_hook(lambda stepping, *arguments: self._take(stepping))
        optimizer.register_step_post_hook(lambda *arguments: self._give_back())

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Within step number `step` of the stage, from 0; at any other time all parameters require gradients."""
        held = [parameter for parameter, steps in self._parameters.items() if step < steps]
        self._step = step
        _require(held, False)
        try:
            yield
        finally:
            _require(held, True)
            self._step = math.inf

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        groups = [group for group in optimizer.param_groups if self._step < group["frozen_steps"]]
        self._taken = [(tensor, tensor.grad) for group in groups for tensor in group["params"]]
        for tensor, _ in self._taken:
            tensor.grad = None

    def _give_back(self) -> None:
        for tensor, gradient in self._taken:
            tensor.grad = gradient
        self._taken = []


def _require(parameters: Iterable[torch.nn.Parameter], gradients: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = gradients


def growth_of(stage: StagePlan) -> GrowthMap:
    """The growth map that tells which elements a stage's growth made new, also if the optimizer's state was reset;
    empty if nothing grew."""
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
    """New elements, given by `mask`, of a slice of a parameter that also has older ones.

    tensors: live views of the slice. head_start: the optimizer steps of the tensor when the elements were added.
    is_boosted: whether their learning rate may differ.
    """

    tensors: dict[str, torch.Tensor]
    mask: torch.Tensor
    head_start: int
    is_boosted: bool


class NewElements:
    """Steps this worker's new elements of old parameters as if they were separate parameters: with a step count of
    their own, from 1, and a learning rate of their own.

    torch steps the weights and moments of all elements. Then the weights of new elements are stepped again from their
    values before, by torch's formula with their own count and rate. (The moments depend on neither.) Memory: one byte
    for each element of a parameter that has both kinds, for each growth that made new ones; and 4 bytes for each new
    element during a step. An element is old once its count makes no difference above 1e-3 and its rate is that of the
    others.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parts: Iterable[Partition],
        head_starts: Mapping[str, HeadStarts],
        boosted: GrowthMap = (),
    ) -> None:
        """parts: this worker's partitions, with their steps set. head_starts: by parameter. boosted: the growth whose
        new elements have a learning rate of their own."""
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
        """boost: multiplies the groups' rates in the next step. lasting: it is 1 from now on."""
        self._boost = boost
        kept = {
            tensor: [one for one in young if (one.is_boosted and not lasting) or not self._is_settled(tensor, one)]
            for tensor, young in self._young.items()
        }
        self._young = {tensor: young for tensor, young in kept.items() if young}

    def forget(self) -> None:
        """From now on all elements are old."""
        for hook in self._hooks:
            hook.remove()
        self._young = {}

    def _add(self, part: Partition, head_starts: HeadStarts | None, rule: Rule | None) -> None:
        size, device = part.stop - part.start, part.master.device
        counts = head_starts is not None and "exp_avg_sq" in part.tensors  # no other step depends on a count
        starts = head_starts_in(head_starts, part.start, part.stop) if counts else np.zeros(size, dtype=np.int64)
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
        """Whether both counts lead to the same update in the next step."""
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
            if "exp_avg_sq" not in young.tensors:
                values[young.mask] = before + boost * (values[young.mask] - before)
            else:
                own = self._steps(tensor) - young.head_start
                values[young.mask] = self._adam_step(group, young, before, own, boost)
        self._kept = []

    def _adam_step(self, group: dict, young: _Young, before: torch.Tensor, own: int, boost: float) -> torch.Tensor:
        """Step number `own` of AdamW, or of Adam, whose weight decay is in the moments."""
        rate, (beta, beta_sq) = group["lr"] * boost, group["betas"]
        root = young.tensors["exp_avg_sq"][young.mask].sqrt() / math.sqrt(1 - beta_sq**own)
        update = young.tensors["exp_avg"][young.mask] / (1 - beta**own) / (root + group["eps"])
        decay = rate * group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return before * (1 - decay) - rate * update


def head_starts_in(starts: HeadStarts, start: int, stop: int) -> np.ndarray:
    """The head starts of the elements of the flat slice [start, stop) of a parameter."""
    shape = tuple(map(len, starts))
    places = np.unravel_index(np.arange(start, stop), shape)
    found = [np.array(axis, dtype=np.int64)[place] for axis, place in zip(starts, places, strict=True)]
    return np.maximum.reduce(found)
