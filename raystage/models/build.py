"""Builds a model through transformers, from a shape and without a download."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import transformers
from transformers.initialization import no_init_weights

from raystage.models.families import FAMILIES
from raystage.models.rope import parameters_of
from raystage.models.shape import ModelShape


def config(shape: ModelShape) -> transformers.PretrainedConfig:
    """The transformers configuration of a model of `shape`: the family's names for its sizes, and its constants."""
    family = FAMILIES[shape.family]
    sizes = {key: getattr(shape, field) for field, (key, _) in family.fields.items()}
    constants = dict(family.constants)
    if family.rotary:
        rope = {**constants["rope_parameters"], **parameters_of(shape.rope_scaling), "rope_theta": shape.rope_theta}
        constants["rope_parameters"] = rope
    return transformers.AutoConfig.for_model(family.name, **sizes, **constants, use_cache=False)


def build(shape: ModelShape, dtype: torch.dtype = torch.float32, zero_init: object = None) -> torch.nn.Module:
    """A language model of `shape` with uninitialised weights: causal, or for masked tokens, as its family is.

    zero_init: a `deepspeed.zero.Init` context, under which no worker ever holds the whole model.
    """
    auto = transformers.AutoModelForCausalLM if _is_causal(shape) else transformers.AutoModelForMaskedLM
    # Looking the class up imports it. This must happen before `zero_init`, which changes torch.Tensor and every module
    # class that is defined under it (Mixtral's experts would lose their config), and before `no_init_weights`.
    model_class(shape)
    with no_init_weights(), zero_init or nullcontext():
        model = auto.from_config(config(shape), dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
    model.tie_weights()  # skipped together with the initialisation
    return model


def model_class(shape: ModelShape) -> type[torch.nn.Module]:
    """The transformers class of such a model. Raises ValueError where there is none."""
    causal = _is_causal(shape)
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING if causal else transformers.MODEL_FOR_MASKED_LM_MAPPING
    configuration = type(config(shape))
    found = classes.get(configuration, None)
    if found is None:
        raise ValueError(f"transformers has no language model for {configuration.__name__}")
    return found


def _is_causal(shape: ModelShape) -> bool:
    return FAMILIES[shape.family].objective == "next token"
