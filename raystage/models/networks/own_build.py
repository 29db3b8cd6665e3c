"""Builds a user's own module, or any architecture of transformers, with the sizes of a shape."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import CausalLMOutput, MaskedImageModelingOutput

from raystage.errors import InputError
from raystage.models.build import pooled
from raystage.models.own import own_model
from raystage.models.shape import ModelShape
from raystage.units import shown
from raystage.user_code import call, check_code, find, printed_aside, said_by

# Sizes that follow from data and objective: a function that names one of them is called with it.
SIZES = ("vocab_size", "context_length", "num_classes", "image_size", "num_channels")
# What a model reads, given in its place where the model has another name for it.
_MAIN = ("input_ids", "pixel_values")
# Arguments of a call that a model need not know.
_OPTIONAL = ("use_cache", "attention_mask", "position_ids")

# By head and by what is learned or read: the classes of transformers, and the objective that they are for.
_CLASSES = {
    ("", "next token"): (transformers.AutoModelForCausalLM, "causal_lm"),
    ("", "masked tokens"): (transformers.AutoModelForMaskedLM, "masked_lm"),
    ("classes", "text"): (transformers.AutoModelForSequenceClassification, "classification of texts"),
    ("classes", "images"): (transformers.AutoModelForImageClassification, "classification of images"),
    ("pixels", "images"): (transformers.AutoModelForMaskedImageModeling, "denoising"),
}
# What a configuration says of the classes that a model was fine-tuned for.
_OF_CLASSES = ("num_labels", "id2label", "label2id", "problem_type")
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


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
    known = _arguments(named(reference))
    if known is not None:
        _check_options(reference, options, known)
    more = {name: size for name, size in sizes.items() if name in (known or ()) and name not in options}
    with printed_aside():
        made = call(reference, "model.build", (), {**options, **more})
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"{reference} returned a {type(made).__name__}; expected a torch.nn.Module", key="model.build")
    return made


def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """By name; None of a function written in C, which may not tell."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return None


def _check_options(reference: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    """Refuse an option that the function does not take."""
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        return
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            expected = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known) or 'none'}"
            problem = f"found an option that {reference} does not take"
            raise InputError(f"{problem}; {expected}", key=f"model.options.{name}")


def _of_transformers(options: Mapping[str, Any], sizes: Mapping[str, int], head: str) -> torch.nn.Module:
    content = dict(options["config"])
    check_runs_no_code(content)
    learns = options["learns"] if not head else "images" if sizes["image_size"] else "text"
    kind = content.pop("model_type")
    try:
        with quiet():
            config = transformers.CONFIG_MAPPING[kind].from_dict(_with_floats(content))
            if head == "classes":
                config.num_labels = sizes["num_classes"]
            config.architectures = []  # where a kind has several classes with this head: the first of them
            _check_is_there(config, kind, _CLASSES[head, learns][0])
            made = _CLASSES[head, learns][0].from_config(config, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # whatever the architecture's code refuses, such as sizes that do not fit
        problem = f"transformers cannot build a {kind} with these sizes ({said_by(error)})"
        raise InputError(f"{problem}; expected sizes that fit together", key="model.config") from error
    return _as_called_here(made, answers_at_last=(head, learns) == ("classes", "text"))


def _with_floats(content: dict[str, Any]) -> dict[str, Any]:
    """With the numbers that JSON does not have, which transformers writes as {"__float__": "Infinity"}."""
    return json.loads(
        json.dumps(content), object_hook=lambda one: float(one["__float__"]) if one.keys() == {"__float__"} else one
    )


def _check_is_there(config: transformers.PretrainedConfig, kind: str, wanted: Any) -> None:
    if type(config) in wanted._model_mapping:
        return
    able = [objective for auto, objective in _CLASSES.values() if type(config) in auto._model_mapping]
    problem = f"transformers has no {kind} for this objective ({wanted.__name__})"
    expected = f"expected {' or '.join(able)}, or another architecture" if able else "expected another architecture"
    raise InputError(f"{problem}; {expected}", key="model.config")


def _as_called_here(made: transformers.PreTrainedModel, answers_at_last: bool) -> transformers.PreTrainedModel:
    """A model of transformers that does not warn of padding: there is none, except where a mask says so.

    answers_at_last: a decoder tells classes at the last token that its mask does not hide. transformers' own looks for
    a `pad_token_id`, which no text may have.
    """
    if answers_at_last and isinstance(getattr(made, "score", None), torch.nn.Linear):
        made.__class__ = pooled(type(made))
    for module in made.modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _warns_of_nothing
    return made


def _warns_of_nothing(*arguments: Any) -> None:
    pass


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context transformers logs errors alone: what is wrong with a model, raystage says itself."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def completed(content: dict[str, Any], file: object, num_layers: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    """A configuration as transformers writes it, with that depth and the sizes that follow from the data; without what
    says how a saved model is loaded. Raises InputError."""
    check_runs_no_code(content)
    kind = content.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        problem = f"found the model_type {kind!r}, which transformers {transformers.__version__} does not know"
        raise InputError(f"{problem}; expected one that it knows", key="model.config", file=str(file))
    try:
        with quiet():
            config = transformers.CONFIG_MAPPING[kind].from_dict(dict(content))
            _check_is_one_stack(config, kind, file)
            _complete(config, num_layers, sizes)
    except InputError:
        raise
    except Exception as error:  # whatever transformers refuses in a configuration
        problem = f"transformers cannot read it as a {kind} ({said_by(error)})"
        raise InputError(
            f"{problem}; expected a configuration of that kind", key="model.config", file=str(file)
        ) from None
    kept = json.loads(config.to_json_string(use_diff=True))
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", *_OF_CLASSES):
        kept.pop(key, None)
    return {**kept, "model_type": kind}


def _check_is_one_stack(config: transformers.PretrainedConfig, kind: str, file: object) -> None:
    if config.is_encoder_decoder:
        problem = f"found the model_type {kind!r}, an encoder with a decoder, which learn from pairs of sequences"
        heads = (
            "a decoder (such as opt) for causal_lm and instruct, an encoder (such as roberta) for masked_lm, either of "
        )
        heads += "them for classification"
        raise InputError(f"{problem}; expected {heads}", key="model.config", file=str(file))


def _complete(config: transformers.PretrainedConfig, num_layers: int | None, sizes: Mapping[str, int]) -> None:
    """Set the depth, and the sizes that follow from the data. Special tokens that the vocabulary does not have belong
    to another tokenizer."""
    side = sizes["image_size"]
    changes = {
        "num_hidden_layers": num_layers, "vocab_size": sizes["vocab_size"],
        "image_size": [side, side] if side and isinstance(getattr(config, "image_size", None), (list, tuple)) else side,
        "num_channels": sizes["num_channels"], "use_cache": False if hasattr(config, "use_cache") else None,
    }  # fmt: skip
    for key, value in changes.items():
        if value not in (None, 0):
            setattr(config, key, value)
    for key in _SPECIAL_TOKENS:
        token = getattr(config, key, None)
        if sizes["vocab_size"] and isinstance(token, int) and token >= sizes["vocab_size"]:
            setattr(config, key, None)


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
