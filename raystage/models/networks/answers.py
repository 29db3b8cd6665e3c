"""What a model of the user's own, or an architecture of transformers without a table, answers when a plan is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from raystage.errors import InputError
from raystage.models.networks.own_build import make, named, quiet
from raystage.user_code import printed_aside, said_by

BUILD = "model.build"
# What sums in another order may change, as a share of the largest score.
_ROUNDING = 1e-5

Named = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wanted:
    """What is to be built. reference: the user's function; "" for transformers. layers: the name of the list of layers,
    where that is not clear. widths: by size of the shape ("hidden_size", "ffn_size") the option that says it.
    writes_residual: patterns of the parameters that do. sizes: those that follow from data and objective. head: of
    `ModelShape`. learns: `Objective.model` of what is to be learned. length: of a sample, in tokens."""

    reference: str
    options: Mapping[str, Any]
    layers: str | None
    widths: Mapping[str, str]
    writes_residual: tuple[str, ...]
    sizes: Mapping[str, int]
    head: str
    learns: str
    length: int

    def made(self, **changes: Any) -> torch.nn.Module:
        return make(self.reference, {**self.options, **changes}, self.sizes, self.head)

    def width(self, size: str) -> int:
        """The value of the option for a size, as written or as the function has it. Raises InputError."""
        option = self.widths[size]
        known = inspect.signature(named(self.reference)).parameters
        value = self.options.get(option, known[option].default if option in known else None)
        if type(value) is not int or value < 1:
            what = repr(value) if isinstance(value, (str, int, float)) else "no number"
            problem = f"found the option {option!r}, which is {what}; expected a whole number from 1 on"
            raise InputError(problem, key=f"model.widths.{size}")
        return value


def inputs_of(wanted: Wanted, length: int, device: str) -> Named:
    sizes = wanted.sizes
    if sizes["image_size"]:
        shape = (2, sizes["num_channels"], sizes["image_size"], sizes["image_size"])
        return {"pixel_values": torch.zeros(shape, device=device)}
    return {"input_ids": torch.ones((2, length), dtype=torch.int64, device=device)}


def said(
    network: torch.nn.Module, wanted: Wanted, length: int, device: str = "meta", inputs: Named | None = None
) -> torch.Tensor:
    """What the model says of two samples, of the right shape."""
    inputs = inputs or inputs_of(wanted, length, device)
    try:
        with torch.no_grad(), printed_aside(), quiet():
            answer = network(**inputs)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        called = ", ".join(f"{name} of shape {list(one.shape)}" for name, one in inputs.items())
        raise InputError(f"the model failed when called with {called} ({said_by(error)})", key=BUILD) from error
    part = "reconstruction" if wanted.head == "pixels" else "logits"
    found, expected = getattr(answer, part, None), _shape_of(wanted, length)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != expected:
        what = f"the shape {list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(answer).__name__}"
        raise InputError(f"found an answer of {what}; expected {part} of shape {list(expected)}", key=BUILD)
    return found


def _shape_of(wanted: Wanted, length: int) -> tuple[int, ...]:
    sizes = wanted.sizes
    if wanted.head == "classes":
        return (2, sizes["num_classes"])
    if wanted.head == "pixels":
        return (2, sizes["num_channels"], sizes["image_size"], sizes["image_size"])
    return (2, length, sizes["vocab_size"])


def check_answers(wanted: Wanted) -> None:
    """Refuse a model in evaluation mode that says something else the second time, that is to learn the next token and
    sees it, or that sees what a mask hides."""
    with torch.random.fork_rng(devices=[]):
        network = wanted.made().eval()
        if any(one.is_meta for one in network.parameters()):
            problem = "found the module of an earlier call, or one on the device meta"
            raise InputError(f"{problem}; expected a new one at every call, on the device of torch", key=BUILD)
        first, second = (said(network, wanted, min(wanted.length, 32), "cpu") for _ in range(2))
    if not torch.equal(first, second):
        problem = "found two different answers to the same input in evaluation mode"
        raise InputError(f"{problem}; expected the same, so that a run can be repeated", key=BUILD)
    if not wanted.head and wanted.learns == "next token":
        _check_sees_no_later_token(network, wanted, first)
    if wanted.head == "classes" and isinstance(network, PreTrainedModel) and not wanted.sizes["image_size"]:
        _check_sees_no_filling(network, wanted)


def _check_sees_no_filling(network: torch.nn.Module, wanted: Wanted) -> None:
    """Refuse a model whose classes change with what fills a text up, though the mask says where the text ends. A model
    that takes no mask sees it, and is known to."""
    length = min(wanted.length, 32)
    if length < 2 or "attention_mask" not in inspect.signature(network.forward).parameters:
        return
    tokens = inputs_of(wanted, length, "cpu")["input_ids"]
    mask = torch.ones_like(tokens)
    mask[:, length // 2 :] = 0
    texts = {"input_ids": tokens, "attention_mask": mask}, {"input_ids": tokens * mask, "attention_mask": mask}
    one, other = (said(network, wanted, length, "cpu", inputs) for inputs in texts)
    if (other - one).abs().amax() > _ROUNDING * one.abs().amax():
        problem = "found scores of classes that change with what fills a text up behind its end"
        raise InputError(f"{problem}; expected a model that leaves out what its attention_mask hides", key=BUILD)


def _check_sees_no_later_token(network: torch.nn.Module, wanted: Wanted, first: torch.Tensor) -> None:
    """Refuse a model whose scores at a position change with later tokens: the token to be predicted is one of them."""
    length, middle = first.shape[1], first.shape[1] // 2
    tokens = inputs_of(wanted, length, "cpu")["input_ids"]
    tokens[:, middle:] = 0  # all are 1 in `first`
    other = said(network, wanted, length, "cpu", {"input_ids": tokens})
    difference = (other - first)[:, :middle].abs().amax() if middle else torch.zeros(())
    if difference > _ROUNDING * first.abs().amax():
        problem = "found scores of the next token that change with the tokens after it, so the model sees the answer"
        how = "a model that sees earlier tokens alone"
        if wanted.reference:
            raise InputError(f"{problem}; expected {how}: a mask, or padding on the left only", key=BUILD)
        flag = " (some need is_decoder: true in their config.json)"
        raise InputError(f"{problem}; expected {how}{flag}, or objective: masked_lm", key="model.config")
