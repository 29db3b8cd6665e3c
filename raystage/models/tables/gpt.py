"""The parameter tables of decoders with LayerNorms and biases."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, Family, ParameterSpec, out, reads
from raystage.models.tables.rows import NO_SPECIAL_TOKENS, SCORES, input_first, layer_norm, linear

_H = "transformer.h.{layer}."


GPT2 = Family(
    name="gpt2",
    before=(
        ParameterSpec("transformer.wte.weight", (out("vocab"), out("hidden"))),
        ParameterSpec("transformer.wpe.weight", (out("position"), out("hidden"))),
    ),
    layer=(
        *layer_norm(_H + "ln_1"),
        *input_first(_H + "attn.c_attn", "hidden", "query", "key_value", "key_value"),
        *input_first(_H + "attn.c_proj", "query", "hidden", writes_residual=True),
        *layer_norm(_H + "ln_2"),
        *input_first(_H + "mlp.c_fc", "hidden", "ffn"),
        *input_first(_H + "mlp.c_proj", "ffn", "hidden", writes_residual=True),
    ),
    after=(
        *layer_norm("transformer.ln_f", feeds_head=True),
        ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden"))),
    ),
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    head="lm_head.weight",
    base="transformer.",
    norm="layer",
    heads_fill_hidden=True,
    rotary=False,
    fields={
        "num_layers": ("n_layer", 12),
        "hidden_size": ("n_embd", 768),
        "num_heads": ("n_head", 12),
        "ffn_size": ("n_inner", None),  # four times the hidden size
        "vocab_size": ("vocab_size", 50257),
        "context_length": ("n_positions", 1024),
        "tied_embeddings": ("tie_word_embeddings", True),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
    },
    constants={
        **NO_SPECIAL_TOKENS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0,
    },
    heads=SCORES,
)  # fmt: skip


_N = "gpt_neox.layers.{layer}."
_NEOX_HEAD = ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden")))
_HEADS = Axis("out", ("query", "key_value", "key_value"), by_head=True)


# Attention and feed-forward layer read the same stream, each through a norm of its own. (2204.06745)
_NEOX = Family(
    name="gpt_neox",
    before=(ParameterSpec("gpt_neox.embed_in.weight", (out("vocab"), out("hidden"))),),
    layer=(
        *layer_norm(_N + "input_layernorm"),
        *layer_norm(_N + "post_attention_layernorm"),
        ParameterSpec(_N + "attention.query_key_value.weight", (_HEADS, reads("hidden"))),
        ParameterSpec(_N + "attention.query_key_value.bias", (_HEADS,), "zeros"),
        *linear(_N + "attention.dense", "query", "hidden", writes_residual=True),
        *linear(_N + "mlp.dense_h_to_4h", "hidden", "ffn"),
        *linear(_N + "mlp.dense_4h_to_h", "ffn", "hidden", writes_residual=True),
    ),
    after=(*layer_norm("gpt_neox.final_layer_norm", feeds_head=True), _NEOX_HEAD),
    embeddings=("gpt_neox.embed_in.weight",),
    head=_NEOX_HEAD.name,
    base="gpt_neox.",
    norm="layer",
    heads_fill_hidden=True,
    rotary_share=0.25,
    fields={
        "num_layers": ("num_hidden_layers", 44),
        "hidden_size": ("hidden_size", 6144),
        "num_heads": ("num_attention_heads", 64),
        "ffn_size": ("intermediate_size", 24576),
        "vocab_size": ("vocab_size", 50432),
        "context_length": ("max_position_embeddings", 2048),
        "tied_embeddings": ("tie_word_embeddings", False),
        "norm_eps": ("layer_norm_eps", 1e-5),
    },
    constants={
        **NO_SPECIAL_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "classifier_dropout": 0.0,
    },
    heads=SCORES,
)
_HEAD_ON_DISK = replace(_NEOX_HEAD, name="embed_out.weight")
GPT_NEOX = replace(
    _NEOX,
    on_disk=replace(_NEOX, after=(*_NEOX.after[:-1], _HEAD_ON_DISK), head=_HEAD_ON_DISK.name),
    stored_as={_NEOX_HEAD.name: (_HEAD_ON_DISK.name,)},
)


_P = "model.layers.{layer}."


# Attention and feed-forward layer read the same stream through one norm. (2309.05463)
PHI = Family(
    name="phi",
    before=(ParameterSpec("model.embed_tokens.weight", (out("vocab"), out("hidden"))),),
    layer=(
        *linear(_P + "self_attn.q_proj", "hidden", "query"),
        *linear(_P + "self_attn.k_proj", "hidden", "key_value"),
        *linear(_P + "self_attn.v_proj", "hidden", "key_value"),
        *linear(_P + "self_attn.dense", "query", "hidden", writes_residual=True),
        *linear(_P + "mlp.fc1", "hidden", "ffn"),
        *linear(_P + "mlp.fc2", "ffn", "hidden", writes_residual=True),
        *layer_norm(_P + "input_layernorm"),
    ),
    after=(
        *layer_norm("model.final_layernorm", feeds_head=True),
        ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden"))),
        ParameterSpec("lm_head.bias", (out("vocab"),), "zeros"),
    ),
    embeddings=("model.embed_tokens.weight",),
    head="lm_head.weight",
    base="model.",
    norm="layer",
    rotary_share=0.5,
    fields={
        "num_layers": ("num_hidden_layers", 24),
        "hidden_size": ("hidden_size", 2048),
        "num_heads": ("num_attention_heads", 32),
        "num_kv_heads": ("num_key_value_heads", None),
        "head_size": ("head_dim", None),
        "ffn_size": ("intermediate_size", 8192),
        "vocab_size": ("vocab_size", 51200),
        "context_length": ("max_position_embeddings", 2048),
        "tied_embeddings": ("tie_word_embeddings", False),
        "norm_eps": ("layer_norm_eps", 1e-5),
    },
    constants={
        **NO_SPECIAL_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    heads=SCORES,
)
