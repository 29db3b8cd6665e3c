"""`learned`: every weight of the target is a linear map of the source's, and the maps are fitted. LiGO (2303.00980).

    W'[L] = sum over l of  w[L, l]  B W[l] A^T

B and A extend what the parameter writes and reads. There is one matrix for each kind of units that grows (hidden,
query, key_value, ffn), shared by all parameters with such an axis; where units are read (or scaled before a tied head),
its rows are divided by the number of copies they started as. w mixes the layers, one matrix for each row of the
family's layer table. At first, units are copies of the source's in turn and layers its `interleave`. So a model that
grows by whole factors in width alone starts with the source's function.

Fitting needs all of the source's weights, and one model of the target's size with its gradients, on every worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.func import functional_call

from raystage.growth.apply import STATES
from raystage.growth.axis_maps import MEAN, AxisMap
from raystage.growth.depth import NO_OPTIONS
from raystage.growth.operators import layer_origins
from raystage.growth.rules import unit_maps
from raystage.models.build import build
from raystage.models.shape import ModelShape, parameters, table_of
from raystage.models.table import Axis, ParameterSpec
from raystage.objectives.learner import Batch, Model

# A row of a family's table that stands for one parameter in every layer is one tensor here, (layers, *shape).
Tensors = dict[str, torch.Tensor]
# Samples, and what each counts: 1, or 0 for one that only keeps step.
Share = tuple[Batch, float]


class LearnedMaps(torch.nn.Module):
    """The maps of one growth. Called with the source's weights, as `stacked` gives them, it returns the target's.

    Parts that do not grow are not mapped. More tokens or positions are added as by any operator.
    """

    def __init__(self, source: ModelShape, target: ModelShape) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.family = table_of(target)
        self._at_first = unit_maps(source, target, "learned")
        self.expansions = torch.nn.ParameterDict()
        for unit in ("hidden", "query", "key_value", "ffn"):
            if source.units(unit) != target.units(unit):
                self.expansions[unit] = _one_hot(source.units(unit), self._at_first["out", unit].index)
                share = torch.tensor(self._at_first["in", unit].values, dtype=torch.float32)
                self.register_buffer(f"{unit}_share", share, persistent=False)
        self.mixes = torch.nn.ParameterDict()
        if source.num_layers != target.num_layers:
            origins = [one.source for one in layer_origins(source, target, "learned", NO_OPTIONS)]
            self.mixes.update({_key(row): _one_hot(source.num_layers, origins) for row in self.family.layer})

    def forward(self, weights: Mapping[str, torch.Tensor]) -> Tensors:
        grown = {name: self._row(self._spec(name), values) for name, values in weights.items()}
        found: Tensors = {}
        for parameter in parameters(self.target):
            values = grown[parameter.spec.name]
            found[parameter.name] = values if parameter.layer is None else values[parameter.layer]
        return found

    def _spec(self, name: str) -> ParameterSpec:
        rows = (*self.family.before, *self.family.layer, *self.family.after)
        return next(row for row in rows if row.name == name)

    def _row(self, spec: ParameterSpec, values: torch.Tensor) -> torch.Tensor:
        """All parameters of a row of the table: widened first, which is less work, then mixed over the layers."""
        offset = self.family.gain_offset if spec.is_gain else 0.0
        values = values + offset if offset else values
        first = values.dim() - len(spec.axes)
        for place, axis in enumerate(spec.axes):
            values = self._along(axis, spec, values, first + place)
        mix = self.mixes.get(_key(spec))
        values = values if mix is None else torch.tensordot(mix, values, dims=1)
        return values - offset if offset else values

    def _along(self, axis: Axis, spec: ParameterSpec, values: torch.Tensor, place: int) -> torch.Tensor:
        """One axis, whose parts lie end to end where it is fused."""
        if axis.role == "fixed":
            return values
        values = values * self._scale(axis, spec)
        if axis.by_head:
            values = _by_part(values, place, len(axis.units), self.source.head_size)
        parts = values.split([self.source.units(unit) for unit in axis.units], dim=place)
        split = axis.role == "in" or (spec.feeds_head and self.target.ties_head)
        stretched = [self._stretch(unit, part, place, split) for unit, part in zip(axis.units, parts, strict=True)]
        joined = torch.cat(stretched, dim=place) if len(stretched) > 1 else stretched[0]
        return _by_head(joined, place, len(axis.units), self.target.head_size) if axis.by_head else joined

    def _scale(self, axis: Axis, spec: ParameterSpec) -> float:
        """Of embeddings that the model multiplies by the square root of the hidden size what keeps the product, and of
        the norm before the same embeddings as a head what makes up for that."""
        root = math.sqrt(self.source.hidden_size / self.target.hidden_size)
        if axis.role == "scaled out":
            return root
        is_final = spec.feeds_head and self.target.ties_head and self.family.scales_embeddings
        return 1 / root if is_final and axis.units == ("hidden",) else 1.0

    def _stretch(self, unit: str, values: torch.Tensor, place: int, split: bool) -> torch.Tensor:
        if unit not in self.expansions:
            return _as_listed(self._at_first["out", unit], values, place)
        matrix = self.expansions[unit]
        if split:
            matrix = matrix * self.get_buffer(f"{unit}_share")[:, None]
        return torch.tensordot(matrix, values, dims=([1], [place])).movedim(0, place)


def _by_part(values: torch.Tensor, place: int, parts: int, size: int) -> torch.Tensor:
    """An axis on which parts alternate head by head, with the parts end to end instead."""
    return values.unflatten(place, (-1, parts, size)).transpose(place, place + 1).flatten(place, place + 2)


def _by_head(values: torch.Tensor, place: int, parts: int, size: int) -> torch.Tensor:
    """The way back from `_by_part`."""
    return values.unflatten(place, (parts, -1, size)).transpose(place, place + 1).flatten(place, place + 2)


def _one_hot(source: int, origin: Sequence[int]) -> torch.nn.Parameter:
    """(target, source): in each row a one, at what is copied."""
    return torch.nn.Parameter(torch.eye(source)[list(origin)])


def _key(spec: ParameterSpec) -> str:
    return spec.name.replace(".", "/")  # torch takes no dots


def _as_listed(axis: AxisMap, values: torch.Tensor, place: int) -> torch.Tensor:
    """The axis map of tokens or positions: the source's, or the mean of them all."""
    if axis.is_identity:
        return values
    index = torch.tensor(axis.indices, device=values.device)
    picked = values.index_select(place, index.clamp(min=0))
    mean = (index == MEAN).view([-1 if dim == place else 1 for dim in range(values.dim())])
    return torch.where(mean, values.mean(place, keepdim=True), picked)


