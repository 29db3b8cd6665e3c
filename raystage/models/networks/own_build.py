"""Builds a user's own module, or any architecture of transformers, with the sizes of a shape."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import CausalLMOutput, MaskedImageModelingOutput

from raystage.errors import InputError
from raystage.models.own import own_model
from raystage.models.shape import ModelShape
from raystage.units import shown
from raystage.user_code import call, check_code, find, printed_aside

# Sizes that follow from data and objective: a function that names one of them is called with it.
SIZES = ("vocab_size", "context_length", "num_classes", "image_size", "num_channels")
# What a model reads, given in its place where the model has another name for it.
_MAIN = ("input_ids", "pixel_values")
# Arguments of a call that a model need not know.
_OPTIONAL = ("use_cache", "attention_mask", "position_ids")

_CLASSES = {
    ("", "next token"): transformers.AutoModelForCausalLM,
    ("", "masked tokens"): transformers.AutoModelForMaskedLM,
    ("classes", "text"): transformers.AutoModelForSequenceClassification,
    ("classes", "images"): transformers.AutoModelForImageClassification,
    ("pixels", "images"): transformers.AutoModelForMaskedImageModeling,
}


def build(shape: ModelShape) -> torch.nn.Module:
    """The model of a shape. Raises InputError where a checkpoint does not say what builds it."""
    own = own_model(shape.module)
    if not own.reference and own.code:
        problem = "found a model of the user's own code, which nothing from elsewhere may run"
        raise InputError(f"{problem}; expected a schedule with it", key="model.build")
    if own.reference:
        check_code(own.reference, own.code[1], "model.build")
    sizes = {name: getattr(shape, name) for name in SIZES}
    return make(own.reference, json.loads(own.options), sizes, shape.head)


def make(reference: str, options: Mapping[str, Any], sizes: Mapping[str, int], head: str) -> torch.nn.Module:
    """The module of a user's function, or of transformers where there is none. Raises InputError."""
    made = _called(reference, options, sizes) if reference else _of_transformers(options, sizes, head)
    return _answering(made, head)


def named(reference: str) -> Callable[..., Any]:
    """The user's function. Raises InputError at `model.build`."""
    try:
        return find(reference)
    except InputError as error:
        raise InputError(error.problem, key="model.build") from None


def _called(reference: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> torch.nn.Module:
    function = named(reference)
    known = inspect.signature(function).parameters
    more = {name: size for name, size in sizes.items() if name in known and name not in options}
    with printed_aside():
        made = call(reference, "model.build", (), {**options, **more})
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"{reference} returned a {type(made).__name__}; expected a torch.nn.Module", key="model.build")
    return made


def _of_transformers(options: Mapping[str, Any], sizes: Mapping[str, int], head: str) -> torch.nn.Module:
    content = dict(options["config"])
    check_runs_no_code(content)
    learns = options["learns"] if not head else "images" if sizes["image_size"] else "text"
    labels = {"num_labels": sizes["num_classes"]} if head == "classes" else {}
    config = transformers.AutoConfig.for_model(content.pop("model_type"), **content, **labels)
    config.architectures = []  # where a kind has several classes with this head: the first of them
    try:
        return _CLASSES[head, learns].from_config(config, trust_remote_code=False)
    except ValueError as error:
        found = f"transformers has no such model for {type(config).__name__}"
        raise InputError(f"{found} ({str(error).splitlines()[0]})", key="model.config") from None


def completed(content: dict[str, Any], file: object, num_layers: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    """A configuration as transformers writes it, with that depth and the sizes that follow from the data; without what
    says how a saved model is loaded. Raises InputError."""
    check_runs_no_code(content)
    kind = content.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        problem = f"found the model_type {kind!r}, which transformers {transformers.__version__} does not know"
        raise InputError(f"{problem}; expected one that it knows", key="model.config", file=str(file))
    config = transformers.CONFIG_MAPPING[kind].from_dict(dict(content))
    if config.is_encoder_decoder:
        problem = f"found the model_type {kind!r}, an encoder with a decoder, which learn from pairs of sequences"
        heads = "a decoder for causal_lm and instruct, an encoder for masked_lm, either of them for classification"
        raise InputError(f"{problem}; expected {heads}", key="model.config", file=str(file))
    changes = {
        "num_hidden_layers": num_layers, "vocab_size": sizes["vocab_size"], "image_size": sizes["image_size"],
        "num_channels": sizes["num_channels"], "use_cache": False if hasattr(config, "use_cache") else None,
    }  # fmt: skip
    for key, value in changes.items():
        if value not in (None, 0):
            setattr(config, key, value)
    kept = json.loads(config.to_json_string(use_diff=True))
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"):
        kept.pop(key, None)
    return {**kept, "model_type": kind}


def check_runs_no_code(content: Any) -> None:
    """Refuse a configuration, or a part of one, that names code which transformers would download and run."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        is_kernel = str(key).endswith("_implementation") and "/" in json.dumps(value)
        if key == "auto_map" or is_kernel:
            problem = f"found {key} with {shown(value)}, which is code from elsewhere"
            raise InputError(f"{problem}; expected a configuration without it", key="model.config")
        if isinstance(value, (dict, list)):
            check_runs_no_code(value)


def _answering(made: torch.nn.Module, head: str) -> torch.nn.Module:
    """The module, called and answering like a model of transformers: a plain tensor becomes the part of an answer that
    counts, and arguments that it does not know are left out."""
    known = inspect.signature(made.forward).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())

    def select(module: torch.nn.Module, positional: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if takes_all:
            return positional, named
        first = tuple(named[key] for key in _MAIN if key in named and key not in known)
        left_out = {*_MAIN, *_OPTIONAL} - known.keys()
        return (*positional, *first), {key: one for key, one in named.items() if key not in left_out}

    def wrap(module: torch.nn.Module, positional: tuple, answer: Any) -> Any:
        if not isinstance(answer, torch.Tensor):
            return answer
        return MaskedImageModelingOutput(reconstruction=answer) if head == "pixels" else CausalLMOutput(logits=answer)

    made.register_forward_pre_hook(select, with_kwargs=True)
    made.register_forward_hook(wrap)
    return made
