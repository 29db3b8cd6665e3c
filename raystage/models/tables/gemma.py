"""The parameter tables of Gemma: gains are stored minus one, and the model multiplies its embeddings by the square root
of the hidden size."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, ParameterSpec, out
from raystage.models.tables.llama import ATTENTION, HEAD_NORMS, LAYER, LLAMA, LLAMA_CONSTANTS, LLAMA_FIELDS, MLP, NORMS
from raystage.models.tables.windows import LayerWindows

_EMBEDDING = ParameterSpec("model.embed_tokens.weight", (out("vocab"), Axis("scaled out", ("hidden",))))


# 2403.08295
GEMMA = replace(
    LLAMA,
    name="gemma",
    before=(_EMBEDDING,),
    layer=(*ATTENTION, *MLP, *(replace(row, init="zeros") for row in NORMS)),
    after=(replace(LLAMA.after[0], init="zeros"), LLAMA.after[1]),
    optional=(),
    heads_divide_hidden=False,
    gain_offset=1.0,
    fields={
        **LLAMA_FIELDS,
        "num_layers": ("num_hidden_layers", 28),
        "hidden_size": ("hidden_size", 3072),
        "num_heads": ("num_attention_heads", 16),
        "num_kv_heads": ("num_key_value_heads", 16),
        "head_size": ("head_dim", 256),
        "ffn_size": ("intermediate_size", 24576),
        "vocab_size": ("vocab_size", 256000),
        "context_length": ("max_position_embeddings", 8192),
        "tied_embeddings": ("tie_word_embeddings", True),
    },
    constants=LLAMA_CONSTANTS,
)


_GAINS = tuple(
    ParameterSpec(LAYER + name, (Axis("gain", ("hidden",)),), "zeros")
    for name in ("input_layernorm.weight", "pre_feedforward_layernorm.weight")
)
_BRANCH_GAINS = tuple(
    ParameterSpec(LAYER + name, (Axis("branch gain", ("hidden",)),), "zeros", writes_residual=True)
    for name in ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
)


# Blocks begin and end in a norm, every second layer has a window, and scores and logits are capped. (2408.00118)
GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    layer=(
        *ATTENTION[:3],
        replace(ATTENTION[3], writes_residual=False),
        *MLP[:2],
        replace(MLP[2], writes_residual=False),
        _GAINS[0],
        _BRANCH_GAINS[0],
        _GAINS[1],
        _BRANCH_GAINS[1],
    ),
    heads_divide_hidden=True,
    caps_scores=True,
    windows=LayerWindows(every=2),
    fields={
        **GEMMA.fields,
        "num_layers": ("num_hidden_layers", 26),
        "hidden_size": ("hidden_size", 2304),
        "num_heads": ("num_attention_heads", 8),
        "num_kv_heads": ("num_key_value_heads", 4),
        "ffn_size": ("intermediate_size", 9216),
        "sliding_window": ("sliding_window", 4096),
        "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
    },
    constants={**LLAMA_CONSTANTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)


# As Gemma 2, but norms of queries and keys are in place of the caps, and layers with a window, five of six, have
# rotary positions of their own. (2503.19786)
GEMMA3_TEXT = replace(
    GEMMA2,
    name="gemma3_text",
    layer=(
        *GEMMA2.layer[:4],
        *(replace(row, init="zeros") for row in HEAD_NORMS),
        *GEMMA2.layer[4:],
    ),
    caps_scores=False,
    windows=LayerWindows(every=6, key="sliding_window_pattern"),
    rope_theta=1_000_000.0,
    local_rope_theta=10_000.0,
    fields={
        **GEMMA2.fields,
        "vocab_size": ("vocab_size", 262_208),
        "context_length": ("max_position_embeddings", 131_072),
    },
    constants=LLAMA_CONSTANTS,
)
