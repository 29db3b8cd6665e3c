"""The parameter tables of Llama and of decoders that differ from it in little: RMSNorms, rotary positions, no biases or
few."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, Family, ParameterSpec, out, reads
from raystage.models.tables.rows import NO_SPECIAL_TOKENS, SCORES

LAYER = "model.layers.{layer}."


ATTENTION = (
    ParameterSpec(LAYER + "self_attn.q_proj.weight", (out("query"), reads("hidden"))),
    ParameterSpec(LAYER + "self_attn.k_proj.weight", (out("key_value"), reads("hidden"))),
    ParameterSpec(LAYER + "self_attn.v_proj.weight", (out("key_value"), reads("hidden"))),
    ParameterSpec(LAYER + "self_attn.o_proj.weight", (out("hidden"), reads("query")), writes_residual=True),
)


QKV_BIASES = (
    ParameterSpec(LAYER + "self_attn.q_proj.bias", (out("query"),), "zeros"),
    ParameterSpec(LAYER + "self_attn.k_proj.bias", (out("key_value"),), "zeros"),
    ParameterSpec(LAYER + "self_attn.v_proj.bias", (out("key_value"),), "zeros"),
)


_QKV_WITH_BIASES = tuple(row for pair in zip(ATTENTION[:3], QKV_BIASES, strict=True) for row in pair)


HEAD_NORMS = (
    ParameterSpec(LAYER + "self_attn.q_norm.weight", (Axis("gain", ("head",)),), "ones"),
    ParameterSpec(LAYER + "self_attn.k_norm.weight", (Axis("gain", ("head",)),), "ones"),
)


MLP = (
    ParameterSpec(LAYER + "mlp.gate_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(LAYER + "mlp.up_proj.weight", (out("ffn"), reads("hidden"))),
    ParameterSpec(LAYER + "mlp.down_proj.weight", (out("hidden"), reads("ffn")), writes_residual=True),
)


OTHER_BIASES = (
    ParameterSpec(LAYER + "self_attn.o_proj.bias", (out("hidden"),), "zeros", writes_residual=True),
    ParameterSpec(LAYER + "mlp.gate_proj.bias", (out("ffn"),), "zeros"),
    ParameterSpec(LAYER + "mlp.up_proj.bias", (out("ffn"),), "zeros"),
    ParameterSpec(LAYER + "mlp.down_proj.bias", (out("hidden"),), "zeros", writes_residual=True),
)


NORMS = (
    ParameterSpec(LAYER + "input_layernorm.weight", (Axis("gain", ("hidden",)),), "ones"),
    ParameterSpec(LAYER + "post_attention_layernorm.weight", (Axis("gain", ("hidden",)),), "ones"),
)


# transformers' name of each field, and the default of its configurations.
LLAMA_FIELDS = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),  # as many as heads
    "head_size": ("head_dim", None),  # hidden_size / num_heads
    "ffn_size": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
    "tied_embeddings": ("tie_word_embeddings", False),
    "norm_eps": ("rms_norm_eps", 1e-6),
}


LLAMA_CONSTANTS = {**NO_SPECIAL_TOKENS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


LLAMA = Family(
    name="llama",
    before=(ParameterSpec("model.embed_tokens.weight", (out("vocab"), out("hidden"))),),
    layer=(*ATTENTION, *MLP, *NORMS),
    after=(
        ParameterSpec("model.norm.weight", (Axis("gain", ("hidden",)),), "ones", feeds_head=True),
        ParameterSpec("lm_head.weight", (out("vocab"), reads("hidden"))),
    ),
    embeddings=("model.embed_tokens.weight",),
    head="lm_head.weight",
    optional=(*QKV_BIASES, *OTHER_BIASES),
    base="model.",
    heads_divide_hidden=True,
    fields=LLAMA_FIELDS,
    constants=LLAMA_CONSTANTS,
    heads=SCORES,
)


MISTRAL = replace(
    LLAMA,
    name="mistral",
    optional=(),
    heads_divide_hidden=False,
    fields={
        **LLAMA_FIELDS,
        "num_kv_heads": ("num_key_value_heads", 8),
        "ffn_size": ("intermediate_size", 14336),
        "context_length": ("max_position_embeddings", 4096 * 32),
    },
    constants={**LLAMA_CONSTANTS, "sliding_window": None},
)


# One projection makes queries, keys and values, and one what is multiplied in the feed-forward layer.
PHI3 = replace(
    LLAMA,
    name="phi3",
    layer=(
        ATTENTION[3],
        ParameterSpec(LAYER + "self_attn.qkv_proj.weight", (out("query", "key_value", "key_value"), reads("hidden"))),
        ParameterSpec(LAYER + "mlp.gate_up_proj.weight", (out("ffn", "ffn"), reads("hidden"))),
        MLP[2],
        *NORMS,
    ),
    optional=(),
    heads_divide_hidden=False,
    scales_rotary=False,
    fields={
        **LLAMA_FIELDS,
        "hidden_size": ("hidden_size", 3072),
        "ffn_size": ("intermediate_size", 8192),
        "vocab_size": ("vocab_size", 32064),
        "context_length": ("max_position_embeddings", 4096),
        "norm_eps": ("rms_norm_eps", 1e-5),
    },
    constants={**LLAMA_CONSTANTS, "sliding_window": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
)


# Blocks read the stream as it is and end in a norm; queries and keys of all heads have one norm each. (2501.00656)
OLMO2 = replace(
    LLAMA,
    name="olmo2",
    layer=(
        *(replace(row, normed=True) for row in ATTENTION[:2]),
        ATTENTION[2],
        replace(ATTENTION[3], writes_residual=False),
        ParameterSpec(LAYER + "self_attn.q_norm.weight", (Axis("gain", ("query",)),), "ones"),
        ParameterSpec(LAYER + "self_attn.k_norm.weight", (Axis("gain", ("key_value",)),), "ones"),
        *MLP[:2],
        replace(MLP[2], writes_residual=False),
        *(
            ParameterSpec(LAYER + name, (Axis("branch gain", ("hidden",)),), "ones", writes_residual=True)
            for name in ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
        ),
    ),
    optional=(*(replace(row, normed=True) for row in QKV_BIASES[:2]), QKV_BIASES[2], OTHER_BIASES[0]),
    pre_norm=False,
    heads_divide_hidden=False,
    fields={**LLAMA_FIELDS, "vocab_size": ("vocab_size", 50304), "norm_eps": ("rms_norm_eps", 1e-5)},
)


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    layer=(*_QKV_WITH_BIASES, ATTENTION[3], *MLP, *NORMS),
    optional=(),
    heads_divide_hidden=False,
    fields={
        **LLAMA_FIELDS,
        "num_kv_heads": ("num_key_value_heads", 32),
        "ffn_size": ("intermediate_size", 22016),
        "vocab_size": ("vocab_size", 151936),
        "context_length": ("max_position_embeddings", 32768),
    },
)


QWEN3 = replace(
    LLAMA,
    name="qwen3",
    layer=(*ATTENTION, *HEAD_NORMS, *MLP, *NORMS),
    optional=(*QKV_BIASES, OTHER_BIASES[0]),
    heads_divide_hidden=False,
    fields={**QWEN2.fields, "head_size": ("head_dim", 128)},
)
