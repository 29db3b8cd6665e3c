"""The parameter tables of encoders, whose objective is masked tokens."""

from __future__ import annotations

from raystage.models.table import Axis, Family, Head, ParameterSpec, fixed, out, reads
from raystage.models.tables.rows import NO_SPECIAL_TOKENS, layer_norm, linear, on
from raystage.models.tables.windows import LayerWindows

_B, _E = "bert.encoder.layer.{layer}.", "bert.embeddings."


BERT = Family(
    name="bert",
    before=(
        ParameterSpec(_E + "word_embeddings.weight", (out("vocab"), out("hidden"))),
        ParameterSpec(_E + "position_embeddings.weight", (out("position"), out("hidden"))),
        ParameterSpec(_E + "token_type_embeddings.weight", (fixed(2), out("hidden"))),
        *layer_norm(_E + "LayerNorm"),
    ),
    layer=(
        *linear(_B + "attention.self.query", "hidden", "query"),
        *linear(_B + "attention.self.key", "hidden", "key_value"),
        *linear(_B + "attention.self.value", "hidden", "key_value"),
        *linear(_B + "attention.output.dense", "query", "hidden", writes_residual=True),
        *layer_norm(_B + "attention.output.LayerNorm"),
        *linear(_B + "intermediate.dense", "hidden", "ffn"),
        *linear(_B + "output.dense", "ffn", "hidden", writes_residual=True),
        *layer_norm(_B + "output.LayerNorm"),
    ),
    after=(
        ParameterSpec("cls.predictions.bias", (out("vocab"),), "zeros"),
        *linear("cls.predictions.transform.dense", "hidden", "hidden"),
        *layer_norm("cls.predictions.transform.LayerNorm", feeds_head=True),
        ParameterSpec("cls.predictions.decoder.weight", (out("vocab"), reads("hidden"))),
        ParameterSpec("cls.predictions.decoder.bias", (out("vocab"),), "zeros"),
    ),
    embeddings=(_E + "word_embeddings.weight", _E + "position_embeddings.weight", _E + "token_type_embeddings.weight"),
    head="cls.predictions.decoder.weight",
    untied=("cls.predictions.decoder.bias",),
    ties={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    # The pooler, and whether two sentences follow each other (BertForPreTraining).
    optional=on(
        "sample",
        (
            *linear("bert.pooler.dense", "hidden", "hidden"),
            ParameterSpec("cls.seq_relationship.weight", (fixed(2), reads("hidden"))),
            ParameterSpec("cls.seq_relationship.bias", (fixed(2),), "zeros"),
        ),
    ),
    base="bert.",
    norm="layer",
    post_norm=True,
    heads_fill_hidden=True,
    rotary=False,
    objective="masked tokens",
    fields={
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "ffn_size": ("intermediate_size", 3072),
        "vocab_size": ("vocab_size", 30522),
        "context_length": ("max_position_embeddings", 512),
        "tied_embeddings": ("tie_word_embeddings", True),
        "norm_eps": ("layer_norm_eps", 1e-12),
    },
    constants={**NO_SPECIAL_TOKENS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    heads={
        "classes": Head(
            "ForSequenceClassification",
            (
                *on("sample", linear("bert.pooler.dense", "hidden", "hidden")),
                *on("sample", linear("classifier", "hidden", "class")),
            ),
            {"num_labels": "num_classes"},
        )
    },
)


_M = "model.layers.{layer}."
_MODERN_HEAD = (
    ParameterSpec("head.dense.weight", (out("hidden"), reads("hidden"))),
    ParameterSpec("head.norm.weight", (Axis("gain", ("hidden",)),), "ones", feeds_head=True),
)
_DECODER = ParameterSpec("decoder.weight", (out("vocab"), reads("hidden")))


# No biases; every third layer attends to all, the others to a window; the first layer has no norm before its attention,
# for the embeddings have one behind them. (2412.13663)
MODERNBERT = Family(
    name="modernbert",
    before=(
        ParameterSpec("model.embeddings.tok_embeddings.weight", (out("vocab"), out("hidden"))),
        ParameterSpec("model.embeddings.norm.weight", (Axis("branch gain", ("hidden",)),), "ones"),
    ),
    layer=(
        ParameterSpec(_M + "attn_norm.weight", (Axis("gain", ("hidden",)),), "ones", after_first=True),
        ParameterSpec(
            _M + "attn.Wqkv.weight", (out("query", "key_value", "key_value"), reads("hidden")), is_bare_in_first=True
        ),
        ParameterSpec(_M + "attn.Wo.weight", (out("hidden"), reads("query")), writes_residual=True),
        ParameterSpec(_M + "mlp_norm.weight", (Axis("gain", ("hidden",)),), "ones"),
        ParameterSpec(_M + "mlp.Wi.weight", (out("ffn", "ffn"), reads("hidden"))),
        ParameterSpec(_M + "mlp.Wo.weight", (out("hidden"), reads("ffn")), writes_residual=True),
    ),
    after=(
        ParameterSpec("model.final_norm.weight", (Axis("gain", ("hidden",)),), "ones"),
        *_MODERN_HEAD,
        _DECODER,
        ParameterSpec("decoder.bias", (out("vocab"),), "zeros"),
    ),
    embeddings=("model.embeddings.tok_embeddings.weight",),
    head=_DECODER.name,
    base="model.",
    norm="layer",
    heads_fill_hidden=True,
    scales_rotary=False,
    rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    windows=LayerWindows(every=3, is_first=True, key="global_attn_every_n_layers", both_sides=True),
    stand_ins={_M + "attn_norm.weight": "model.embeddings.norm.weight"},
    by_whole_factors=True,
    fewest_layers=1,
    objective="masked tokens",
    fields={
        "num_layers": ("num_hidden_layers", 22),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "ffn_size": ("intermediate_size", 1152),
        "vocab_size": ("vocab_size", 50368),
        "context_length": ("max_position_embeddings", 8192),
        "tied_embeddings": ("tie_word_embeddings", True),
        "norm_eps": ("norm_eps", 1e-5),
        "sliding_window": ("local_attention", 128),
    },
    constants={
        **NO_SPECIAL_TOKENS,
        "cls_token_id": None,
        "sep_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    heads={
        "classes": Head(
            "ForSequenceClassification",
            on("sample", (*_MODERN_HEAD, *linear("classifier", "hidden", "class"))),
            {"num_labels": "num_classes"},
        )
    },
)