def stacked(source: ModelShape, read: Callable[[str, str, int, int], np.ndarray], device: torch.device) -> Tensors:
    """All weights of the source, by row of its family's table; of a row for all layers (layers, *shape)."""
    found: dict[str, list[torch.Tensor]] = {}
    layered = set()
    for parameter in parameters(source):
        values = torch.tensor(read(parameter.name, "fp32", 0, parameter.numel)).view(parameter.shape)
        found.setdefault(parameter.spec.name, []).append(values)
        if parameter.layer is not None:
            layered.add(parameter.spec.name)
    return {
        name: (torch.stack(members) if name in layered else members[0]).to(device) for name, members in found.items()
    }


# --- fitting ------------------------------------------------------------------------------------


class Fitting:
    """The maps, fitted by AdamW, without weight decay, to lower the target's loss.

    add_up: adds tensors up over all workers, in place. loss: of a model on a batch, summed over its targets. dtype:
    what the target computes in.
    """

    def __init__(
        self,
        maps: LearnedMaps,
        weights: Tensors,
        lr: float,
        add_up: Callable[[torch.Tensor], object],
        loss: Callable[[Model, Batch], torch.Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = next(iter(weights.values())).device
        self.maps, self._weights, self._dtype = maps.to(device), weights, dtype
        self._add_up, self._loss = add_up, loss
        self._network = build(maps.target, dtype).to(device).train()
        for parameter in self._network.parameters():  # the grown ones take their places in every pass
            parameter.data = torch.empty(0, dtype=dtype, device=device)
        self._optimizer = torch.optim.AdamW(maps.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, shares: Iterable[Share], targets: int) -> float:
        """One step on this worker's share of a batch with `targets` targets in all. Returns the batch's mean loss
        before it, in nats per token."""
        grown = self.maps(self._weights)
        leaves = {
            name: values.detach().to(self._dtype).requires_grad_(values.requires_grad) for name, values in grown.items()
        }
        total = torch.zeros((), device=next(self.maps.parameters()).device)
        for batch, weight in shares:
            loss = self._loss(partial(_call, self._network, leaves), batch) * (weight / max(1, targets))
            loss.backward()
            total += loss.detach()
        # The whole batch goes back through the maps at once.
        mapped = [name for name, values in grown.items() if values.requires_grad]
        self._optimizer.zero_grad()
        torch.autograd.backward(
            [grown[name] for name in mapped], [leaves[name].grad.to(grown[name].dtype) for name in mapped]
        )
        for parameter in self.maps.parameters():
            self._add_up(parameter.grad)
        self._optimizer.step()
        self._add_up(total)
        return total.item()

    @torch.no_grad()
    def fitted(self) -> Fitted:
        """The target's weights by the present maps."""
        return Fitted({name: values.flatten().cpu().numpy() for name, values in self.maps(self._weights).items()})


def _call(network: torch.nn.Module, weights: Tensors, **inputs: object) -> object:
    return functional_call(network, weights, (), inputs)


class Fitted:
    """A model of fitted weights, of which any slice can be read, as of `growth.apply.Grown`."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights

    def slice(self, parameter: str, state: str, start: int, stop: int) -> np.ndarray:
        """The flat slice [start, stop): fp32. The optimizer's state is zero."""
        if state == STATES[0]:
            return self._weights[parameter][start:stop]
        return np.zeros(stop - start, dtype=np.float32)
