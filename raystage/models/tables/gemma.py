"""The parameter tables of Gemma: gains are stored minus one, and the model multiplies its embeddings by the square root
of the hidden size."""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Axis, ParameterSpec, out
from raystage.models.tables.llama import ATTENTION, LLAMA, LLAMA_CONSTANTS, LLAMA_FIELDS, MLP, NORMS

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
