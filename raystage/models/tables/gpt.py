"""The parameter tables of decoders with LayerNorms and biases."""

from __future__ import annotations

from raystage.models.table import Family, ParameterSpec, out, reads
from raystage.models.tables.rows import NO_SPECIAL_TOKENS, SCORES, input_first, layer_norm

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
