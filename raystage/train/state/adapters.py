"""The adapter of a stage on its model: put on by peft, taken off for questions to the model alone, and for good.

peft puts a layer of its own around each of the modules: `q_proj` becomes a layer that has the old module as
`base_layer`, and `lora_A` and `lora_B` beside it. Checkpoints, optimizer and growth know parameters by the names that
the model gives them without it; here is the one place that translates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raystage.lazy import peft
from raystage.models.shape import ModelShape, parameters
from raystage.plans.adapters import AdapterPlan, is_input_first

_MARK, _ADAPTER = "raystage_adapter", "default"


@dataclass(frozen=True)
class _PutOn:
    """What is on a model. names: of its parameters, by their ids. layers: peft's, by the names of the modules."""

    plan: AdapterPlan
    names: Mapping[int, str]
    layers: Mapping[str, torch.nn.Module]


def put_on(model: torch.nn.Module, plan: AdapterPlan, shape: ModelShape) -> torch.nn.Module:
    """The model with the adapter on it, whose values are still to be set. Only what the plan says requires gradients.

    peft changes the model in place, also one whose parameters ZeRO 3 has partitioned: it needs nothing of them but
    their sizes.
    """
    peft.inject_adapter_in_model(peft_config(plan, shape), model, _ADAPTER)
    layers = {name: model.get_submodule(name) for name in plan.modules}
    found = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
    if found != set(layers):
        raise RuntimeError(f"peft has put the adapter on {sorted(found)}; expected {sorted(layers)}")
    names = {id(parameter): _plain(name) for name, parameter in model.named_parameters()}
    setattr(model, _MARK, _PutOn(plan, names, layers))
    trained = {one.name for one in plan.matrices(shape)} | set(plan.in_full)
    for name, parameter in named_parameters(model):
        parameter.requires_grad = name in trained
    return model


def peft_config(plan: AdapterPlan, shape: ModelShape) -> peft.LoraConfig:
    """The adapter as peft describes it."""
    spec = {one.name: one for one in parameters(shape)}
    return peft.LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=list(plan.written or plan.modules),
        modules_to_save=None,
        fan_in_fan_out=is_input_first(spec[plan.weights[0]]),
        bias="none",
    )


def _plain(name: str) -> str:
    """The name of a parameter without peft's additions."""
    return name.replace(".base_layer.", ".").replace(f".{_ADAPTER}.", ".") if _is_changed(name) else name


def _is_changed(name: str) -> bool:
    return any(part in name for part in (".base_layer.", ".lora_A.", ".lora_B."))


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Its parameters by the names that they have in checkpoints."""
    names = _names(model)
    for name, parameter in model.named_parameters():
        yield names.get(id(parameter), name), parameter


def parameter_names(model: torch.nn.Module) -> dict[int, str]:
    """By the id of a parameter its name in checkpoints, also of those of an adapter that was taken off."""
    return {**{id(one): name for name, one in model.named_parameters()}, **_names(model)}


def _names(model: torch.nn.Module) -> Mapping[int, str]:
    mark = getattr(model, _MARK, None)
    return mark.names if mark else {}


@contextmanager
def without(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model alone, while it lasts: its own modules under its own names, and all of its parameters require
    gradients. With first values, B = 0, it computes what it does with the adapter on."""
    mark = getattr(model, _MARK, None)
    if mark is None:
        yield model
        return
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    take_off(model)
    try:
        yield model
    finally:
        for name, layer in mark.layers.items():
            _set(model, name, layer)
        for parameter, value in required:
            parameter.requires_grad = value


def take_off(model: torch.nn.Module) -> None:
    """Leave the model alone, with all of its parameters requiring gradients, as without an adapter."""
    mark = getattr(model, _MARK)
    for name, layer in mark.layers.items():
        _set(model, name, layer.base_layer)
    for parameter in model.parameters():
        parameter.requires_grad = True


def _set(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
