"""The model itself, through transformers, from a shape and without a download."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import transformers
from transformers.initialization import no_init_weights

from raystage.shape import ModelShape


def llama_config(shape: ModelShape) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
        use_cache=False,
    )


# The family's transformers configuration, by the family's name.
CONFIGS: dict[str, Callable[[ModelShape], transformers.PretrainedConfig]] = {"llama": llama_config}


def build(shape: ModelShape, dtype: torch.dtype = torch.float32, zero_init: object = None) -> torch.nn.Module:
    """A causal language model of `shape` whose weights are still to be filled.

    zero_init: a `deepspeed.zero.Init` context, under which no worker ever holds the whole model.
    """
    config = CONFIGS[shape.family](shape)
    with zero_init or nullcontext(), no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # left out with the initialisation
    return model
