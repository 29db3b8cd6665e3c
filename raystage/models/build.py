"""Builds a model, through transformers or as a network of raystage's own, from a shape and without a download."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module

import torch
import transformers
from transformers import masking_utils
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from raystage.models.document_attention import ATTENTION
from raystage.models.families import FAMILIES
from raystage.models.rope import rope_parameters
from raystage.models.shape import ModelShape, table_of
from raystage.models.tables.windows import KEY, LAYER_TYPES

_FIND_PACKED = masking_utils.find_packed_sequence_indices


def config(shape: ModelShape) -> transformers.PretrainedConfig:
    """The transformers configuration of a model of `shape`: the family's names for its sizes, and its constants."""
    family = FAMILIES[shape.family]
    sizes = {key: getattr(shape, field) for field, (key, _) in family.fields.items()}
    if shape.head:
        sizes |= {key: getattr(shape, field) for key, field in family.heads[shape.head].sets.items()}
    constants = dict(family.constants)
    if family.rotary:
        base = constants["rope_parameters"]
        constants["rope_parameters"] = rope_parameters(
            base, shape.rope_theta, shape.rope_scaling, shape.local_rope_theta
        )
    if family.windows:
        constants[KEY] = [LAYER_TYPES[kind] for kind in shape.kinds]
    return transformers.AutoConfig.for_model(family.name, **sizes, **constants, use_cache=False)


def build(shape: ModelShape, dtype: torch.dtype = torch.float32, zero_init: object = None) -> torch.nn.Module:
    """A model of `shape` with uninitialised weights and the head that it says. Raises ValueError where there is none.

    Models of tokens are called with `input_ids`, those of images with `pixel_values`; `Head.output` names the part of
    their answer that counts. A decoder with a head for classes answers at the last position whose `attention_mask` is
    not 0. A network of raystage's own has the weights that its modules draw. zero_init: a `deepspeed.zero.Init`
    context, under which no worker ever holds the whole model.
    """
    if FAMILIES[shape.family].module:
        return _network(shape, dtype, zero_init)
    # Looking the class up imports it. This must happen before `zero_init`, which changes torch.Tensor and every module
    # class that is defined under it (Mixtral's experts would lose their config), and before `no_init_weights`.
    made = pooled(model_class(shape)) if shape.head == "classes" and _is_causal(shape) else model_class(shape)
    with no_init_weights(), zero_init or nullcontext():
        model = made._from_config(config(shape), dtype=dtype, attn_implementation=ATTENTION)
    model.tie_weights()  # skipped together with the initialisation
    return model


def look_for_packed(looks: bool) -> None:
    """Whether models of transformers look for sequences that were packed into one, by the positions of its tokens.

    That reads a value from the device at every call, and compiled it makes a mask over whole sequences. Whoever passes
    no positions, or positions with a mask of `DocumentRows`, has nothing packed: the answers are the same without.
    """
    masking_utils.find_packed_sequence_indices = _FIND_PACKED if looks else _nothing_packed


def _nothing_packed(position_ids: torch.Tensor) -> None:
    """As transformers answers for sequences that are not packed."""


def _network(shape: ModelShape, dtype: torch.dtype, zero_init: object) -> torch.nn.Module:
    """Its parameters are of that type. Buffers stay in fp32, and are those of the model's code under ZeRO 3, too."""
    module = import_module(table_of(shape).module)
    with zero_init or nullcontext():
        network = module.build(shape)
    if zero_init is None:
        for one in network.parameters():
            one.data = one.data.to(dtype)
    return network


def drawn_weights(shape: ModelShape, seed: int) -> dict[str, torch.Tensor]:
    """The initial weights and buffers, in fp32, of a network of raystage's own, fixed by the seed: all of the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(build(shape).state_dict())


def model_class(shape: ModelShape) -> type[torch.nn.Module]:
    """The transformers class of such a model. Raises ValueError where there is none."""
    configuration = type(config(shape))
    if shape.head:
        name = configuration.__name__.removesuffix("Config") + FAMILIES[shape.family].heads[shape.head].suffix
        return getattr(transformers, name)
    causal = _is_causal(shape)
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING if causal else transformers.MODEL_FOR_MASKED_LM_MAPPING
    found = classes.get(configuration, None)
    if found is None:
        raise ValueError(f"transformers has no language model for {configuration.__name__}")
    return found


def _is_causal(shape: ModelShape) -> bool:
    return FAMILIES[shape.family].objective == "next token"


@cache
def pooled(base: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class of transformers, answering at the last real token of each sample as a mask says where it is.

    transformers' own looks for the last token that is not `pad_token_id`: it needs a token that no text has, and
    computes the scores of all positions to throw away all but one.
    """

    def forward(
        self: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: object
    ) -> SequenceClassifierOutputWithPast:
        body = getattr(self, self.base_model_prefix)
        states = body(input_ids, attention_mask=attention_mask, **others).last_hidden_state
        return SequenceClassifierOutputWithPast(logits=self.score(last_states(states, attention_mask)))

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__})


def last_states(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of states (samples, length, hidden) those of the last position whose mask is not 0, of every sample: (samples,
    hidden). Without a mask, of the last position. A sample whose mask is 0 everywhere has its first."""
    if mask is None:
        return states[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device) * (mask != 0)
    return states[torch.arange(len(states), device=states.device), places.argmax(-1)]
