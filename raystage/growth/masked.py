"""`masked`: new parts of a model behind a mask m that opens from 0 to 1. MSG (2305.02869).

At m = 0 the model computes the source's function whatever its new weights hold; at m = 1 nothing of the mask is
left and it runs transformers' own code.

    new hidden units    all that writes them to the residual stream (embeddings, last projections of blocks), times m
    norms over these    mean square, or mean and variance, over units of weight m: sum(m x^2) / sum(m); then times m
    new inner units     of feed-forward layers and heads: times m before the projection that reads them
    new layers          what they add to the residual stream, times m
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from raystage.growth.depth import GrowthOptions
from raystage.growth.rules import unit_maps
from raystage.growth.trained import masked_layers, masked_units
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, Parameter, parameters

# Units that all are new.
LAYER = "layer"


@dataclass(frozen=True)
class Site:
    """One place in the model where the mask acts.

    module: its name. where: "output" or "input", which are multiplied, or "norm", whose statistics are weighted.
    units: the kind of units along the last axis there, or LAYER where all are behind the mask.
    """

    module: str
    where: str
    units: str


def mask_sites(target: ModelShape, kinds: frozenset[str], layers: frozenset[int]) -> tuple[Site, ...]:
    """Where a mask acts on a model of shape `target`, in which units of these `kinds` and these `layers` are new."""
    found = [site for parameter in parameters(target) for site in _sites_of(parameter, kinds, layers)]
    return tuple(dict.fromkeys(found))  # a weight and a bias share a module


def _sites_of(parameter: Parameter, kinds: frozenset[str], layers: frozenset[int]) -> list[Site]:
    if parameter.spec.acts_on == "patch":  # what embeds patches goes through the output of all embeddings
        return []
    module, inside = parameter.name.rpartition(".")[0], parameter.layer in layers
    sites = []
    for axis in parameter.spec.axes:
        match axis.role, axis.units:
            case "out" | "branch gain", ("hidden",) if inside and parameter.spec.writes_residual:
                sites.append(Site(module, "output", LAYER))
            case "gain" | "branch gain", ("hidden",) if "hidden" in kinds:
                sites += [Site(module, "norm", "hidden"), Site(module, "output", "hidden")]
            case "out" | "scaled out" | "shift", ("hidden",) if "hidden" in kinds:
                sites.append(Site(module, "output", "hidden"))
            case "in", ("query" | "ffn" as unit,) if unit in kinds and not inside:
                sites.append(Site(module, "input", unit))
    return sites


class GrowthMask:
    """The mask of one growth on a transformers model, opened by `set`.

    Until it is fully open, it has hooks on the model's modules, and replaces the forward functions of the norms.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        source: ModelShape,
        target: ModelShape,
        operator: str,
        options: GrowthOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        new = masked_units(unit_maps(source, target, operator), operator)
        layers = masked_layers(source, target, operator, options)
        self._network, self._target = network, target
        self._sites = mask_sites(target, frozenset(new), layers)
        self._new = {unit: torch.tensor(which, device=device) for unit, which in new.items()}
        self._new[LAYER] = torch.ones((), dtype=torch.bool, device=device)
        self._scales: dict[str, torch.Tensor] = {}
        self._undo: list[Callable[[], None]] = []

    def set(self, value: float) -> None:
        """Open the mask to `value`, from 0 (closed) to 1 (removed); not between a forward pass and its backward
        pass."""
        if value >= 1:
            while self._undo:
                self._undo.pop()()
            return
        # New tensors, not new values in the old ones, which a backward pass may still hold.
        self._scales = {unit: torch.where(which, value, 1.0) for unit, which in self._new.items()}
        if not self._undo:
            self._undo = [self._attach(site) for site in self._sites]

    def _attach(self, site: Site) -> Callable[[], None]:
        """Make the mask act at a place; returns a function that undoes it."""
        module = self._network.get_submodule(site.module)
        if site.where == "output":
            return module.register_forward_hook(lambda _, inputs, output: self._scaled(output, site.units)).remove
        if site.where == "input":
            hook = module.register_forward_pre_hook(
                lambda _, inputs: (self._scaled(inputs[0], site.units), *inputs[1:])
            )
            return hook.remove
        return self._replace_norm(module, site.units)

    def _replace_norm(self, module: torch.nn.Module, units: str) -> Callable[[], None]:
        family = FAMILIES[self._target.family]
        norm = partial(_rms_norm, family.gain_offset) if family.norm == "rms" else _layer_norm
        before = vars(module).get("forward")
        module.forward = lambda inputs: norm(module, inputs, self._scales[units], self._target.norm_eps)

        def undo() -> None:
            del module.forward
            if before is not None:
                module.forward = before

        return undo

    def _scaled(self, values: torch.Tensor, units: str) -> torch.Tensor:
        return values * self._scales[units].to(values.dtype)


def _rms_norm(
    offset: float, module: torch.nn.Module, inputs: torch.Tensor, weights: torch.Tensor, eps: float
) -> torch.Tensor:
    wide, weights = _wide(inputs, weights)
    mean_square = (weights * wide.square()).sum(-1, keepdim=True) / weights.sum()
    return (module.weight + offset) * (wide * torch.rsqrt(mean_square + eps)).to(inputs.dtype)


def _layer_norm(module: torch.nn.Module, inputs: torch.Tensor, weights: torch.Tensor, eps: float) -> torch.Tensor:
    wide, weights = _wide(inputs, weights)
    centred = wide - (weights * wide).sum(-1, keepdim=True) / weights.sum()
    variance = (weights * centred.square()).sum(-1, keepdim=True) / weights.sum()
    return module.weight * (centred * torch.rsqrt(variance + eps)).to(inputs.dtype) + module.bias


def _wide(inputs: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as fp32, in which transformers' norms compute too, or as float64 where the inputs are."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    return inputs.to(dtype), weights.to(dtype)
